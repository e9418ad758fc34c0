"""Padded batches of texts, and the order in which examples are visited."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import DataCollatorWithPadding

from deltasam.core.torch_internals.modes import unseen
from deltasam.errors import UserError
from deltasam.lab.train import distributed as processes
from deltasam.lab.train.kept_states import ROWS, STATES, LowerLayers, padded

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LABELS = "labels of the rows"  # no model takes an input of that name


class Batches:
    """A split, tokenised once; any rows form a batch padded to the longest text.

    A batch is cached until two others have been requested.
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
        """Prepare the batch of some rows while an accelerator computes."""
        self._feed.prefetch(tuple(rows), partial(self._made, rows))

    def keep_states(self, layers: LowerLayers) -> None:
        """Run the lower layers on every row once; from now on batches contain ``STATES`` [rows, longest, width]."""
        order = self.by_length()
        batches = (self.batch(order[i : i + ROWS])[0] for i in range(0, len(order), ROWS))
        digest = hashlib.sha256(repr(self._features).encode()).hexdigest()
        states = layers.states_of(list(batches), digest)
        self._states = [state for _, state in sorted(zip(order, states, strict=True), key=lambda pair: pair[0])]
        self._feed = Feed(self._device)  # batches without them are of no more use

    def by_length(self) -> list[int]:
        """All rows, the shortest text first: this order needs the least padding in evaluation."""
        return sorted(range(len(self)), key=lambda i: len(self._features[i]["input_ids"]))

    def _made(self, rows: list[int]) -> dict[str, Tensor]:
        made = {**self._collate([self._features[i] for i in rows]), _LABELS: self.labels[rows]}
        if self._states:
            made[STATES] = padded([self._states[i] for i in rows], made["attention_mask"])
        return made


def shuffled(size: int, seed: int, epoch: int) -> list[int]:
    """The order of one epoch: a function of seed and epoch only, so a run can resume at any point."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epoch):
        torch.randperm(size, generator=generator)
    return torch.randperm(size, generator=generator).tolist()


def check_length(model: PreTrainedModel, length: int, option: str = "--max-length") -> None:
    """Check that the model has a position for every token.

    Args:
        model: The model, or its encoder or decoder.
        length: Number of tokens.
        option: The option that sets the length, for the message.

    Raises:
        UserError: The length is more than the model supports.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and 0 <= positions < length:  # XLNet has -1, for no limit
        raise UserError(f"{option} {length}: the model reads at most {positions} tokens; give that or less")


class Feed:
    """Cache of the last few batches on their device: all passes of a step request the same ones.

    They are copied to a GPU asynchronously from pinned memory; and the next can be prepared while it computes.

    Args:
        device: Device of the batches.
        keep: Number of cached batches: those of a step, and of the next.
    """

    def __init__(self, device: str, keep: int = 2) -> None:
        self._device, self._keep = torch.device(device), keep
        self._batches: OrderedDict[Hashable, dict[str, Tensor]] = OrderedDict()

    def batch(self, key: Hashable, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """A batch on the device.

        Args:
            key: Identifies the contents of the batch.
            make: Creates the batch on the CPU, if it is not cached.
        """
        if key not in self._batches:
            # Not visible to function modes that trace a pass: only the first pass would contain the copies.
            with unseen():
                self._batches[key] = {name: self._there(tensor) for name, tensor in make().items()}
            if len(self._batches) > self._keep:
                self._batches.popitem(last=False)
        return dict(self._batches[key])

    def prefetch(self, key: Hashable, make: Callable[[], Mapping[str, Tensor]]) -> None:
        """Prepare a batch in advance, on devices that compute asynchronously."""
        if self._device.type == "cuda":
            self.batch(key, make)

    def _there(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)


def outputs_of(
    model: nn.Module, forward: Callable[[list[int]], Tensor], rows: Sequence[int], batch_size: int
) -> Tensor:
    """The outputs of a model for some rows [rows, ...], in their order, without dropout.

    Several processes share the batches, which are the same as in one process, so that the outputs are too.

    Args:
        model: The model; it is left in the mode, training or evaluation, it was in.
        forward: Maps some rows to the model's outputs [rows, ...].
        rows: The rows, preferably sorted by length, so that batches need little padding.
        batch_size: Rows per forward pass.
    """
    training = model.training
    chunks = [list(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
    model.eval()
    try:
        with torch.no_grad():
            mine = [forward(chunk).cpu() for chunk in chunks[processes.rank() :: processes.count()]]
    finally:
        model.train(training)
    theirs = processes.gather(mine)
    return torch.cat([theirs[i % len(theirs)][i // len(theirs)] for i in range(len(chunks))])
