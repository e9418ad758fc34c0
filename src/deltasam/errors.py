"""The error for unusable input, whose message says what to do."""

from __future__ import annotations


class UserError(ValueError):
    """An input is wrong: a file, a column, an option.

    The message is one line that says what is wrong, where, and what to do. The command line prints it without a
    traceback and exits with code 2.
    """
