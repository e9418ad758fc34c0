"""One run after the other, in this process."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, ClassVar

from deltasam.lab.compare.launchers.launcher import Cell, Watch, Work

if TYPE_CHECKING:
    from deltasam.lab.train.results import RunResult


class InSequence:
    """Needs no other process, and shows an error where it is."""

    shares_disk: ClassVar[bool] = True

    def launch(self, work: Work, cells: Sequence[Cell], watch: Watch) -> Generator[RunResult]:
        """Do one run after the other."""
        return (work(cell, watch) for cell in cells)
