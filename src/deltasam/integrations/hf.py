"""Hugging Face ``Trainer`` with any method, by changing the import.

    from deltasam.integrations.hf import Trainer, TrainingArguments

    trainer = Trainer(model, TrainingArguments("out", method="per_instance_sam:rho=0.005"), train_dataset=data)
    trainer.train()

The trainer's own ``training_step`` is the closure: how it computes, normalises and scales the loss does not change.
"""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltasam.core.torch_internals.trees import tree_map
from deltasam.integrations.missing import missing

try:
    import transformers
except ModuleNotFoundError as error:
    raise missing("hf", error) from error

from deltasam.core.passes import in_later_pass
from deltasam.core.tensor_files import DamagedError, read_tensors, write_tensors
from deltasam.integrations.accelerate import AccelerateRuntime
from deltasam.integrations.trained_parameters import refuse_other_parameters
from deltasam.integrations.trainer_losses import TrainerOutput, example_losses
from deltasam.method import Method, Step
from deltasam.per_example.packed import packed_error, refuse_packed
from deltasam.spec import full_spec, make_method

__all__ = [
    "MethodArguments",
    "MethodTrainerMixin",
    "Seq2SeqTrainer",
    "Seq2SeqTrainingArguments",
    "Trainer",
    "TrainingArguments",
]

STATE = "method.pt"
"""File name of the method's state in a checkpoint."""


@dataclass
class MethodArguments:
    """The additional field of a trainer's arguments: saved, logged and searched like any other."""

    method: str = field(
        default="sam",
        metadata={"help": "How .grad is filled, as name:key=value@schedule=value, for example sam:rho=0.05@every=2."},
    )


@dataclass
class TrainingArguments(MethodArguments, transformers.TrainingArguments):
    """``transformers.TrainingArguments`` with ``method``."""


@dataclass
class Seq2SeqTrainingArguments(MethodArguments, transformers.Seq2SeqTrainingArguments):
    """``transformers.Seq2SeqTrainingArguments`` with ``method``."""


class MethodTrainerMixin:
    """Trains with a method, as a mixin of a ``transformers.Trainer``: ``class T(MethodTrainerMixin, MyTrainer)``.

    A scalar loss is enough for most methods. A method that needs one loss per example gets it from logits and labels,
    checked against the trainer's loss; for your own loss override ``example_losses``.

    Attributes:
        counts: Names of attributes in which the trainer's ``compute_loss`` accumulates what it logs. They are restored
            after a later pass, so that logs describe the unperturbed weights. Code that counts anything else can check
            ``deltasam.in_later_pass()``.
        rows_are_examples: Whether the model is called with one row per example, which per-example methods must know.
            None: yes, except for the trainers of TRL and Sentence Transformers, whose batches hold pairs or several
            columns.

    Args:
        *args: Arguments of the trainer.
        method: A spec, or a method created for exactly this model; None: ``args.method``.
        **kwargs: Keyword arguments of the trainer.

    Raises:
        ValueError: There is no method, or it belongs to another model.
        NotImplementedError: The trainer generates its batches in the training step, so passes would differ.
    """

    counts: ClassVar[tuple[str, ...]] = ("_metrics", "_total_train_tokens", "accum_loss_components")  # TRL, ST
    rows_are_examples: ClassVar[bool | None] = None

    # Attributes of the trainer.
    args: Any
    model: Any
    data_collator: Any
    model_init: Any
    optimizer: Any
    accelerator: Any
    current_gradient_accumulation_steps: int
    _prepare_inputs: Callable[[Any], Any]

    # State of the current optimizer step: micro-batches that wait for the last one, and the steps already done.
    _waiting: list[Callable[[], TrainerOutput]]
    _steps: list[Step]
    # Metrics since the last log, one value per optimizer step.
    _noted: dict[str, list[Tensor]]
    _runtime: AccelerateRuntime | None

    def __init__(self, *args: object, method: str | Method | None = None, **kwargs: object) -> None:
        self._refuse_generating()
        super().__init__(*args, **kwargs)
        self._ready = method if isinstance(method, Method) else None
        spec = method.spec if isinstance(method, Method) else method or getattr(self.args, "method", None)
        if spec is None:
            raise ValueError(
                f"{type(self).__name__} needs a method: Trainer(..., method='sam:rho=0.05'), or "
                f"deltasam.integrations.hf.TrainingArguments(..., method='sam:rho=0.05')"
            )
        if self._ready is None:
            full_spec(spec)  # refuses a wrong one now, not when training starts
        self._check_ready()
        self._refuse_several_devices_in_one_process()
        AccelerateRuntime(self.accelerator)  # refuses what cannot work now, not when training starts
        self.args.method = spec
        self.method: Method | None = None
        self._begin()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning-rate scheduler; also creates the method, for the model and optimizer of this training run.

        Raises:
            ValueError: The optimizer trains parameters that the method's model does not hold; or the method works on
                single examples, and a row of the batch is not one.
        """
        scheduler = super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        self._check_ready()
        self.method = self._ready or make_method(self.args.method, self.trained_module())
        optimizer = optimizer or self.optimizer
        refuse_other_parameters(optimizer, [self.method.model], self._named_parameters())
        if self.method.per_example:
            self._refuse_unknown_rows()
            self._refuse_flattening()
        self.method.follow(optimizer, total_steps=num_training_steps)
        self._begin()
        return scheduler

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the trainer does; at the end the method says what should be known of it."""
        output = super().train(*args, **kwargs)  # type: ignore[misc]
        if self.method is not None:
            self.method.training_ended()
        return output

    def trained_module(self) -> nn.Module:
        """The module whose parameters the method perturbs: it must hold all that the optimizer trains."""
        model: nn.Module = self.model
        return model

    def training_step(self, model: nn.Module, inputs: object, num_items_in_batch: object = None) -> Tensor:
        """Fill ``.grad`` with the method; micro-batches that share a perturbation are all run at the last of them."""
        method = self.method
        if method is None:
            raise RuntimeError("training_step() was called before the optimizer and its scheduler were created")
        self._waiting.append(self._closure(model, inputs, num_items_in_batch))
        last = self.accelerator.sync_gradients
        if method.needs_all_micro_batches and not last:
            return torch.zeros((), device=self.args.device)
        closures, self._waiting = self._waiting, []
        self._runtime = self._runtime or AccelerateRuntime(self.accelerator, model=method.model)
        step = method.backward(closures, runtime=self._runtime)
        self._steps.append(step)
        if last:
            self._note(Step.together(self._steps))
            self._steps = []
        return step.loss

    def example_losses(self, output: object, labels: Tensor | None, loss: Tensor, num_items_in_batch: object) -> Tensor:
        """One loss per example [n], with the trainer's loss [] as their mean.

        Few methods need it (``delta_sam:weights=slopes``). Override it for your own loss.

        Args:
            output: The model's output.
            labels: Labels of the batch; None if there are none.
            loss: The loss [] as passed to the backward.
            num_items_in_batch: The trainer's count of tokens or examples in the whole step.
        """
        smoother = getattr(self, "label_smoother", None)
        return example_losses(
            output,
            labels,
            loss,
            items=num_items_in_batch,
            smoothing=smoother.epsilon if smoother is not None else 0.0,
            scales=self.loss_scales(),
        )

    def loss_scales(self) -> list[float]:
        """Factors the trainer may have applied to a loss: the processes, and one over the accumulated micro-batches."""
        steps = (1.0, float(self.current_gradient_accumulation_steps))
        return [scale / count for scale in (1.0, float(self.accelerator.num_processes)) for count in steps]

    def log(self, logs: dict[str, float], *args: object, **kwargs: object) -> None:
        """Add the metrics of the method's steps since the last log, each averaged over the steps that reported it."""
        if "loss" in logs:
            for name, values in self._noted.items():
                logs[name] = self.accelerator.reduce(torch.stack(values).mean(), reduction="mean").item()
            self._noted.clear()
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _begin(self) -> None:
        self._waiting, self._steps, self._noted, self._runtime = [], [], defaultdict(list), None

    def _check_ready(self) -> None:
        if self._ready is not None and (self.model_init is not None or self._ready.model is not self.model):
            raise ValueError(
                "the method was made for another model than the one being trained (model_init and adapters create "
                f"new ones); give its spec instead: method={self._ready.spec!r}"
            )

    def _refuse_generating(self) -> None:
        """Refuse a trainer that generates batches in the training step: the second pass would generate others."""
        for cls in _classes_of(self, "trl"):
            step = vars(cls).get("training_step")
            looks = step is not None and "inputs" in inspect.signature(step).parameters  # not merely forwarded
            if looks or "_prepare_inputs" in vars(cls):
                raise NotImplementedError(
                    f"{cls.__name__} generates texts in the training step, so a second pass would not be on the same "
                    f"batch; put MethodTrainerMixin in front of trainers that learn from a fixed data set only "
                    f"(deltasam.integrations.trl has SFTTrainer, DPOTrainer and RewardTrainer)"
                )

    def _refuse_several_devices_in_one_process(self) -> None:
        if self.args.n_gpu > 1 and not getattr(self, "is_model_parallel", False):
            raise NotImplementedError(
                f"the trainer would put the model into nn.DataParallel for {self.args.n_gpu} devices, whose copies "
                f"draw dropout masks that no later pass can repeat; start one process for each device (torchrun "
                f"--nproc-per-node={self.args.n_gpu}), or show it one device (CUDA_VISIBLE_DEVICES=0)"
            )

    def _refuse_unknown_rows(self) -> None:
        for cls in _classes_of(self, "trl", "sentence_transformers"):
            if self.rows_are_examples is None:
                ready = f"deltasam.integrations.{cls.__module__.partition('.')[0]}"
                raise ValueError(
                    f"{self.args.method} works on single examples, but a row in the batches of {cls.__name__} need not "
                    f"be one (an example may be a pair of rows, or several texts); use a trainer of {ready}, which "
                    f"knows its rows, or a method with one perturbation per batch (sam, asam). If each row that the "
                    f"model is called with is an example, set rows_are_examples = True in your class"
                )
        if self.rows_are_examples is False:
            raise ValueError(
                f"{self.args.method} works on single examples, but {type(self).__name__}.rows_are_examples is False; "
                f"use a method with one perturbation per batch (sam, asam)"
            )

    def _refuse_flattening(self) -> None:
        """Refuse a flattening collator: without position ids the batch itself does not reveal it."""
        flattening: Any = getattr(transformers, "DataCollatorWithFlattening", ())
        if isinstance(self.data_collator, flattening):
            raise packed_error(self.args.method, f"the data collator is {type(self.data_collator).__name__}")

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters of all modules among the trainer's attributes, such as a loss."""
        for name, value in vars(self).items():
            modules = value if isinstance(value, Mapping) else {"": value}
            for key, module in modules.items():
                if isinstance(module, nn.Module):
                    prefix = ".".join(filter(None, (name, str(key))))
                    yield from ((f"{prefix}.{n}", p) for n, p in module.named_parameters())

    @contextmanager
    def _counted_once(self) -> Iterator[None]:
        """Restore the attributes in ``counts`` on exit if this is a later pass."""
        names = [name for name in self.counts if hasattr(self, name)] if in_later_pass() else []
        before = {name: tree_map(_counted, getattr(self, name)) for name in names}
        try:
            yield
        finally:
            vars(self).update(before)

    def _closure(self, model: nn.Module, inputs: object, items: object) -> Callable[[], TrainerOutput]:
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels") if hasattr(inputs, "get") else None
        if self.method is not None and self.method.per_example:
            refuse_packed(inputs, self.args.method)
        plain_step = super().training_step  # type: ignore[misc]

        def closure() -> TrainerOutput:
            losses: list[Tensor] = []
            outputs: list[Any] = []
            hook = model.register_forward_hook(lambda *call: outputs.append(call[-1]))
            # Replaces the backward, to capture the loss that would be passed to it.
            self.accelerator.backward = lambda loss, **_: losses.append(loss)
            try:
                with self._counted_once():
                    plain_step(model, copy.copy(inputs), items)  # copied: compute_loss may take labels out
            finally:
                del self.accelerator.backward
                hook.remove()
            return TrainerOutput(losses[0], lambda: losses_of_rows(losses[0], outputs))

        def losses_of_rows(loss: Tensor, outputs: list[Any]) -> Tensor:
            self._refuse_flattening()
            refuse_packed(inputs, self.args.method)
            return self.example_losses(_only(outputs), labels, loss, items)

        return closure

    def _note(self, step: Step) -> None:
        for name, value in step.metrics.items():
            if value.ndim == 0 and name != "loss":
                self._noted[name].append(value.detach())

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        if self.args.should_save and self.method is not None:
            saved = {"method": self.method.spec, "state": self.method.state_dict()}
            write_tensors(Path(output_dir) / STATE, saved)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None and self.method is not None:
            _restore(self.method, Path(checkpoint) / STATE)


def _restore(method: Method, path: Path) -> None:
    """Load a method's state from a checkpoint.

    Raises:
        ValueError: The checkpoint is damaged, is of another method, or has no state although the method needs one.
    """
    if not path.exists():
        if method.state_dict():
            raise ValueError(
                f"{path.parent} has no {path.name}, so the state of {method.spec} cannot be restored; resume from a "
                f"checkpoint of this trainer, or use a method that keeps no state and has no schedule"
            )
        return
    try:
        saved = read_tensors(path)
    except DamagedError as error:
        raise ValueError(f"{path} is damaged ({error}); resume from an earlier checkpoint") from error
    if saved["method"] != method.spec:
        raise ValueError(
            f"{path.parent} was trained with {saved['method']}, now {method.spec} is given; give the same, or "
            f"delete {path} to continue with another method"
        )
    method.load_state_dict(saved["state"])


def _classes_of(trainer: object, *libraries: str) -> Iterator[type]:
    """The base classes of a trainer that belong to one of these libraries."""
    return (cls for cls in type(trainer).__mro__ if cls.__module__.partition(".")[0] in libraries)


def _counted(value: object) -> Any:
    """A copy. Sentence Transformers before version 6 sums losses with their graphs, which deepcopy refuses."""
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _only(outputs: list[Any]) -> Any:
    if len(outputs) != 1:
        raise ValueError(
            f"the model ran {len(outputs)} times for one loss, so which logits the loss used cannot be determined; "
            f"override example_losses in your trainer, or use a method that needs a scalar loss only"
        )
    return outputs[0]


class Trainer(MethodTrainerMixin, transformers.Trainer):
    """``transformers.Trainer`` with ``method``."""


class Seq2SeqTrainer(MethodTrainerMixin, transformers.Seq2SeqTrainer):
    """``transformers.Seq2SeqTrainer`` with ``method``."""
