"""Summarization with a sequence-to-sequence model, evaluated by ROUGE."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from deltasam.core.closure import Output
from deltasam.lab.data.summarization import SummaryData
from deltasam.lab.train import distributed as processes
from deltasam.lab.train.batches import check_length
from deltasam.lab.train.config import SummaryOptions, TrainConfig
from deltasam.lab.train.models import quiet_transformers
from deltasam.lab.train.tasks.objective import NO_TOKEN, logits_of, token_losses
from deltasam.lab.train.tasks.rouge import KINDS, rouge
from deltasam.lab.train.tasks.seq2seq import load_seq2seq
from deltasam.lab.train.tasks.summary_batches import SummaryBatches
from deltasam.lab.train.tasks.task import Task, make_task, refuse_options


class SummaryTask(Task):
    """A pretrained model that learns to summarize documents."""

    def __init__(self, data: SummaryData, config: TrainConfig, device: str) -> None:
        refuse_options(data.name, config, "train_layers", "label_smoothing", "last_layer_l2")
        self._config, self._options, self._references = config, config.summaries, list(data.evaluation["summary"])
        self.model, self.tokenizer = load_seq2seq(config)
        check_length(self.model.get_encoder(), config.max_length)
        check_length(self.model.get_decoder(), self._options.max_target_length, "--max-target-length")
        check_length(self.model.get_decoder(), self._options.max_new_tokens, "--max-new-tokens")
        self.model.to(device).train()
        rest = (self.model, self.tokenizer, config, device)
        self.train_batches, self.evaluation_batches = (SummaryBatches(s, *rest) for s in (data.train, data.evaluation))

    def __len__(self) -> int:
        return len(self.train_batches)

    def output(self, rows: list[int]) -> Output:
        """Logits [rows, tokens, vocabulary], and one loss per row whose mean is the mean over all tokens."""
        inputs, labels = self.train_batches.batch(rows)
        logits = self._logits(inputs)
        losses = token_losses(logits, labels, self._options.label_smoothing_factor)
        counted = labels != NO_TOKEN
        weights = counted / counted.sum()
        return Output(len(rows) * (losses * weights).sum(1), logits, weights)

    def prefetch(self, rows: list[int]) -> None:
        """Prepare the batch of these rows."""
        self.train_batches.prefetch(rows)

    def evaluate(self) -> dict[str, float]:
        """``loss``, in nats per token of the reference summaries, and each kind of ROUGE of the generated ones."""
        training, rows, size = self.model.training, self.evaluation_batches.by_length(), 2 * self._config.batch_size
        chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
        self.model.eval()
        try:
            with torch.no_grad():
                mine = [self._measure(chunk) for chunk in chunks[processes.rank() :: processes.count()]]
        finally:
            self.model.train(training)
        measured = [part for theirs in processes.gather(mine) for part in theirs]
        return processes.on_main(lambda: self._metrics(measured))

    def _measure(self, rows: list[int]) -> tuple[dict[int, str], float, int]:
        """The summary generated for each row, and the loss and number of tokens of the reference summaries."""
        inputs, labels = self.evaluation_batches.batch(rows)
        loss = float(token_losses(self._logits(inputs), labels).double().sum())
        written = self._write(rows) if math.isfinite(loss) else [""] * len(rows)
        return dict(zip(rows, written, strict=True)), loss, int((labels != NO_TOKEN).sum())

    def _metrics(self, measured: list[tuple[dict[int, str], float, int]]) -> dict[str, float]:
        texts, losses, tokens = zip(*measured, strict=True)
        loss = math.fsum(losses) / sum(tokens)
        if not math.isfinite(loss):
            return dict.fromkeys(("loss", *KINDS), math.nan)
        written = {row: text for part in texts for row, text in part.items()}
        return {"loss": loss, **rouge([written[i] for i in range(len(written))], self._references)}

    def _write(self, rows: list[int]) -> list[str]:
        documents = self.evaluation_batches.documents(rows)
        autocast = torch.autocast(self.model.device.type, torch.bfloat16, enabled=self._config.precision == "bf16")
        with autocast, quiet_transformers():  # it would warn that settings of the model are overridden
            tokens = self.model.generate(**documents, **generation(self._options))
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True)

    def _logits(self, inputs: dict[str, Tensor]) -> Tensor:
        return logits_of(self.model, inputs, self._config.precision, use_cache=False)


def generation(options: SummaryOptions) -> dict[str, Any]:
    """The arguments of ``generate``: no sampling, and no length from the model's own settings."""
    search: dict[str, Any] = {"num_beams": options.num_beams, "do_sample": False}
    if options.num_beams > 1:
        search |= {"length_penalty": options.length_penalty, "early_stopping": True}
    return {
        **search,
        "max_new_tokens": options.max_new_tokens,
        "min_new_tokens": options.min_new_tokens,
        "no_repeat_ngram_size": options.no_repeat_ngram_size,
    }


make_task.register(SummaryData, SummaryTask)
