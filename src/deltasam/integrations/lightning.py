"""Lightning: any method under automatic optimization, through one callback.

    trainer = L.Trainer(callbacks=[MethodCallback("per_instance_sam:rho=0.05")])

For each batch Lightning builds a closure of three parts: ``training_step``, ``zero_grad`` and ``backward``. The
callback lets a method run these parts, the first as often as it needs. Precision, DDP and hooks act inside the parts;
clipping, optimizer and schedulers act after them: all of this stays Lightning's.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deltasam.core.passes import in_later_pass
from deltasam.core.runtime import Runtime
from deltasam.integrations.missing import missing
from deltasam.integrations.trained_parameters import refuse_other_parameters
from deltasam.method import Method, Step
from deltasam.per_example.packed import refuse_packed
from deltasam.spec import make_method

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.overrides.distributed import prepare_for_backward
    from torchmetrics import Metric
except ModuleNotFoundError as error:
    raise missing("lightning", error) from error

__all__ = ["MethodCallback"]


class MethodCallback(Callback):
    """Trains with a method: ``L.Trainer(callbacks=[MethodCallback("sam:rho=0.05")])``.

    Every ``log_every_n_steps`` the step's metrics are logged as ``method/perturbed_loss``, ``method/ascent_norm``, ...,
    in the units of the ``training_step``'s loss. Logging and torchmetrics inside the ``training_step`` see the first
    pass only; code that counts anything else can check ``deltasam.in_later_pass()``.

    Where micro-batches share something (``share=global`` with ``accumulate_grad_batches``), all are run when the last
    one arrives. Until then there is nothing to return: ``on_train_batch_end`` gets no outputs for the others.

    Args:
        spec: Spec of a method, with optional schedules of its radius: ``sam:rho=0.05@warmup=0.1``.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self._method: Method | None = None
        self._saved: dict[str, Any] | None = None
        self._loop: Any = None
        self._waiting: list[_MicroBatch] = []
        self._metrics: dict[str, Tensor] = {}

    @property
    def method(self) -> Method:
        """The method of the current fit.

        Raises:
            RuntimeError: No fit has begun.
        """
        if self._method is None:
            raise RuntimeError("the callback makes its method when trainer.fit() begins")
        return self._method

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Create the method.

        Raises:
            NotImplementedError: The strategy or the module runs backward in its own way.
        """
        if stage == "fit":
            _refuse(trainer, pl_module)
            self._saved = None
            self._method = make_method(self.spec, _TrainingStep(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the closures; optimizer and checkpoint are loaded only by now.

        Raises:
            ValueError: The optimizer trains parameters that the module does not hold.
            NotImplementedError: DDP has a static graph.
        """
        if getattr(trainer.strategy.model, "static_graph", False):
            raise NotImplementedError(
                "MethodCallback: DDP with static_graph=True treats a step's second forward as the next step's, and "
                "would not average the gradients; leave static_graph out"
            )
        refuse_other_parameters(trainer.optimizers[0], [self.method.model])
        self.method.follow(trainer.optimizers[0], total_steps=_total_steps(trainer))
        if self._saved is not None:  # after follow, which starts at 0
            self.method.load_state_dict(self._saved)
            self._saved = None
        self._waiting, self._metrics = [], {}
        self._loop = trainer.fit_loop.epoch_loop.automatic_optimization
        make = self._loop._make_closure
        self._loop._make_closure = lambda kwargs, *args: self._take_over(trainer, kwargs, make(kwargs, *args))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Log the step's metrics: Lightning allows it no earlier, and only when it logs, since logging takes time."""
        if self._metrics and trainer._logger_connector.should_update_logs and not trainer.barebones:
            pl_module.log_dict(self._metrics, on_step=True, on_epoch=False)
        self._metrics = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the method say what should be known of the training."""
        self.method.training_ended()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore Lightning's closures."""
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore Lightning's closures."""
        self._give_back()

    def state_dict(self) -> dict[str, Any]:
        """The method's state, for Lightning's checkpoints."""
        if self._saved is not None:
            return self._saved
        return {} if self._method is None else self._method.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts."""
        self._saved = state_dict

    def _give_back(self) -> None:
        if self._loop is not None:
            del self._loop._make_closure  # uncovers the class's own
            self._loop = None

    def _take_over(self, trainer: Trainer, kwargs: dict[str, Any], closure: Any) -> Any:
        """The closure of one micro-batch, changed to run the method."""
        if closure._backward_fn is None:  # weight averaging updates the buffers by forwards only
            return closure
        if self.method.per_example:
            refuse_packed(kwargs, self.spec)
        if closure._zero_grad_fn is not None:  # the first of a step
            self._waiting = []
        run = partial(self.method.model, closure._step_fn, **kwargs)
        self._waiting.append(_MicroBatch(trainer, run, closure._zero_grad_fn))
        if self.method.needs_all_micro_batches and trainer.fit_loop._should_accumulate():
            nothing = self._loop.output_result_cls(None)
            closure.closure = lambda: nothing
        else:
            together, self._waiting = self._waiting, []
            closure.closure = lambda: self._run(trainer, together, closure._backward_fn)
        return closure

    @torch.enable_grad()
    def _run(self, trainer: Trainer, together: list[_MicroBatch], backward: Callable[[Tensor], None]) -> Any:
        try:
            with _runtime(trainer, backward, len(together)) as runtime:
                step = self.method.backward(together, runtime=runtime)
        except _SkippedError:
            return self._loop.output_result_cls(None)
        self._metrics = _logged(step, trainer.accumulate_grad_batches / len(together))
        return together[-1].result()


class _TrainingStep(nn.Module):
    """A module that is called with the batches, so that per-example methods see the rows of the examples.

    The LightningModule itself may never be called, only its ``training_step``.
    """

    def __init__(self, module: LightningModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, run: Callable[[], Any], **batch: object) -> Any:
        """Lightning's result of the ``training_step``."""
        return run()


class _SkippedError(Exception):
    """``training_step`` returned None."""


class _MicroBatch:
    """The closure for the method: ``training_step``, and Lightning's work between that and ``backward``."""

    def __init__(self, trainer: Trainer, step: Callable[[], Any], zero_grad: Callable[[], None] | None) -> None:
        self._trainer, self._step, self._zero_grad = trainer, step, zero_grad
        self._first: Any = None

    def __call__(self) -> Any:
        if in_later_pass():
            with _unseen(self._trainer.lightning_module):
                result = self._step()
        else:
            result = self._first = self._step()
            if self._zero_grad is not None:
                self._zero_grad()
        if result.closure_loss is None:
            raise _SkippedError
        count = self._trainer.accumulate_grad_batches  # Lightning has divided the loss only
        output = {"loss": result.closure_loss, "logits": result.extra.get("logits")}
        if (weights := result.extra.get("logit_weights")) is not None:
            output["logit_weights"] = weights / count
        if (given := result.extra.get("example_losses")) is not None:
            output["example_losses"] = lambda: (given() if callable(given) else given) / count
        return output

    def result(self) -> Any:
        """Lightning's result of the first pass, detached from its graph."""
        self._first.closure_loss = self._first.closure_loss.detach()
        self._first.loss = self._first.loss.mean()  # it may be one loss per example
        self._first.extra.pop("example_losses", None)
        if (logits := self._first.extra.get("logits")) is not None:
            self._first.extra["logits"] = logits.detach()
        return self._first


class _LightningRuntime(Runtime):
    """Gradients by ``strategy.backward``: Lightning does loss scaling, hooks and reduction over processes.

    Args:
        trainer: The trainer; its precision plugin may have a scaler.
        backward: Lightning's backward, for the current optimizer.
    """

    def __init__(self, trainer: Trainer, backward: Callable[[Tensor], None]) -> None:
        super().__init__(scaler=getattr(trainer.precision_plugin, "scaler", None))
        self._backward = backward

    def backward(self, loss: Tensor) -> None:
        """``strategy.backward(loss, optimizer)``."""
        self._backward(loss)


class _ReducingLast(_LightningRuntime):
    """The runtime for several micro-batches in one call under DDP: the last backward reduces the gradients.

    DDP decides in the forward whether the next backward reduces, but it is not known then whether a forward is the
    last. So no forward prepares the reduction, and the last backward does, as Lightning's ``manual_backward``.
    """

    def __init__(self, trainer: Trainer, backward: Callable[[Tensor], None], count: int) -> None:
        super().__init__(trainer, backward)
        self._model, self._left = trainer.strategy.model, count

    def backward(self, loss: Tensor) -> None:
        """``strategy.backward(loss, optimizer)``."""
        self._left -= 1
        if self._left == 0:
            self._model.require_backward_grad_sync = True
            prepare_for_backward(self._model, loss)
        super().backward(loss)


@contextmanager
def _runtime(trainer: Trainer, backward: Callable[[Tensor], None], count: int) -> Iterator[Runtime]:
    """The runtime for ``count`` micro-batches in one call."""
    model = trainer.strategy.model
    if count == 1 or not isinstance(model, DistributedDataParallel):
        yield _LightningRuntime(trainer, backward)
    else:
        with model.no_sync():
            yield _ReducingLast(trainer, backward, count)


@contextmanager
def _unseen(module: LightningModule) -> Iterator[None]:
    """Suppress the module's logging inside the context, and restore its torchmetrics on exit."""
    metrics = [m for m in module.modules() if isinstance(m, Metric)]
    attributes = [dict(vars(m)) for m in metrics]
    states = [{k: v.clone() if isinstance(v, Tensor) else list(v) for k, v in m.metric_state.items()} for m in metrics]
    module.log = lambda *args, **kwargs: None  # log_dict calls it too
    try:
        yield
    finally:
        del module.log
        for metric, before, state in zip(metrics, attributes, states, strict=True):
            vars(metric).update(before)
            for name, value in state.items():  # in place: metrics of a collection share states
                if isinstance(value, Tensor):
                    before[name].copy_(value)
                else:
                    before[name][:] = value


def _logged(step: Step, factor: float) -> dict[str, Tensor]:
    """The scalars among the metrics, in the units of the undivided loss."""
    scalars = {k: v for k, v in step.metrics.items() if v.ndim == 0}
    return {f"method/{k}": v * factor if k.endswith(("loss", "_norm")) else v for k, v in scalars.items()}


def _total_steps(trainer: Trainer) -> int | None:
    total = trainer.estimated_stepping_batches  # infinite or -1 if the number of steps is unknown
    return int(total) if 0 < total < math.inf else None


def _refuse(trainer: Trainer, pl_module: LightningModule) -> None:
    # Compared by name: lightning.pytorch and pytorch_lightning hold two copies of each class.
    kinds = {cls.__name__ for cls in type(trainer.strategy).__mro__}
    whole = kinds & {"SingleDeviceStrategy", "DDPStrategy"}
    if not whole or kinds & {"DeepSpeedStrategy", "XLAStrategy", "SingleDeviceXLAStrategy"}:
        raise NotImplementedError(
            f"MethodCallback: {type(trainer.strategy).__name__} shards the weights or runs backward in its own "
            f"engine; use strategy='ddp' or a single device"
        )
    if not pl_module.automatic_optimization:
        raise NotImplementedError(
            f"MethodCallback: {type(pl_module).__name__} has automatic_optimization=False; call "
            f"deltasam.make_method(...).backward(closure) in its training_step instead, or set it to True"
        )
    if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
        raise NotImplementedError(
            f"MethodCallback: {type(pl_module).__name__}.training_step takes a dataloader_iter, so a second pass would "
            f"take the next batch; change it to take (batch, batch_idx)"
        )
