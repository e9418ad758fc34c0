"""Whether examples interact, by value: some are moved, and of the others nothing may change."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltasam.core.closeness import rounding_of_repeats
from deltasam.core.torch_internals.modes import unseen
from deltasam.core.torch_internals.tensors import version_of
from deltasam.core.vectors import wide
from deltasam.per_example.example_gradients import ExampleGradients
from deltasam.per_example.perturbed_forward import Perturbed
from deltasam.per_example.recorder import Record
from deltasam.per_example.rules import MatmulUse

_FEW = 7
"""Of so many groups any two are separated; of more, those that fall into different halves."""

_SHARED = 4
"""So many results are remembered, in case that the same ones are looked at again."""


def selections(groups: int, drawn: int, seed: int) -> Iterator[Tensor]:
    """Which groups are moved together [g], in a few runs beside one in which the drawn group alone is.

    Args:
        groups: Their number; a single one has no other to interact with.
        drawn: The number of the drawn one.
        seed: 1 for the first look at a model, which separates neighbours, mirror images and halves of a batch; others
            draw a half.
    """
    if groups == 1:
        return
    if groups <= _FEW:
        # The drawn group has the number 0 and no group has all bits: in two runs each is the same and any other is not.
        codes = (torch.arange(groups, device="cpu") - drawn) % groups
        yield from (codes >> bit & 1 == 1 for bit in range(groups.bit_length()))
        return
    numbers, bits = torch.arange(groups, device="cpu"), (groups - 1).bit_length()
    if seed == 1:
        odd_many = [bit for bit in range(bits) if bit != 1 or bits % 2]
        half = torch.stack([numbers >> bit for bit in odd_many]).sum(0) % 2 == 1
    else:
        generator = torch.Generator("cpu").manual_seed(seed)
        half = torch.randperm(groups, generator=generator, device="cpu") < groups // 2
    yield half
    yield ~half


@dataclass(frozen=True)
class Rows:
    """The rows of one result, as two numbers for each group.

    Attributes:
        names: The parameters that the examples met, or nothing.
        numbers: A projection of the rows, and their norm [g, 2]; NaN where the groups do not divide the rows.
        tolerance: How much the projection may differ, relative to the norm.
    """

    names: tuple[str, ...]
    numbers: Tensor
    tolerance: float


class Looks:
    """Makes two numbers of rows: a projection, for which any fixed weights without a pattern will do, and the norm.

    Sums alone of normalised rows do not change, whatever happens to them.
    """

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._weights: dict[tuple[object, ...], Tensor] = {}
        self._last: deque[tuple[Tensor, int, Tensor]] = deque(maxlen=_SHARED)

    @torch.no_grad()
    def at(self, result: Tensor, names: tuple[str, ...] = ()) -> Rows:
        """The rows of a result [B, ...]."""
        tolerance, version = rounding_of_repeats(result.dtype), version_of(result)
        for seen, its_version, numbers in self._last:  # what comes out of a layer goes into others
            if seen is result and its_version == version:
                return Rows(names, numbers, tolerance)
        numbers = self._numbers(result)
        self._last.append((result, version, numbers))
        return Rows(names, numbers, tolerance)

    def forget(self) -> None:
        """Hold no tensor any more."""
        self._last.clear()

    def _numbers(self, result: Tensor) -> Tensor:
        if len(result) % self._groups or not result.numel():
            return torch.full((self._groups, 2), torch.nan, device=result.device)
        rows = wide(result.detach()).reshape(self._groups, -1)
        key = (rows.shape[1], rows.dtype, rows.device)
        if key not in self._weights:
            exact = torch.float64 if rows.device.type != "mps" else torch.float32
            places = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=exact)
            self._weights[key] = torch.sin(places.square()).to(rows.dtype)
        return torch.stack([rows @ self._weights[key], torch.linalg.vector_norm(rows, dim=1)], 1)


class RowsOfUses(Perturbed):
    """A perturbed forward that notes the rows of every result in which examples met parameters."""

    def __init__(self, record: Record, perturbations: ExampleGradients, *, looks: Looks) -> None:
        super().__init__(record, perturbations)
        self.rows: list[Rows] = []
        self._looks, self._noting = looks, False

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Around the forward; a layer that is run again in the backward is not noted again."""
        self._noting = True
        try:
            yield
        finally:
            self._noting = False
            self._looks.forget()

    def product(self, run: Callable[[], Tensor], product: MatmulUse) -> Tensor:
        """As there; what goes into a product shows interactions that weights of 0 hide in what comes out."""
        self.met(product.parameters, product.x)
        return super().product(run, product)

    def met(self, parameters: Iterable[nn.Parameter], result: object) -> None:
        """Note it."""
        if self._noting and isinstance(result, Tensor) and result.is_floating_point() and result.ndim:
            names = tuple(self.names[id(p)] for p in parameters if id(p) in self.names)
            with unseen():
                self.rows.append(self._looks.at(result, names))


def _together(numbers: list[Tensor]) -> Tensor:
    """Pairs of numbers [g, 2] in one tensor [..., g, 2] of float64 on the CPU."""
    first = numbers[0]
    if any(n.dtype != first.dtype or n.device != first.device for n in numbers):
        numbers = [n.cpu().double() for n in numbers]
    return torch.stack(numbers).cpu().double()


class Separation:
    """What several runs with different groups moved show of the rows of each result.

    A group that is moved, or is not, has the same rows in all runs, whoever else is moved.
    """

    def __init__(self) -> None:
        self._names: list[tuple[str, ...]] = []
        self._known = torch.empty(0, device="cpu")
        self._changed = torch.empty(0, dtype=torch.bool, device="cpu")
        self.uneven = False

    def add(self, state: Tensor, rows: list[Rows]) -> None:
        """One run.

        Args:
            state: Of each group [g]: 0 as it was, 1 moved, 2 moved in another way.
            rows: Of its results, in turn.
        """
        names = [r.names for r in rows]
        if not self._names:
            self._names, self._changed = names, torch.zeros(len(rows), dtype=torch.bool, device="cpu")
            self._known = torch.full((3, len(rows), len(state), 2), torch.nan, dtype=torch.float64, device="cpu")
        if names != self._names:
            self.uneven = True
        elif rows:
            numbers = _together([r.numbers for r in rows])
            tolerances = torch.tensor([r.tolerance for r in rows], dtype=torch.float64, device="cpu")[:, None]
            groups = torch.arange(len(state), device="cpu")
            before = self._known[state, :, groups].transpose(0, 1)
            far = (numbers - before).abs().amax(2) > tolerances * before[..., 1]
            differs = (far | ~numbers.isfinite().all(2)) & before.isfinite().all(2)
            self._changed |= differs.any(1)
            self._known[state, :, groups] = numbers.transpose(0, 1)

    @property
    def changed(self) -> list[tuple[str, ...]]:
        """The names of the results in which the rows of a group hang on others, in turn."""
        return [names for names, changed in zip(self._names, self._changed.tolist(), strict=True) if changed]

    def is_changed(self, place: int) -> bool:
        """Whether a result is one of them, by its place in the list, from the end if negative."""
        return bool(self._changed[place])
