"""Stratified choice of rows: the evaluation split, and smaller training sets.

Rows with one text stay together when evaluation rows are held out: no model is evaluated on a text it was trained on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from deltasam.errors import UserError

SPLIT_SEED = 20220526  # fixed, so that every run on a file compares on the same evaluation rows


def stratified_order(groups: Sequence[Hashable], seed: int, weights: Sequence[int] | None = None) -> list[int]:
    """Order rows at random such that every prefix of the order contains each group in proportion.

    The k-th row (from 0) of a group of n, in random order, is placed at the fraction k/n. So the first rows are one
    of each group, every prefix contains the same fraction of each group, rounded up, and smaller prefixes are parts of
    larger ones.

    Args:
        groups: The class of each row.
        seed: Seed of the order.
        weights: Number of rows that each row represents, itself included; 0 leaves it out. Default: 1.

    Returns:
        The row indices.
    """
    weights = [1] * len(groups) if weights is None else weights
    # RandomState: its stream is stable across numpy versions, that of Generator is not.
    shuffled = [int(row) for row in np.random.RandomState(seed).permutation(len(groups)) if weights[row]]
    sizes, seen = Counter[Hashable](), Counter[Hashable]()
    for group, weight in zip(groups, weights, strict=True):
        sizes[group] += weight
    place = {}
    for row in shuffled:
        place[row] = seen[groups[row]] / sizes[groups[row]]
        seen[groups[row]] += weights[row]
    return sorted(shuffled, key=place.__getitem__)


def split_rows(
    where: str,
    groups: Sequence[str],
    eval_size: float,
    texts: Sequence[Hashable],
    option: str = "--eval-size",
) -> tuple[list[int], list[int]]:
    """Split rows into training and evaluation, each group in proportion, with no text on both sides.

    Rows of one text are drawn together, for the rarest of their groups. A text that holds all rows of a group stays in
    training, and so does one with more rows than its group's quota of the evaluation rows, unless the group has no
    smaller one. So where texts are repeated, the evaluation split can be smaller or larger than requested, and it has
    no row of a group whose rows all have the same text.

    Args:
        where: Name of the table in messages.
        groups: The class of each row; the same for all if there are no classes.
        eval_size: A fraction below 1, or a number of rows.
        texts: The text of each row.
        option: The option that set the size, for messages.

    Returns:
        The training rows and the evaluation rows, each in the order of the table.

    Raises:
        UserError: The size is impossible, or a group has one row, or no text can be held out.
    """
    sizes = Counter(groups)
    single = sorted(group for group, size in sizes.items() if size == 1)
    if single:
        raise UserError(
            f"{where}: only one row has label {single[0]!r}, it cannot be in training and evaluation; "
            "add rows, delete it, or give the evaluation rows with --eval-data"
        )
    count = _eval_count(eval_size, len(groups), option)
    if not len(sizes) <= count <= len(groups) - len(sizes):
        raise UserError(
            f"{where}: {option} {eval_size:g} means {count} of {len(groups)} rows; give from {len(sizes)} to "
            f"{len(groups) - len(sizes)}, so that both splits can hold every class"
        )
    evaluation = _draw(groups, texts, count)
    if not evaluation:
        raise UserError(
            f"{where}: rows with one text stay together, and every text holds all rows of some label, so none can be "
            "set aside; add rows, or give the evaluation rows with --eval-data"
        )
    train = sorted(set(range(len(groups))) - set(evaluation))
    lost = sorted(sizes.keys() - {groups[row] for row in train})
    if lost:
        raise UserError(
            f"{where}: {option} {eval_size:g} leaves no training row with label {lost[0]!r}; make it smaller"
        )
    return train, evaluation


class _Unit(NamedTuple):
    """The rows of one text, which are drawn together.

    Attributes:
        rows: The rows, in the order of the table.
        groups: The groups of these rows.
        group: The rarest of these groups, for which the unit is drawn.
    """

    rows: list[int]
    groups: list[str]
    group: str


def _draw(groups: Sequence[str], texts: Sequence[Hashable], count: int) -> list[int]:
    """About ``count`` rows, each group in proportion, all rows of a text or none; sorted."""
    units = _units(groups, texts)
    left = Counter(group for unit in units for group in unit.groups)  # number of texts of each group not yet taken
    units = [unit for unit in units if all(left[group] > 1 for group in unit.groups)]
    least: dict[str, int] = {}
    for unit in units:
        least[unit.group] = min(len(unit.rows), least.get(unit.group, len(unit.rows)))
    sizes = Counter(groups)
    share = {group: max(size, math.ceil(sizes[group] * count / len(groups))) for group, size in least.items()}
    units = [unit for unit in units if len(unit.rows) <= share[unit.group]]
    # The first row of a text represents all, so that a few repeated rows hardly change the order of the others.
    by_first = {unit.rows[0]: unit for unit in units}
    drawn_for = [by_first[row].group if row in by_first else group for row, group in enumerate(groups)]
    weights = [len(by_first[row].rows) if row in by_first else 0 for row in range(len(groups))]
    taken: list[int] = []
    covered: set[str] = set()
    rest = []
    # One text of each group comes first, even where these are more than count rows.
    for unit in (by_first[row] for row in stratified_order(drawn_for, SPLIT_SEED, weights)):
        if unit.group in covered or any(left[group] == 1 for group in unit.groups):
            rest.append(unit)
        else:
            taken += unit.rows
            covered.update(unit.groups)
            left.subtract(unit.groups)
    for unit in rest:
        if len(taken) + len(unit.rows) <= count:
            taken += unit.rows
    return sorted(taken)


def _units(groups: Sequence[str], texts: Sequence[Hashable]) -> list[_Unit]:
    rows_of: dict[Hashable, list[int]] = {}
    for row, text in enumerate(texts):
        rows_of.setdefault(text, []).append(row)
    sizes = Counter(groups)
    found = []
    for rows in rows_of.values():
        own = list(dict.fromkeys(groups[row] for row in rows))
        found.append(_Unit(rows, own, min(own, key=sizes.__getitem__)))
    return found


def _eval_count(eval_size: float, rows: int, option: str) -> int:
    if 0 < eval_size < 1:
        return round(eval_size * rows)
    if eval_size >= 1 and float(eval_size).is_integer():
        return int(eval_size)
    raise UserError(f"{option} {eval_size:g}: give a fraction between 0 and 1, or a whole number of rows")
