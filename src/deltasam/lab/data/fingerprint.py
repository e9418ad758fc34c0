"""Tell whether two runs saw the same data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

Columns = Mapping[str, list[Any]]


def fingerprint(
    train: Columns, evaluation: Columns, label_names: Sequence[str], further: Mapping[str, Columns] | None = None
) -> str:
    """Compute the SHA-256 over the contents of the splits, in order, and the names of the classes.

    Args:
        train: The columns of the training split.
        evaluation: The columns of the evaluation split.
        label_names: What the class indices mean.
        further: The columns of more evaluation splits, by name.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(list(label_names)).encode())
    for name, split in [("", train), ("", evaluation), *(further or {}).items()]:
        digest.update(name.encode() + json.dumps(list(split)).encode())
        for row in zip(*split.values(), strict=True):
            digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
