"""The command line: a file for each command, which parses its options, calls the lab and prints."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 something given cannot be used, 130 interrupted."""
    with ExitStack() as stack:
        if "MASTER_ADDR" in os.environ:  # started by torchrun or accelerate; else there is no need to load PyTorch
            from deltasam.lab.train.distributed import quiet_unless_main

            stack.enter_context(quiet_unless_main())
        try:
            from deltasam.cli.app import app
        except ModuleNotFoundError as error:
            from deltasam.cli.errors import install_hint

            print(f"error: {install_hint(error)}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("\nstopped; nothing was begun", file=sys.stderr)
            sys.exit(130)
        app()
