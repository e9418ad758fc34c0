"""The table for the documentation, from the records of the last adversarial run.

    python benchmarks/adversary/table.py

Prints Markdown: what was run, how much was exact, refused, wrong, crashed, and the most frequent reasons of refusals.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from adversary.record import RESULTS

NAMES = {
    "programs": "random programs",
    "sweep": "model classes of transformers",
    "peft": "configurations of PEFT",
    "methods": "draws of methods against equations",
}
STATEFUL = "that keep state in Python attributes"
EXACT_ONE = "per_instance_sam:rho=0.1"
UNUSABLE = ("invalid", "not built", "not run", "too slow")


def outcomes(record: dict[str, Any]) -> dict[str, Counter[str]]:
    """One outcome for each program, class, configuration or draw, by what it is.

    Wrong or crashed, if any method was. Else that of per-instance SAM; but a program counts as refused if any method
    refuses it.
    """
    name = NAMES[record["tool"]]
    if record["tool"] == "programs":
        found: dict[str, Counter[str]] = {name: Counter(), f"{name} {STATEFUL}": Counter()}
        for key, count in record["programs"].items():
            kind, _, outcome = key.partition(": ")
            found[f"{name} {STATEFUL}" if kind == "stateful" else name][outcome] += count
        return found
    if record["tool"] == "methods":
        return {name: _sum(record["counts"].values())}
    return {name: Counter(_of_row(row["outcomes"]) for row in record["rows"])}


def refusals(record: dict[str, Any], most: int) -> list[tuple[str, int]]:
    """Why, and how often."""
    if record["tool"] == "programs":
        found: Counter[str] = Counter()
        for key, count in record["refusals"].items():
            found[key.partition(": ")[2]] += count
        return found.most_common(most)
    reasons = (
        next((o["reason"] for o in row["outcomes"].values() if o["kind"] == "refused"), "")
        for row in record.get("rows", [])
    )
    return Counter(filter(None, reasons)).most_common(most)


def table(records: list[dict[str, Any]]) -> str:
    """All of it."""
    head = ("what", "number", "exact", "refused", "wrong", "crashed", "no stable value")
    rows = []
    for record in records:
        for name, found in outcomes(record).items():
            judged = sum(n for kind, n in found.items() if kind not in UNUSABLE)
            numbers = (judged, *(found[k] for k in ("exact", "refused", "wrong", "crashed", "not judged")))
            rows.append((name, *map(str, numbers)))
    rule = ["---", *["--:"] * (len(head) - 1)]
    lines = [f"| {' | '.join(row)} |" for row in [head, rule, *rows]]
    versions = {
        f"{name} {record[name]}" for record in records for name in ("torch", "transformers", "peft") if name in record
    }
    dates = sorted({record["date"] for record in records})
    lines += ["", f"Run on {' and '.join(dates)} with {', '.join(sorted(versions))}."]
    lines += ["", "Refused, most often:", ""]
    for record in records:
        lines += [f"- {NAMES[record['tool']]}: {reason} ({count})" for reason, count in refusals(record, 5)]
    return "\n".join(lines) + "\n"


def _of_row(outcomes: dict[str, dict[str, Any]]) -> str:
    """Of the method that is exact for each example, unless another one was wrong or crashed."""
    kinds = {spec: outcome["kind"] for spec, outcome in outcomes.items()}
    bad = next((kind for kind in ("wrong", "crashed") if kind in kinds.values()), None)
    return bad or kinds.get(EXACT_ONE, next(iter(kinds.values())))


def _sum(counters: Any) -> Counter[str]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS, help="of the records")
    folder = parser.parse_args().folder
    files = [path for name in NAMES for path in sorted(folder.glob(f"{name}*.json"))]
    if not files:
        parser.error(f"no records in {folder}; run programs.py, sweep.py, peft_sweep.py and methods.py first")
    print(table([json.loads(path.read_text(encoding="utf-8")) for path in files]))


if __name__ == "__main__":
    main()
