"""The table of what works with what: written from results, read back by the tests that see whether it still holds.

PYTHONPATH=tests python -m matrix.table > docs/support.md
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from distributed.launch import told
from matrix import task, two_processes
from matrix.stacks import STACKS

DOCUMENT = Path(__file__).parents[2] / "docs" / "support.md"
EXACT, REFUSED, WARNED = "exact", "refused", "warned"
_HEAD = """# What works with what

Every cell is a test: a tiny model is trained for four steps in the stack (momentum, clipping, a falling learning rate),
and its weights are compared with those of a loop written by hand from the method's equation in the same setting.
*exact* means equal up to the rounding of the stack's own arithmetic; *refused* means an error, quoted below, and never
another gradient; *warned* means that the method says its weights are rounding, and two programs may round otherwise.
This page is written by the tests (`PYTHONPATH=tests python -m matrix.table`), and a cell that no longer holds fails
them.

The regularisers (`r_drop`, `r3f`, `freelb`, `smart`) draw dropout masks of their own, so they have other loops by hand:
in `Trainer` (accumulation, autocast, label smoothing, regression), `Seq2SeqTrainer`, `SFTTrainer` and Lightning
(`tests/integrations/test_regularisers.py`), and under DDP and FSDP2 (`tests/distributed`).
"""

_WIDE = 8
"""Number of methods side by side on the page."""

Cell = float | str
"""How far off the weights are, relative to the way they went; or what was raised."""


def cell_in_this_process(stack: str, spec: str) -> Cell:
    """Train, and compare with the loop by hand."""
    made = STACKS[stack]
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            task.fixed_noise(),
            task.training_with(spec),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", ".*so the weights are noise", RuntimeWarning)
            found = made.train(spec, Path(folder))
            return task.error(found, task.by_hand(spec, made.task), made.task.model())
    except (ValueError, RuntimeError, NotImplementedError, RuntimeWarning) as refusal:
        return f"{type(refusal).__name__}: {refusal}"


def cells_in_two_processes() -> dict[str, dict[str, Cell]]:
    """Every stack with several processes, every method."""
    return told(Path(two_processes.__file__))


def verdict(stack: str, cell: Cell) -> str:
    """``exact``, ``refused``, ``warned``, or how far off."""
    if isinstance(cell, str):
        return WARNED if cell.startswith(RuntimeWarning.__name__) else REFUSED
    tolerance = STACKS[stack].tolerance if stack in STACKS else 1e-9
    return EXACT if cell <= tolerance else f"off by {cell:.1e}"


def rendered(cells: Mapping[str, Mapping[str, Cell]]) -> str:
    """The page."""
    notes: list[str] = []
    lines: list[str] = []
    for start in range(0, len(task.SPECS), _WIDE):
        specs = task.SPECS[start : start + _WIDE]
        lines += [f"| stack | {' | '.join(f'`{_short(spec)}`' for spec in specs)} |", "|---" * (len(specs) + 1) + "|"]
        for stack, row in cells.items():
            marks = [_marked(verdict(stack, row[spec]), row[spec], notes) for spec in specs]
            lines.append(f"| {stack} | {' | '.join(marks)} |")
        lines.append("")
    quoted = [f"{i}. `{note}`" for i, note in enumerate(notes, 1)]
    return "\n".join([_HEAD, *lines, "Refused or warned with", "", *quoted]) + "\n"


def written() -> dict[str, dict[str, str]]:
    """The verdicts on the page, by stack and method."""
    rows = [
        line.strip("| \n").split(" | ") for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if "|" in line
    ]
    specs = {f"`{_short(spec)}`": spec for spec in task.SPECS}
    found: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    for name, *cells in rows:
        if name == "stack":
            columns = [specs[cell] for cell in cells]
        elif not name.startswith("---"):
            found.setdefault(name, {}).update(zip(columns, (cell.split(" ")[0] for cell in cells), strict=True))
    return found


def _short(spec: str) -> str:
    """Without the radius, which does not matter here."""
    return re.sub(r":(?=@|$)", "", spec.replace(f"rho={task.RHO},", "").replace(f"rho={task.RHO}", ""))


def _marked(word: str, cell: Cell, notes: list[str]) -> str:
    if word not in (REFUSED, WARNED):
        return word
    note = re.sub(r"^(\w+: )?\S*?: (?=FSDP)", r"\1", " ".join(str(cell).split()))
    if note not in notes:
        notes.append(note)
    return f"{word} ({notes.index(note) + 1})"


def main() -> None:
    """Write the page."""
    torch.set_num_threads(1)
    cells = {stack: {spec: cell_in_this_process(stack, spec) for spec in task.SPECS} for stack in STACKS}
    DOCUMENT.write_text(rendered({**cells, **cells_in_two_processes()}), encoding="utf-8")


if __name__ == "__main__":
    main()
