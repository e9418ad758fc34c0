"""The type of the fixture that runs ``deltasam`` in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Cli = Callable[..., Any]
