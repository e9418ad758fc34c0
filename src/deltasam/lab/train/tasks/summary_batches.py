"""Padded batches of documents and their summaries."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import DataCollatorForSeq2Seq

from deltasam.lab.train.batches import Feed
from deltasam.lab.train.config import TrainConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class SummaryBatches:
    """A split, tokenised once; any rows form a batch padded to the longest texts.

    A batch is cached until two others have been requested.

    Args:
        split: The split, with columns ``text`` and ``summary``.
        model: The model, which defines the first token of a summary.
        tokenizer: The model's tokenizer.
        config: The configuration, with the maximum lengths of documents and summaries.
        device: Device of the batches.
    """

    def __init__(
        self,
        split: Dataset,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: TrainConfig,
        device: str,
    ) -> None:
        cut = {"truncation": True, "return_token_type_ids": False}
        documents = tokenizer(list(split["text"]), max_length=config.max_length, **cut)
        longest = config.summaries.max_target_length
        targets = tokenizer(text_target=list(split["summary"]), max_length=longest, **cut)["input_ids"]
        start = model.config.decoder_start_token_id
        self._features = [
            # The decoder is given the first token, so there is nothing to predict.
            {"input_ids": ids, "attention_mask": mask, "labels": target[target[0] == start :]}
            for ids, mask, target in zip(documents["input_ids"], documents["attention_mask"], targets, strict=True)
        ]
        self._collate = DataCollatorForSeq2Seq(tokenizer, model=model)
        self._feed = Feed(device)

    def __len__(self) -> int:
        return len(self._features)

    def batch(self, rows: list[int]) -> tuple[dict[str, Tensor], Tensor]:
        """The model's inputs for some rows, and the tokens to predict [rows, longest], -100 where there is none."""
        tensors = self._feed.batch(tuple(rows), partial(self._made, rows))
        return tensors, tensors.pop("labels")

    def prefetch(self, rows: list[int]) -> None:
        """Prepare the batch of some rows while an accelerator computes."""
        self._feed.prefetch(tuple(rows), partial(self._made, rows))

    def documents(self, rows: list[int]) -> dict[str, Tensor]:
        """The encoder's inputs for some rows."""
        inputs, _ = self.batch(rows)
        return {name: inputs[name] for name in _READ}

    def by_length(self) -> list[int]:
        """All rows, the shortest document first: this order needs the least padding in evaluation."""
        return sorted(range(len(self)), key=lambda i: len(self._features[i]["input_ids"]))

    def _made(self, rows: list[int]) -> dict[str, Tensor]:
        inputs = self._collate([self._features[i] for i in rows])
        return {name: inputs[name] for name in (*_READ, "decoder_input_ids", "labels")}


_READ = ("input_ids", "attention_mask")
