"""Choose rows so that every class keeps its share: the evaluation split, and smaller training sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from deltasam.data.dataset import TextData
from deltasam.errors import UserError

SPLIT_SEED = 20220526  # fixed, so that every run on a file compares on the same evaluation rows


def stratified_order(groups: Sequence[Hashable], seed: int) -> list[int]:
    """Order rows at random such that every beginning of the order holds each group in proportion.

    The k-th row (from 0) of a group of n, in random order, is placed at k/n of the way. So the first rows are one
    of each group, every beginning holds one common fraction of each group, rounded up, and smaller beginnings
    are parts of larger ones.

    Args:
        groups: The class of each row.
        seed: Equal seeds, equal order.

    Returns:
        All row indices.
    """
    # RandomState: its stream is frozen across numpy versions, that of Generator is not.
    shuffled = [int(row) for row in np.random.RandomState(seed).permutation(len(groups))]
    sizes, seen = Counter(groups), Counter[Hashable]()
    place = {}
    for row in shuffled:
        place[row] = seen[groups[row]] / sizes[groups[row]]
        seen[groups[row]] += 1
    return sorted(shuffled, key=place.__getitem__)


def split_rows(
    where: str, groups: Sequence[str], eval_size: float, option: str = "--eval-size"
) -> tuple[list[int], list[int]]:
    """Split rows into training and evaluation, each group in proportion.

    Args:
        where: What to call the table in messages.
        groups: The class of each row; one and the same for all when there are no classes.
        eval_size: A fraction below 1, or a count of rows.
        option: What set the size, for messages.

    Returns:
        The training rows and the evaluation rows, each in the order of the table.

    Raises:
        UserError: The size is impossible, or a group has too few rows to be in both.
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
    order = stratified_order(groups, SPLIT_SEED)
    evaluation, train = sorted(order[:count]), sorted(order[count:])
    lost = sorted(sizes.keys() - {groups[row] for row in train})
    if lost:
        raise UserError(
            f"{where}: {option} {eval_size:g} leaves no training row with label {lost[0]!r}; make it smaller"
        )
    return train, evaluation


def take(data: TextData, size: int, seed: int) -> TextData:
    """Take part of the training split, each class in proportion; the evaluation split stays.

    Args:
        data: What to take from.
        size: The number of training rows to keep.
        seed: Equal seeds, equal rows. With one seed, a smaller set is part of every larger one.

    Returns:
        The smaller data, rows in the order of the source, with a fingerprint of its own.

    Raises:
        UserError: There are fewer rows than ``size``, or ``size`` is below the number of classes.
    """
    labels = data.train[:]["label"]
    groups = labels if data.kind == "classification" else [None] * len(labels)
    least = len(set(groups))
    if not least <= size <= len(groups):
        raise UserError(
            f"{data.name}: --train-size {size} is impossible; give from {least} (one row of each class) "
            f"to {len(groups)} (all training rows)"
        )
    return data.with_train(data.train.select(sorted(stratified_order(groups, seed)[:size])))


def hold_out(data: TextData, size: float) -> TextData:
    """The training split alone, a part of it for evaluation, each class in proportion: the same rows each time.

    Args:
        data: Its evaluation splits are left out.
        size: A fraction below 1, or a number of rows.

    Raises:
        UserError: The size is impossible.
    """
    labels = data.train[:]["label"]
    groups = list(map(str, labels)) if data.kind == "classification" else ["any"] * len(labels)
    train, held_out = split_rows(data.name, groups, size, option="held_out")
    reduced = replace(data, evaluation=data.train.select(held_out), further={})
    return reduced.with_train(data.train.select(train))


def _eval_count(eval_size: float, rows: int, option: str) -> int:
    if 0 < eval_size < 1:
        return round(eval_size * rows)
    if eval_size >= 1 and float(eval_size).is_integer():
        return int(eval_size)
    raise UserError(f"{option} {eval_size:g}: give a fraction between 0 and 1, or a whole number of rows")
