"""What is diagnosed: a trained model on some rows of data."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deltasam.core.closure import Output
from deltasam.errors import UserError
from deltasam.lab.diagnose.labels import label_indices
from deltasam.lab.train.batches import Batches, check_length, outputs_of, shuffled
from deltasam.lab.train.models import load_trained_classifier
from deltasam.lab.train.tasks.objective import example_losses, logits_of

if TYPE_CHECKING:
    from datasets import Dataset

    from deltasam.lab.data.dataset import TextData

GIVEN_AS = "CHECKPOINT"
SPLITS = ("evaluation", "training")


@dataclass(frozen=True)
class Settings:
    """How a diagnosis is made.

    Attributes:
        split: Which rows are looked at: ``evaluation`` or ``training``.
        examples: How many of them, drawn with the seed; all where there are fewer.
        batch_size: Examples per pass.
        max_length: Tokens after which a text is cut.
        precision: ``fp32``, or ``bf16`` for autocast.
        device: What ``torch.device`` takes.
        rho: Radius of every perturbation.
        methods: Specs whose closeness and cost are measured; None: each diagnostic's own default.
        seed: Of the rows, random directions and dropout masks.
    """

    split: str = "evaluation"
    examples: int = 256
    batch_size: int = 16
    max_length: int = 128
    precision: str = "fp32"
    device: str = "cpu"
    rho: float = 0.02
    methods: tuple[str, ...] | None = None
    seed: int = 0


class Subject:
    """A checkpoint on some rows of a data set, in evaluation mode.

    Args:
        name: Of the checkpoint: a local folder, or a name on the hub.
        data: Whose rows are looked at.
        settings: Which of them, and how.

    Raises:
        UserError: There is no such model, it has no trained head, or its labels are not those of the data.

    Attributes:
        model: With its trained head, on its device.
        examples: How many rows are looked at.
    """

    def __init__(self, name: str, data: TextData, settings: Settings) -> None:
        self.name, self.data, self.settings = name, data, settings
        self.model, tokenizer = load_trained_classifier(name, GIVEN_AS)
        check_length(self.model, settings.max_length)
        indices = label_indices(f"{GIVEN_AS} {name}", self.model.config, data)
        self.model.to(settings.device).eval()
        self._split: Dataset = data.train if settings.split == "training" else data.evaluation
        self._batches = Batches(self._split, tokenizer, settings.max_length, settings.device)
        if indices is not None:
            self._batches.labels = torch.tensor(indices)[self._batches.labels]
        # A random order, so that the first so many are a sample too.
        self.rows = shuffled(len(self._batches), settings.seed, 0)[: settings.examples]
        self.examples = len(self.rows)

    def closures(self, share: float = 1.0, *, by_length: bool = True) -> list[Callable[[], Output]]:
        """One per batch; each runs one forward and returns one loss per example [n].

        Args:
            share: Of the examples: the first so many (``used``).
            by_length: Sorted by length, which needs the least padding; else in the order of ``rows``.
        """
        rows = self.rows[: self.used(share)]
        if by_length:
            rows = sorted(rows, key=self._places.__getitem__)
        size = self.settings.batch_size
        chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
        return [lambda chunk=chunk: self._output(chunk) for chunk in chunks]  # type: ignore[misc]

    def used(self, share: float) -> int:
        """How many examples a share of them is: no fewer than a batch, where there are so many."""
        return min(self.examples, max(self.settings.batch_size, round(share * self.examples)))

    @contextmanager
    def training(self) -> Iterator[None]:
        """Training mode, with dropout: as methods are used."""
        self.model.train()
        try:
            yield
        finally:
            self.model.eval()

    @cached_property
    def logits(self) -> Tensor:
        """The model's outputs [examples, outputs], in the order of ``rows``."""
        return self._outputs(self.rows)

    @property
    def labels(self) -> Tensor:
        """The classes, as the model counts them, or the scores [examples], in the order of ``rows``."""
        return self._batches.labels[self.rows]

    @cached_property
    def losses(self) -> Tensor:
        """One loss per example [examples], in the order of ``rows``."""
        return example_losses(self.logits, self.labels, self.data.kind)

    def metrics(self) -> dict[str, float]:
        """``accuracy`` and ``NLL`` (nats), or ``MSE`` where the data has scores, with the weights as they are now."""
        rows = sorted(self.rows, key=self._places.__getitem__)  # needs the least padding
        logits, labels = self._outputs(rows), self._batches.labels[rows]
        loss = float(example_losses(logits, labels, self.data.kind).double().mean())
        if self.data.kind == "regression":
            return {"MSE": loss}
        right = (logits.argmax(1) == labels).double().mean()
        return {"accuracy": float(right) if torch.isfinite(logits).all() else math.nan, "NLL": loss}

    def texts(self) -> list[dict[str, str]]:
        """Number in the source, text, label and prediction of each example, in the order of ``rows``."""
        split = self._split.select(self.rows)
        columns = [list(split[name]) for name in ("text", "text_pair") if name in split.column_names]
        joined = [" | ".join(parts) for parts in zip(*columns, strict=True)]
        named = zip(list(split["row"]), joined, self._named(self.labels), self._named(self._predicted()), strict=True)
        return [{"row": str(row), "text": t, "label": label, "prediction": p} for row, t, label, p in named]

    def weights_digest(self) -> str:
        """SHA-256 of the weights: equal models, equal digest."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _output(self, rows: Sequence[int]) -> Output:
        inputs, labels = self._batches.batch(list(rows))
        logits = self._logits(inputs)
        weights = logits.new_full((len(rows),), 1 / len(rows))
        return Output(example_losses(logits, labels, self.data.kind), logits, weights)

    def _outputs(self, rows: Sequence[int]) -> Tensor:
        size = 2 * self.settings.batch_size
        return outputs_of(self.model, lambda some: self._logits(self._batches.batch(some)[0]), rows, size)

    @cached_property
    def _places(self) -> dict[int, int]:
        """Where each row is when the shortest text comes first."""
        return {row: i for i, row in enumerate(self._batches.by_length())}

    def _logits(self, inputs: dict[str, Tensor]) -> Tensor:
        return logits_of(self.model, inputs, self.settings.precision)

    def _predicted(self) -> Tensor:
        return self.logits[:, 0] if self.data.kind == "regression" else self.logits.argmax(1)

    def _named(self, values: Tensor) -> list[str]:
        if self.data.kind == "regression":
            return [f"{value:.4g}" for value in values.tolist()]
        return [str(self.model.config.id2label[i]) for i in values.tolist()]


def load_subjects(names: Sequence[str], data: TextData, settings: Settings) -> list[Subject]:
    """All checkpoints on the same rows.

    Raises:
        UserError: As ``Subject``.
    """
    if settings.split not in SPLITS:
        raise UserError(f"--split {settings.split}: must be one of {', '.join(SPLITS)}")
    return [Subject(name, data, settings) for name in names]
