"""Label noise: wrong labels that are put into the training split on purpose, and recorded.

Symmetric noise: rows are chosen independently of their label, and each gets one of the *other* classes, all equally
likely; so the rate is the fraction of labels that are wrong. (Drawing from all classes, as some do, leaves 1/classes of
the chosen ones right.) Exactly ``round(rate * rows)`` rows are chosen, not each with a probability: seeds then differ
in which labels are wrong and not in how many, which would add noise to the comparison itself.

Scores are permuted among the chosen rows, so that their distribution does not change. A row may get an equal score.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from datasets import Dataset, Features

from deltasam.errors import UserError
from deltasam.lab.data.dataset import CLEAN_LABEL, SELECTED, TextData, said
from deltasam.lab.data.split import split_rows

_STREAM = 1  # separates this stream from the draw of the training rows, which has the same seed
_SELECTION_STREAM = 2


def add_label_noise(data: TextData, rate: float, seed: int) -> TextData:
    """Replace a fraction of the training labels by wrong ones; the evaluation splits do not change.

    Args:
        data: The data.
        rate: The fraction, from 0 (no change) to below 1.
        seed: Seed of the noise: equal seeds, equal noise. With one seed, a higher rate changes all labels that a lower
            rate changes, for classes to the same labels.

    Returns:
        The data with its own fingerprint and with the original labels in the training column ``clean_label``.

    Raises:
        UserError: The rate is not a valid fraction, or so small that it changes nothing.
    """
    check_rate(rate)
    if rate == 0:
        return data
    return data.with_train(_with_wrong_labels(data, data.train, "training", rate, [seed % 2**32, _STREAM]))


def with_noisy_selection(data: TextData, rate: float, seed: int) -> TextData:
    """Let half of the evaluation rows choose the epoch, with the same fraction of wrong labels as the training rows.

    This is the situation without clean labels. The other half stays clean, and models are evaluated on it, at the
    chosen epoch and at the last. The rows are the same for every seed, their wrong labels are not.

    Args:
        data: The data; in the result its metric is the one at the chosen epoch.
        rate: The fraction of wrong labels; may be 0.
        seed: As for ``add_label_noise``.

    Raises:
        UserError: The rate is not a valid fraction, or so small that it changes nothing; or there are too few
            evaluation rows.
    """
    check_rate(rate)
    rows = data.evaluation[:]
    classes = data.kind == "classification"
    groups = [data.label_names[label] if classes else "any" for label in rows["label"]]
    single = next((label for label, count in Counter(groups).items() if count == 1), None)
    if single is not None:
        raise UserError(
            f"{data.name}, evaluation: only one row has label {single!r}, it cannot choose the epoch and judge; give "
            "more evaluation rows, or leave out --noisy-selection"
        )
    judged, chosen = split_rows(f"{data.name}, evaluation", groups, 0.5, said(rows), option="--noisy-selection")
    selection = data.evaluation.select(chosen)
    if rate:
        selection = _with_wrong_labels(data, selection, "selection", rate, [seed % 2**32, _SELECTION_STREAM])
    halves = replace(data, evaluation=data.evaluation.select(judged), selection=selection)
    return replace(halves, metric=data.metric + SELECTED, also=(data.metric, *data.also)).with_train(data.train)


def _with_wrong_labels(data: TextData, split: Dataset, what: str, rate: float, seed: list[int]) -> Dataset:
    labels = np.asarray(split[:]["label"])
    # RandomState: its stream is stable across numpy versions, that of Generator is not.
    random = np.random.RandomState(seed)
    rows = random.permutation(len(labels))[: round(rate * len(labels))]
    least = 1 if data.kind == "classification" else 2
    if len(rows) < least:
        raise UserError(
            f"{data.name}: --label-noise {rate:g} of {len(labels)} {what} rows changes {len(rows)}; "
            f"give {least / len(labels):.2g} or more, or 0"
        )
    noisy = labels.copy()
    if data.kind == "classification":
        shift = random.randint(1, len(data.label_names), size=len(labels))  # for every row: equal at every rate
        noisy[rows] = (labels[rows] + shift[rows]) % len(data.label_names)
    else:
        noisy[rows] = labels[np.roll(rows, 1)]  # the rows stand in random order
    columns = {**split[:], "label": noisy.tolist(), CLEAN_LABEL: labels.tolist()}
    features = Features({**split.features, CLEAN_LABEL: split.features["label"]})
    return Dataset.from_dict(columns, features)


def check_rate(rate: float) -> None:
    """Check that a rate is a valid fraction of wrong labels.

    Raises:
        UserError: It is not.
    """
    if not 0 <= rate < 1:
        raise UserError(f"--label-noise {rate:g}: give a share of the training labels, from 0 to below 1")
