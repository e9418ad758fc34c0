"""Which rows of the examples a forward pass picks, by data: a use after it may have other rows than the last time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltasam.per_example.parameter_values import tensors_in


@dataclass(frozen=True)
class RowMove:
    """Rows that were picked from, or put into, the rows of a tensor.

    Attributes:
        name: Of the function that did it.
        rows: How many rows the tensor has.
        picked: Their numbers [K]; or how many numbers of each row were picked [rows].
        counts: Which of the two.
    """

    name: str
    rows: int
    picked: Tensor
    counts: bool = False

    def keeps_rows(self, examples: int) -> bool:
        """Whether it is plain whose the picked ones are: of each example some, by a mask with a row for each."""
        return self.counts and self.rows == examples and self.name == "__getitem__"

    def summary(self, examples: int) -> tuple[object, ...]:
        """Whose rows they are, for examples that have the rows in turn: equal where they belong to the same ones."""
        if self.rows % examples:
            return self.name, self.rows, tuple(self.picked.flatten().tolist())
        of_each = self.rows // examples
        if self.counts:
            owned = self.picked.reshape(examples, -1).sum(1).tolist()
            return (self.name, "as many") if len(set(owned)) == 1 else (self.name, *owned)
        owners = (self.picked.flatten() % self.rows // of_each).tolist()  # -1 is the last row
        in_turn = [i * examples // len(owners) for i in range(len(owners))]
        return (self.name, "in turn") if owners == in_turn and len(owners) % examples == 0 else (self.name, *owners)


Move = RowMove | tuple[object, ...]
Reader = Callable[..., Move | None]


def reader_of(name: str) -> Reader | None:
    """What tells which rows a function of this name picks; None where that does not depend on data."""
    return _READERS.get(name if name.startswith("__") else name.rstrip("_"))


def _row_move(
    name: str, reader: Reader | None, args: Sequence[Any], kwargs: dict[str, Any], result: object
) -> Move | None:
    """What a call did with the rows of its arguments; None where that does not depend on data."""
    pieces = args[0] if args and isinstance(args[0], (list, tuple)) else result
    flows = [t for t in tensors_in(result if name != "__setitem__" else list(args)) if t.requires_grad]
    if not flows:
        return None  # labels, masks: no row of an example that a gradient will come from
    if reader is not None:
        named = {key: value for key, value in kwargs.items() if key != "input" or args}
        return reader(name, *(args or (kwargs["input"],)), **named)
    return _uneven(name, tensors_in(pieces))


class RowMoves:
    """What was done with rows by data in one forward pass, in turn, and how many uses came before each time."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, Move]] = []
        self._pieces: dict[int, tuple[Tensor, int]] = {}  # held, so that nothing else takes their places

    def see(
        self, name: str, reader: Reader | None, args: Sequence[Any], kwargs: dict[str, Any], result: object, uses: int
    ) -> None:
        """A function was called after so many uses.

        Args:
            name: Of the function.
            reader: Of it; see ``reader_of``.
            args: As it was called.
            kwargs: Likewise.
            result: What it returned.
            uses: How many there were before.
        """
        takes_a_list = args and isinstance(args[0], (list, tuple))
        if reader is None and not takes_a_list and not isinstance(result, (list, tuple)):
            return  # most of them
        if (move := _row_move(name, reader, args, kwargs, result)) is not None:
            self._seen.append((uses, move))
        if takes_a_list:
            numbers = [self._pieces[id(t)][1] for t in args[0] if id(t) in self._pieces]
            if numbers != list(range(len(numbers))):  # put together in another order than they were cut in
                self._seen.append((uses, (name, *numbers)))
        if isinstance(result, (list, tuple)):
            self._pieces.update((id(t), (t, i)) for i, t in enumerate(result) if isinstance(t, Tensor))

    def summary(self, groups: int, uses: int) -> tuple[object, ...]:
        """Equal where the same groups of examples have the same rows in the uses.

        Args:
            groups: Their number.
            uses: How many there were in all. A mask after the last one keeps nothing from being plain.
        """
        return tuple(
            m.summary(groups) if isinstance(m, RowMove) else m
            for before, m in self._seen
            if not (before == uses and isinstance(m, RowMove) and m.keeps_rows(groups))
        )


def _uneven(name: str, tensors: Sequence[Tensor]) -> tuple[object, ...] | None:
    """Pieces along the first axis that are not all of one length: cut, or put together, by lengths of the data."""
    lengths = [len(t) for t in tensors if t.ndim]
    return (name, *lengths) if len(set(lengths)) > 1 else None


def _by_index(name: str, x: Tensor, index: object = None, *_: object, **others: object) -> Move | None:
    """``x[index]`` and what writes there; only the first axis is that of the examples."""
    index = others.get("indices", index)
    first = next(iter(index), None) if isinstance(index, tuple) else index
    if isinstance(first, int | slice) and first != slice(None):
        return (name, str(first))
    if isinstance(first, (list, range)) or hasattr(first, "__array__"):
        first = torch.as_tensor(first)
    return _of_index(name, x, first) if isinstance(first, Tensor) and x.ndim else None


def _of_index(name: str, x: Tensor, index: Tensor) -> RowMove | None:
    if index.dtype == torch.bool:
        return RowMove(name, len(x), index.detach().reshape(len(index), -1).sum(1), counts=True) if index.ndim else None
    return None if index.is_floating_point() else RowMove(name, len(x), index.detach())


def _along(name: str, x: Tensor, dim: object = 0, index: object = None, *_: object, **others: object) -> RowMove | None:
    """Functions of a dimension and an index; others than the first keep every row where it is."""
    if not isinstance(dim, int) or dim % max(x.ndim, 1) or not isinstance(index, Tensor):
        return None
    return _of_index(name, x, index)


def _chosen(name: str, x: Tensor, dim: object = 0, *numbers: object, **others: object) -> tuple[object, ...] | None:
    """Rows by numbers: ``select``, ``narrow``."""
    if not isinstance(dim, int) or dim % max(x.ndim, 1):
        return None
    return (name, *numbers, *(value for _, value in sorted(others.items())))


def _take_along(name: str, x: Tensor, indices: Tensor, dim: int | None = None) -> RowMove | None:
    return None if dim is not None and dim % x.ndim else _of_index(name, x, indices)


def _by_mask(name: str, x: Tensor, mask: Tensor, *_: object, **__: object) -> RowMove | None:
    return _of_index(name, x, mask.expand(torch.broadcast_shapes(x.shape, mask.shape)))


def _repeated(name: str, x: Tensor, repeats: object = None, dim: int | None = None, **_: object) -> RowMove | None:
    if not isinstance(repeats, Tensor) or repeats.numel() != len(x) or (dim or 0) % x.ndim:
        return None
    return RowMove(name, len(x), repeats.detach(), counts=True)


def _looked_up(name: str, input: Tensor, weight: Tensor, *_: object, **__: object) -> RowMove | None:
    return _of_index(name, weight, input)


_READERS: dict[str, Reader] = {
    **dict.fromkeys(("__getitem__", "__setitem__", "index_put"), _by_index),
    **dict.fromkeys(("index_select", "index_add", "index_copy", "index_fill", "index_reduce"), _along),
    **dict.fromkeys(("gather", "scatter", "scatter_add", "scatter_reduce"), _along),
    **dict.fromkeys(("masked_select", "masked_scatter"), _by_mask),
    **dict.fromkeys(("select", "narrow"), _chosen),
    "take_along_dim": _take_along,
    "repeat_interleave": _repeated,
    "embedding": _looked_up,
}
