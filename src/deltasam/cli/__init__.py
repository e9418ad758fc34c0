"""The command line: ``deltasam train``, ``compare``, ``fidelity`` and ``methods``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 something given cannot be used, 130 interrupted."""
    from deltasam.lab.train.distributed import quiet_unless_main

    with quiet_unless_main():
        try:
            from deltasam.cli.app import app
        except ModuleNotFoundError as error:
            from deltasam.cli.errors import install_hint

            print(f"error: {install_hint(error)}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:  # libraries take seconds to load; once they are, the application says how to go on
            print("\nstopped; nothing was begun", file=sys.stderr)
            sys.exit(130)
        app()
