"""Tell whether two runs saw the same data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def fingerprint(train: Mapping[str, list[Any]], evaluation: Mapping[str, list[Any]], label_names: Sequence[str]) -> str:
    """Compute the SHA-256 over the contents of both splits, in order, and the names of the classes.

    Args:
        train: The columns of the training split.
        evaluation: The columns of the evaluation split.
        label_names: What the class indices mean.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(list(label_names)).encode())
    for split in (train, evaluation):
        digest.update(json.dumps(list(split)).encode())
        for row in zip(*split.values(), strict=True):
            digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
