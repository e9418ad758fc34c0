"""Started in two processes: prints how many of gloo's threads are left once they have parted.

A thread that is left may want the interpreter's lock when that is gone, and then aborts the process.
"""

from __future__ import annotations

import os
from pathlib import Path

from deltasam.lab.train import distributed as processes


def main() -> None:
    with processes.joined():
        import torch._dynamo  # noqa: F401  # as transformers does, and late, as the command line does

        processes.gather(None)
    names = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]
    if os.environ["RANK"] == "0":
        print(sum(name.startswith("pt_gloo") for name in names))


if __name__ == "__main__":
    main()
