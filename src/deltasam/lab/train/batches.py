"""Text to padded batches, and the order in which examples are visited."""

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


class Feed:
    """The last few batches, on their device: the passes of a step ask for the same one again and again.

    To a GPU they are copied from pinned memory, so that nobody waits for it; and one can be made while it computes.

    Args:
        device: Of the batches.
        keep: How many are kept: those of a step, and of the next.
    """

    def __init__(self, device: str, keep: int = 2) -> None:
        self._device, self._keep = torch.device(device), keep
        self._batches: OrderedDict[Hashable, dict[str, Tensor]] = OrderedDict()

    def batch(self, key: Hashable, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """A batch on the device.

        Args:
            key: What it consists of.
            make: Makes it on the CPU, if it is not there.
        """
        if key not in self._batches:
            # Whoever watches the functions of a pass would find that only the first has these.
            with unseen():
                self._batches[key] = {name: self._there(tensor) for name, tensor in make().items()}
            if len(self._batches) > self._keep:
                self._batches.popitem(last=False)
        return dict(self._batches[key])

    def prefetch(self, key: Hashable, make: Callable[[], Mapping[str, Tensor]]) -> None:
        """Make a batch before it is asked for, where something computes meanwhile."""
        if self._device.type == "cuda":
            self.batch(key, make)

    def _there(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)


def outputs_of(
    model: nn.Module, forward: Callable[[list[int]], Tensor], rows: Sequence[int], batch_size: int
) -> Tensor:
    """The outputs of a model for some rows [rows, ...], in their order, dropout off.

    Several processes share the batches, which are those of one, so that the outputs are too.

    Args:
        model: Left in the mode, training or evaluation, in which it came.
        forward: From some rows to the model's outputs [rows, ...].
        rows: Best sorted by length, so that batches need little padding.
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
