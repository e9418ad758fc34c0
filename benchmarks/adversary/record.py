"""What the tools of the adversary leave behind: a JSON file, written whole or not at all, and a table."""

from __future__ import annotations

import datetime
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import deltasam

RESULTS = Path(__file__).parents[1] / "results/adversary"
KINDS = ("exact", "refused", "wrong", "crashed", "not judged")


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record: a crash or a full disk never leaves half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    about = {"date": datetime.date.today().isoformat(), "deltasam": deltasam.__version__, "torch": torch.__version__}
    temporary.write_text(json.dumps({**about, **record}, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def counts(rows: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """How often each kind of outcome came up, by group, from pairs of group and kind."""
    found: dict[str, Counter[str]] = {}
    for group, kind in rows:
        found.setdefault(group, Counter())[kind] += 1
    return {group: dict(counter) for group, counter in found.items()}


def table(found: dict[str, dict[str, int]], head: str) -> str:
    """Counts as a Markdown table, with one row for each group."""
    kinds = [*KINDS, *sorted({k for counter in found.values() for k in counter} - set(KINDS))]
    rows = [(group, *(str(counter.get(k, 0)) for k in kinds)) for group, counter in found.items()]
    rule = ["---", *["--:"] * len(kinds)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [(head, *kinds), rule, *rows]) + "\n"


def reasons(pairs: Iterable[str], most: int = 25) -> str:
    """The most frequent reasons, one a line."""
    return "\n".join(f"{count:6d}  {reason}" for reason, count in Counter(pairs).most_common(most))
