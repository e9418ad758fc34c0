"""Results as JSON: fields and properties, and null for what is no number."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from deltasam.lab.train.jsonable import to_jsonable


@dataclass(frozen=True)
class Part:
    value: float

    @property
    def double(self) -> float:
        return 2 * self.value


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    by_name: dict[str, Part]
    text: str = "nan"


def test_everything_that_is_known_is_kept() -> None:
    found = to_jsonable(Whole((Part(1.5), Part(math.nan)), {"a": Part(-math.inf)}))
    assert found == {
        "parts": [{"value": 1.5, "double": 3.0}, {"value": None, "double": None}],
        "by_name": {"a": {"value": None, "double": None}},
        "text": "nan",
    }
    json.dumps(found, allow_nan=False)
