"""Text to padded batches, and the order in which examples are visited."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DataCollatorWithPadding

from deltasam.errors import UserError
from deltasam.lab.train.feed import Feed
from deltasam.lab.train.kept_states import ROWS, STATES, LowerLayers, padded

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LABELS = "labels of the rows"  # no model takes an input of that name


class Batches:
    """A split, tokenised once; any of its rows can be had as a batch padded to its longest text.

    A batch is made once for as long as no two others are asked for.
    """

    def __init__(self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, device: str) -> None:
        texts = [list(split[name]) for name in ("text", "text_pair") if name in split.column_names]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length)
        self.labels = torch.tensor(list(split["label"]))
        self._features = [{name: column[i] for name, column in encoded.items()} for i in range(len(self.labels))]
        self._collate = DataCollatorWithPadding(tokenizer)
        self._device, self._feed = device, Feed(device)
        self._states: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: list[int]) -> tuple[dict[str, Tensor], Tensor]:
        """The model's inputs [rows, longest] and the labels [rows] of some rows."""
        tensors = self._feed.batch(tuple(rows), partial(self._made, rows))
        return tensors, tensors.pop(_LABELS)

    def prefetch(self, rows: list[int]) -> None:
        """Make the batch of some rows while an accelerator computes."""
        self._feed.prefetch(tuple(rows), partial(self._made, rows))

    def keep_states(self, layers: LowerLayers) -> None:
        """Have the lower layers look at every row once; from now on batches have ``STATES`` [rows, longest, width]."""
        order = self.by_length()
        batches = (self.batch(order[i : i + ROWS])[0] for i in range(0, len(order), ROWS))
        digest = hashlib.sha256(repr(self._features).encode()).hexdigest()
        states = layers.states_of(list(batches), digest)
        self._states = [state for _, state in sorted(zip(order, states, strict=True), key=lambda pair: pair[0])]
        self._feed = Feed(self._device)  # batches without them are of no more use

    def by_length(self) -> list[int]:
        """All rows, the shortest text first: evaluated in this order they need the least padding."""
        return sorted(range(len(self)), key=lambda i: len(self._features[i]["input_ids"]))

    def _made(self, rows: list[int]) -> dict[str, Tensor]:
        made = {**self._collate([self._features[i] for i in rows]), _LABELS: self.labels[rows]}
        if self._states:
            made[STATES] = padded([self._states[i] for i in rows], made["attention_mask"])
        return made


def shuffled(size: int, seed: int, epoch: int) -> list[int]:
    """The order of one epoch: a function of seed and epoch alone, so a run can resume anywhere in it."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epoch):
        torch.randperm(size, generator=generator)
    return torch.randperm(size, generator=generator).tolist()


def check_length(model: PreTrainedModel, length: int, option: str = "--max-length") -> None:
    """Check that the model has a position for every token.

    Args:
        model: Whole, or the half that reads or writes so many.
        length: Tokens.
        option: What they are set by.

    Raises:
        UserError: It is more than the model can read.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and 0 <= positions < length:  # -1, as XLNet has it, is no limit
        raise UserError(f"{option} {length}: the model reads at most {positions} tokens; give that or less")
