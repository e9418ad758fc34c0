"""Results as what JSON holds, and options without nesting."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any


def to_jsonable(value: object) -> Any:
    """Dataclasses as dictionaries of their fields and properties; None for what is no finite number.

    JSON has no NaN and no infinity.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value)]
        properties = [name for name in dir(type(value)) if isinstance(getattr(type(value), name), property)]
        return {name: to_jsonable(getattr(value, name)) for name in (*fields, *properties)}
    if isinstance(value, Mapping):
        return {str(k): to_jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested options under dotted names."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
