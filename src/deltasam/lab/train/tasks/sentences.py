"""Sentence embeddings, trained on raw sentences and evaluated with human similarity scores."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from deltasam.core.closure import Output
from deltasam.errors import UserError
from deltasam.lab.data.sentences import SentenceData
from deltasam.lab.train import distributed as processes
from deltasam.lab.train.batches import Feed, check_length, outputs_of, shuffled
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.models import load_encoder
from deltasam.lab.train.tasks.contrastive import contrastive_loss, embed, mask_span
from deltasam.lab.train.tasks.similarity import similarity_metrics
from deltasam.lab.train.tasks.task import Task, make_task, refuse_options


class SentenceTask(Task):
    """A pretrained encoder that learns to recognise a sentence among the others of its batch.

    A sentence's two views differ in dropout and in a span that is masked in one of them. The model is called once for
    each view, so that a sentence is one row of both calls: for a per-example method the example is the sentence, and
    both its views use its own copy of the weights. Negatives are the other sentences of the batch; where several
    processes share a batch, those of the same process. A single sentence has a loss of 0.
    """

    def __init__(self, data: SentenceData, config: TrainConfig, device: str) -> None:
        refuse_options(data.name, config, "train_layers", "label_smoothing", "last_layer_l2")
        self._data, self._config = data, config
        self._feed = Feed(device, keep=4)  # two views of a step, and of the next
        self.model, self.tokenizer = load_encoder(config)
        check_length(self.model, config.max_length)
        if data.contrast.masked_characters and self.tokenizer.mask_token is None:
            raise UserError(f"--model {config.model}: has no token for a mask; choose another, or mask 0 characters")
        self.model.to(device).train()
        pairs = data.evaluation.values()
        self._measured = list(dict.fromkeys(s for p in pairs for side in (p.first, p.second) for s in side))

    def __len__(self) -> int:
        return len(self._data.train)

    def output(self, rows: list[int]) -> Output:
        """One loss per sentence, and the logits of each view over the other views [rows, 2, 2 rows - 1]."""
        contrast = self._data.contrast
        sentences = [self._data.train[row] for row in rows]
        masked = [self._masked(sentence) for sentence in sentences]
        losses, logits = contrastive_loss(self.embeddings(sentences), self.embeddings(masked), contrast.temperature)
        return Output(losses, logits, logits.new_full(logits.shape[:-1], 1 / (2 * len(rows))))

    def prefetch(self, rows: list[int]) -> None:
        """Prepare the batch of the unmasked views; the masks of the others are drawn in their step."""
        sentences = [self._data.train[row] for row in rows]
        self._feed.prefetch(tuple(sentences), partial(self._tokens, sentences))

    def evaluate(self) -> dict[str, float]:
        """Rank correlations, and the training loss on the evaluation sentences without dropout or masking."""
        by_length = sorted(range(len(self._measured)), key=lambda i: len(self._measured[i]))
        found = outputs_of(
            self.model,
            lambda some: self.embeddings([self._measured[i] for i in some]),
            by_length,
            2 * self._config.batch_size,
        )
        embeddings = found[torch.tensor(by_length).argsort()]
        return processes.on_main(lambda: self._metrics(embeddings))

    def embeddings(self, sentences: list[str]) -> Tensor:
        """Embeddings [sentences, d], in the configuration's precision."""
        inputs = self._feed.batch(tuple(sentences), partial(self._tokens, sentences))
        return embed(self.model, inputs, self._data.contrast.pooling, self._config.precision)

    def _tokens(self, sentences: list[str]) -> dict[str, Tensor]:
        limits = {"truncation": True, "max_length": self._config.max_length}
        return dict(self.tokenizer(sentences, padding=True, return_tensors="pt", **limits))

    def _masked(self, sentence: str) -> str:
        length = self._data.contrast.masked_characters
        return mask_span(sentence, self.tokenizer.mask_token, length) if length else sentence

    def _metrics(self, embeddings: Tensor) -> dict[str, float]:
        places = {sentence: place for place, sentence in enumerate(self._measured)}
        metrics = similarity_metrics(embeddings, places, self._data.evaluation)
        metrics["loss"] = self._mean_loss(embeddings)
        return metrics if torch.isfinite(embeddings).all() else dict.fromkeys(metrics, math.nan)

    def _mean_loss(self, embeddings: Tensor) -> float:
        """Mean loss in batches of the training size, in an order that separates the sentences of a pair."""
        order, size = shuffled(len(embeddings), 0, 0), self._config.batch_size
        batches = [embeddings[order[i : i + size]] for i in range(0, len(order), size)]
        losses = [contrastive_loss(batch, batch, self._data.contrast.temperature)[0] for batch in batches]
        return float(torch.cat(losses).mean())


make_task.register(SentenceData, SentenceTask)
