"""The one error that means: what was given cannot be used, and here is what to do."""

from __future__ import annotations


class UserError(ValueError):
    """Something outside the code is wrong: a file, a column, an option.

    The message is one line that says what was wrong, where, and what to do. The command line prints it
    without a traceback and exits with code 2.
    """
