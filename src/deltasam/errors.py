"""The error for unusable input, whose message says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """An input is wrong: a file, a column, an option.

    The message is one line that says what is wrong, where, and what to do. The command line prints it without a
    traceback and exits with code 2.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: ``; did you mean 'sam'?``, or nothing where no known name is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
