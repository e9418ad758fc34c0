"""Classification of texts, and regression on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn

from deltasam.core.closure import Output
from deltasam.errors import UserError
from deltasam.lab.data.dataset import TextData
from deltasam.lab.train.batches import Batches, check_length
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.kept_states import STATES, LowerLayers
from deltasam.lab.train.majority_class import one_class_of
from deltasam.lab.train.metrics import evaluate_all
from deltasam.lab.train.models import load_classifier
from deltasam.lab.train.tasks.objective import example_losses, logits_of
from deltasam.lab.train.tasks.task import Task, make_task, refuse_options


class TextTask(Task):
    """A pretrained encoder with a fresh head."""

    def __init__(self, data: TextData, config: TrainConfig, device: str) -> None:
        if data.kind == "regression":
            refuse_options(data.name, config, "label_smoothing")
        self._kind, self._config, self.classes = data.kind, config, data.label_names
        self.one_class = one_class_of(data)
        self.model, self.tokenizer = load_classifier(config, data)
        check_length(self.model, config.max_length)
        self.model.to(device).train()
        split = (self.tokenizer, config.max_length, device)
        self.train_batches = Batches(data.train, *split)
        self.evaluation_batches = {name: Batches(rows, *split) for name, rows in data.splits.items()}
        self._last_layer = LastLayer(self.model) if config.last_layer_l2 else None
        self._lower: LowerLayers | None = None
        if config.train_layers:
            example, _ = self.train_batches.batch(list(range(min(2, len(self.train_batches)))))
            self._lower = LowerLayers(self.model, config.train_layers, self.logits, example)

    def __len__(self) -> int:
        return len(self.train_batches)

    def prepare(self) -> None:
        """Run the lower layers on every row, where they run once."""
        if self._lower is not None:
            for batches in (self.train_batches, *self.evaluation_batches.values()):
                batches.keep_states(self._lower)

    def output(self, rows: list[int]) -> Output:
        """Logits [rows, outputs] and one loss per row."""
        inputs, labels = self.train_batches.batch(rows)
        logits = self.logits(inputs)
        weights = logits.new_full((len(rows),), 1 / len(rows))
        losses = example_losses(logits, labels, self._kind, self._config.label_smoothing)
        if self._last_layer is not None:
            losses = losses + self._config.last_layer_l2 * self._last_layer.squares()
        return Output(losses, logits, weights)

    def prefetch(self, rows: list[int]) -> None:
        """Prepare the batch of these rows."""
        self.train_batches.prefetch(rows)

    def predictions(self, output: Output) -> Tensor | None:
        """Classes, or scores."""
        if output.logits is None:
            return None
        return output.logits[:, 0] if self._kind == "regression" else output.logits.argmax(1)

    def evaluate(self) -> dict[str, float]:
        """Loss, and the metrics for classes or for scores."""
        size = 2 * self._config.batch_size
        return evaluate_all(self.model, self.logits, self.evaluation_batches, size, self._kind)

    @contextmanager
    def all_layers(self) -> Iterator[None]:
        """Context in which cached hidden states are not used."""
        lower, self._lower = self._lower, None
        try:
            yield
        finally:
            self._lower = lower

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """Logits [rows, outputs] of a batch, in the configuration's precision."""
        states = inputs.pop(STATES, None)
        with nullcontext() if self._lower is None or states is None else self._lower.giving(states):
            return logits_of(self.model, inputs, self._config.precision)


class LastLayer:
    """The last linear layer that a model calls, and its inputs in the last call."""

    def __init__(self, model: nn.Module) -> None:
        self._input: Tensor | None = None
        self._layer: nn.Linear | None = None
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(self._note)

    def _note(self, layer: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        self._layer, self._input = layer, inputs[0]

    def squares(self) -> Tensor:
        """``|V|^2 + |z_i|^2`` [rows] in the last forward pass, V the weights and z_i the inputs of a row.

        Raises:
            UserError: The model has no such layer.
        """
        if self._layer is None or self._input is None:
            raise UserError("--last-layer-l2: this model ends in no linear layer; leave the option out")
        return self._layer.weight.square().sum() + self._input.float().flatten(1).square().sum(1)


make_task.register(TextData, TextTask)
