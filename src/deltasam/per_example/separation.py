"""Whether examples interact, by value: some are moved, and of the others nothing may change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltasam.per_example.closeness import rounding_of
from deltasam.per_example.perturbed import Perturbed

# Equal numbers go through equal kernels here: what rounding may leave is far less than between two ways to compute.
_SAME_WAY = 0.03


def selections(groups: int) -> Iterator[Tensor]:
    """Which groups are moved together [g]: for any two of them, in one run only one is."""
    numbers = torch.arange(groups)
    if groups > 1:
        yield torch.ones(groups, dtype=torch.bool)
        for bit in range((groups - 1).bit_length()):
            yield (numbers >> bit) % 2 == 1


@dataclass(frozen=True)
class Rows:
    """The rows of one result, as two numbers for each group.

    Attributes:
        names: The parameters that the examples met, or nothing.
        numbers: A projection of the rows, and their norm [g, 2], in float64.
        tolerance: How much the projection may differ, relative to the norm.
    """

    names: tuple[str, ...]
    numbers: Tensor
    tolerance: float


class RowsOfUses(Perturbed):
    """A perturbed forward that notes the rows of every result in which examples met parameters."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rows: list[Rows] = []
        self._noting = False

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Around the forward; a layer that is run again in the backward is not noted again."""
        self._noting = True
        try:
            yield
        finally:
            self._noting = False

    def met(self, parameters: Iterable[nn.Parameter], result: Any) -> None:
        """Note it."""
        if self._noting and isinstance(result, Tensor) and result.is_floating_point() and result.ndim:
            names = tuple(self.names[id(p)] for p in parameters if id(p) in self.names)
            with torch._C.DisableTorchFunction():
                self.rows.append(rows_of(result, self._groups, names))


@torch.no_grad()
def rows_of(result: Tensor, groups: int, names: tuple[str, ...] = ()) -> Rows:
    """The rows of a result [B, ...]; no numbers where the groups do not divide B."""
    tolerance = _SAME_WAY * rounding_of(result.dtype)
    if len(result) % groups or not result.numel():
        return Rows(names, torch.zeros(0, 2, dtype=torch.float64), tolerance)
    rows = result.detach().reshape(groups, -1)
    rows = rows.double() if rows.device.type != "mps" else rows.float()
    # Any fixed weights without a pattern: sums of normalised rows do not change whatever happens to them.
    weights = torch.sin(torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=rows.dtype).square())
    return Rows(
        names, torch.stack([rows @ weights, torch.linalg.vector_norm(rows, dim=1)], 1).cpu().double(), tolerance
    )


class Separation:
    """What several runs with different groups moved show of the rows of each result.

    A group that is moved, or is not, has the same rows in all runs, whoever else is moved.
    """

    def __init__(self) -> None:
        self._before: dict[bool, list[Tensor]] = {}
        self._seen: list[Rows] = []
        self._changed: set[int] = set()
        self.uneven = False

    def add(self, moved: Tensor, rows: list[Rows]) -> None:
        """One run.

        Args:
            moved: Which groups were [g].
            rows: Of its results, in turn.
        """
        if self._seen and [len(r.numbers) for r in rows] != [len(r.numbers) for r in self._seen]:
            self.uneven = True
            return
        self._seen = rows
        for state in (True, False):
            known = self._before.setdefault(state, [torch.full_like(r.numbers, torch.nan) for r in rows])
            for i, (r, before) in enumerate(zip(rows, known, strict=True)):
                if not len(before):
                    continue
                here = moved == state
                if (_differs(r, before) & here).any():
                    self._changed.add(i)
                before[here] = r.numbers[here]

    @property
    def changed(self) -> list[Rows]:
        """The results in which the rows of a group hang on others, in turn."""
        return [self._seen[i] for i in sorted(self._changed)]

    def is_changed(self, place: int) -> bool:
        """Whether a result is one of them, by its place in the list, from the end if negative."""
        return place % len(self._seen) in self._changed


def _differs(rows: Rows, before: Tensor) -> Tensor:
    """Of each group [g] whether its rows are others than they were, where they were something finite."""
    far = (rows.numbers - before).abs().amax(1) > rows.tolerance * before[:, 1]
    return (far | ~rows.numbers.isfinite().all(1)) & before.isfinite().all(1)
