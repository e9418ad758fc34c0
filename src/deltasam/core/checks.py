"""Checks of hyper-parameters, with errors that quote the argument as it was passed."""

from __future__ import annotations

import math


def nonnegative(owner: str, argument: str, value: float) -> float:
    """``value`` as a float, if it is finite and at least 0.

    Raises:
        ValueError: It is negative, NaN or infinite.
    """
    return _checked(owner, argument, value, value >= 0, "0 or more")


def positive(owner: str, argument: str, value: float) -> float:
    """``value`` as a float, if it is finite and above 0.

    Raises:
        ValueError: It is 0, negative, NaN or infinite.
    """
    return _checked(owner, argument, value, value > 0, "above 0")


def fraction(owner: str, argument: str, value: float) -> float:
    """``value`` as a float, if it is at least 0 and below 1.

    Raises:
        ValueError: It is not.
    """
    return _checked(owner, argument, value, 0 <= value < 1, "0 or more, and below 1")


def finite(owner: str, argument: str, value: float) -> float:
    """``value`` as a float, if it is neither NaN nor infinite.

    Raises:
        ValueError: It is.
    """
    return _checked(owner, argument, value, True, "of either sign")


def within(owner: str, argument: str, value: float) -> float:
    """``value`` as a float, if it is above 0 and at most 1.

    Raises:
        ValueError: It is not.
    """
    return _checked(owner, argument, value, 0 < value <= 1, "above 0, and at most 1")


def _checked(owner: str, argument: str, value: float, holds: bool, wanted: str) -> float:
    if not (holds and math.isfinite(value)):
        raise ValueError(f"{owner}({argument}={value}): {argument} must be a finite number, {wanted}")
    return float(value)


def one_of(owner: str, argument: str, value: str, choices: tuple[str, ...]) -> str:
    """``value``, if it is one of the choices.

    Raises:
        ValueError: It is not.
    """
    if value not in choices:
        raise ValueError(f"{owner}({argument}={value!r}): {argument} must be one of {', '.join(map(repr, choices))}")
    return value


def whole(owner: str, argument: str, value: int, *, least: int = 1) -> int:
    """``value`` as an int, if it is a whole number of at least ``least``.

    Raises:
        ValueError: It is not.
    """
    if not math.isfinite(value) or value != int(value) or value < least:
        raise ValueError(f"{owner}({argument}={value}): {argument} must be a whole number, {least} or more")
    return int(value)
