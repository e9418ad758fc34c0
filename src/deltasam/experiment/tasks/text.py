"""Classification of texts, and regression on them."""

from __future__ import annotations

from torch import Tensor

from deltasam.data.dataset import TextData
from deltasam.experiment.batches import Batches, check_length
from deltasam.experiment.config import TrainConfig
from deltasam.experiment.metrics import evaluate_all
from deltasam.experiment.model import load_classifier
from deltasam.experiment.objective import example_losses, logits_of
from deltasam.experiment.one_class import one_class_of
from deltasam.experiment.tasks.task import Task
from deltasam.outputs import Output


class TextTask(Task):
    """A pretrained encoder with a fresh head."""

    def __init__(self, data: TextData, config: TrainConfig, device: str) -> None:
        self._kind, self._config, self.classes = data.kind, config, data.label_names
        self.one_class = one_class_of(data)
        self.model, self.tokenizer = load_classifier(config, data)
        check_length(self.model, config.max_length)
        self.model.to(device).train()
        split = (self.tokenizer, config.max_length, device)
        self.train_batches = Batches(data.train, *split)
        splits = {"": data.evaluation, **data.further}
        self.evaluation_batches = {name: Batches(rows, *split) for name, rows in splits.items()}

    def __len__(self) -> int:
        return len(self.train_batches)

    def output(self, rows: list[int]) -> Output:
        """Logits [rows, outputs] and one loss per row."""
        inputs, labels = self.train_batches.batch(rows)
        logits = self.logits(inputs)
        weights = logits.new_full((len(rows),), 1 / len(rows))
        return Output(example_losses(logits, labels, self._kind), logits, weights)

    def prefetch(self, rows: list[int]) -> None:
        """Make the batch of these rows."""
        self.train_batches.prefetch(rows)

    def predictions(self, output: Output) -> Tensor | None:
        """Classes, or scores."""
        if output.logits is None:
            return None
        return output.logits[:, 0] if self._kind == "regression" else output.logits.argmax(1)

    def evaluate(self) -> dict[str, float]:
        """Loss, and what there is for classes or for scores."""
        size = 2 * self._config.batch_size
        return evaluate_all(self.model, self.logits, self.evaluation_batches, size, self._kind)

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """Logits [rows, outputs] of a batch, in the configuration's precision."""
        return logits_of(self.model, inputs, self._config.precision)
