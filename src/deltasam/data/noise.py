"""Wrong labels, put into the training split on purpose and remembered: what is learned in spite of them?

Symmetric noise: rows are chosen without regard to their label, and each gets one of the *other* classes, all equally
likely; so the rate is the share of labels that are wrong. (Drawing from all classes, as some do, leaves 1/classes of
the chosen ones right.) Exactly ``round(rate * rows)`` rows are chosen, not each with a probability: seeds then differ
in which labels are wrong and not in how many, which would be noise in the comparison itself.

Scores are permuted among the chosen rows, so that their distribution stays as it is. Equal scores may meet.
"""

from __future__ import annotations

import numpy as np
from datasets import Dataset, Features

from deltasam.data.dataset import CLEAN_LABEL, TextData
from deltasam.errors import UserError

_STREAM = 1  # apart from the draw of the training rows, which has the same seed


def add_label_noise(data: TextData, rate: float, seed: int) -> TextData:
    """Replace a share of the training labels by wrong ones; the evaluation splits stay.

    Args:
        data: What to change.
        rate: The share, from 0 (the data as it is) to below 1.
        seed: Equal seeds, equal noise. With one seed, what a lower rate changes a higher one changes too, for
            classes to the same labels.

    Returns:
        The data with a fingerprint of its own and with the labels as they were in the training column
        ``clean_label``.

    Raises:
        UserError: The rate is no share, or so small that it changes nothing.
    """
    check_rate(rate)
    if rate == 0:
        return data
    labels = np.asarray(data.train[:]["label"])
    # RandomState: its stream is frozen across numpy versions, that of Generator is not.
    random = np.random.RandomState([seed % 2**32, _STREAM])
    rows = random.permutation(len(labels))[: round(rate * len(labels))]
    least = 1 if data.kind == "classification" else 2
    if len(rows) < least:
        raise UserError(
            f"{data.name}: --label-noise {rate:g} of {len(labels)} training rows changes {len(rows)}; "
            f"give {least / len(labels):.2g} or more, or 0"
        )
    noisy = labels.copy()
    if data.kind == "classification":
        shift = random.randint(1, len(data.label_names), size=len(labels))  # for every row: equal at every rate
        noisy[rows] = (labels[rows] + shift[rows]) % len(data.label_names)
    else:
        noisy[rows] = labels[np.roll(rows, 1)]  # the rows stand in random order
    columns = {**data.train[:], "label": noisy.tolist(), CLEAN_LABEL: labels.tolist()}
    features = Features({**data.train.features, CLEAN_LABEL: data.train.features["label"]})
    return data.with_train(Dataset.from_dict(columns, features))


def check_rate(rate: float) -> None:
    """Check that a rate is a share of labels that can be wrong.

    Raises:
        UserError: It is not.
    """
    if not 0 <= rate < 1:
        raise UserError(f"--label-noise {rate:g}: give a share of the training labels, from 0 to below 1")
