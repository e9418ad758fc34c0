"""Which examples share a perturbation: m consecutive ones, wherever the data were cut into batches."""

from __future__ import annotations

from collections.abc import Sequence

from deltasam.diagnostics.batches import Piece


def groups_of(sizes: Sequence[int], m: int | None) -> list[list[Piece]]:
    """Cut the examples of all batches into groups of m consecutive ones; the last group may be smaller.

    Args:
        sizes: How many examples each batch has.
        m: Examples per group; None: all of them.
    """
    m = sum(sizes) if m is None else m
    groups: list[list[Piece]] = []
    room = 0
    for number, size in enumerate(sizes):
        start = 0
        while start < size:
            if not room:
                groups.append([])
                room = m
            stop = min(size, start + room)
            groups[-1].append((number, slice(start, stop)))
            room -= stop - start
            start = stop
    return groups


def batches_of_whole_groups(sizes: Sequence[int], m: int | None) -> set[int]:
    """The batches that hold several groups and no part of one."""
    found, begin = set(), 0
    for number, size in enumerate(sizes):
        if m is not None and m < size and begin % m == 0 and size % m == 0:
            found.add(number)
        begin += size
    return found
