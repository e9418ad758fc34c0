"""The base class of all methods: a method fills ``.grad`` in place of ``loss.backward()``."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deltasam.core.passes import Closure, Passes, in_later_pass, set_later
from deltasam.core.restore import WeightStore, copy_one_by_one
from deltasam.core.runtime import Runtime
from deltasam.core.surroundings import Surroundings, UndoneOnError, finish_suspended
from deltasam.core.warn import warn


@dataclass(frozen=True)
class Step:
    """Result of one call of ``backward``.

    Attributes:
        loss: Mean loss at the unperturbed weights [], detached; what ``loss.item()`` would have logged. Of methods
            whose only pass is at other weights, the loss there.
        metrics: Detached metrics, in the units of the closure's loss. Always ``loss``; where weights are perturbed
            also ``perturbed_loss`` (the mean loss there), ``ascent_norm`` (norm of the gradient that is followed, where
            the step takes one) and ``radius_ratio`` (actual distance of the weights over rho: 1 unless rounding, or an
            infinite or zero gradient, prevents it). ``weights`` [n]: one per example, for methods that weight them.
            ``example_norms`` [n]: norm of each example's gradient, for methods that compute it exactly; where the
            closure returns a scalar, of the example's contribution to it.
            Names that end in ``_norm`` or ``_norms`` are norms of gradients, those that end in ``loss`` are losses.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.metrics.setdefault("loss", self.loss)

    def unscaled(self, scale: Tensor) -> Step:
        """The step with gradient norms in the units of the loss, given that the loss was multiplied by ``scale``."""
        norms = {k: v / scale.to(v.device) for k, v in self.metrics.items() if k.endswith(("_norm", "_norms"))}
        return Step(self.loss, {**self.metrics, **norms})

    @staticmethod
    def together(steps: Sequence[Step]) -> Step:
        """Combine the steps of several micro-batches whose losses add up to the step's loss."""
        if len(steps) == 1:
            return steps[0]
        # Micro-batches may differ in their metrics: a method may have to fall back after the first of them.
        names = [name for name in steps[0].metrics if all(name in s.metrics for s in steps)]
        together = {name: _together(name, [s.metrics[name] for s in steps]) for name in names}
        return Step(together["loss"], together)


def _together(name: str, values: list[Tensor]) -> Tensor:
    if values[0].ndim:
        return torch.cat(values)
    return torch.stack(values).sum() if name.endswith("loss") else torch.stack(values).mean()


def _closures(given: Any) -> list[Closure]:
    """The closures of one step, as a list.

    Raises:
        TypeError: A closure is not callable.
        ValueError: There is none.
    """
    together = isinstance(given, Iterable) and not isinstance(given, (Tensor, Mapping)) and not callable(given)
    closures = list(given) if together else [given]
    if not closures:
        raise ValueError("backward() was given no closure")
    for closure in closures:
        if not callable(closure):
            raise TypeError(
                f"backward() was given {type(closure).__name__} in place of a closure: it runs the forward pass more "
                f"than once, so it needs a function that returns the loss; write method.backward(lambda: "
                f"loss_function(model(x), y)) instead of method.backward(loss)"
            )
    return closures


class Method(abc.ABC):
    """A way to fill ``.grad``.

    Subclass it with a registry name, hyper-parameters as keyword-only arguments stored under their own names, the
    values at which the method is plain training, and one function:

        class SAM(Method, name="sam"):
            neutral = {"rho": 0.0}

            def __init__(self, model, *, rho=0.05):
                super().__init__(model)
                self.rho = nonnegative("SAM", "rho", rho)

            def fill(self, passes): ...
    """

    registry: ClassVar[dict[str, type[Method]]] = {}
    name: str
    neutral: ClassVar[dict[str, Any]]
    """The hyper-parameters at which the method equals ERM."""

    def __init_subclass__(cls, *, name: str | None = None, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if name is None:
            return
        if name in Method.registry and Method.registry[name].__qualname__ != cls.__qualname__:
            raise ValueError(
                f"the method name {name!r} is taken by {Method.registry[name].__qualname__}; choose another"
            )
        cls.name = name
        Method.registry[name] = cls

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"{type(self).__name__} was given {type(model).__name__} in place of a model (nn.Module); give it the "
                f"model itself, {type(self).__name__}(model): it trains the parameters that require a gradient"
            )
        if any(isinstance(m, nn.DataParallel) for m in model.modules()):
            raise NotImplementedError(
                f"{type(self).__name__} was given a model in nn.DataParallel, whose copies on other devices draw "
                f"dropout masks that no later pass can repeat; use DistributedDataParallel (torchrun), or one device"
            )
        self.model = model
        self._store = WeightStore()
        self._warned: frozenset[str] = frozenset()

    def backward(self, closure: Closure | Sequence[Closure], *, runtime: Runtime | None = None) -> Step:
        """Add this method's gradient to ``.grad``, as ``loss.backward()`` would.

        Afterwards weights, buffers and random state are what one plain forward and backward would have left; after an
        exception they are what they were before the call (``.grad`` may hold a partial gradient).

        Args:
            closure: Function that runs one forward pass and returns a loss (see ``deltasam.core.closure``). It must not
                call ``backward``, and is called several times on the same batch. A sequence of closures: the
                micro-batches of one step, whose losses add up to the step's loss.
            runtime: Computes gradients of the loss; None: plain PyTorch.

        Raises:
            TypeError: A closure is not callable.
            ValueError: There is no closure, or its loss does not depend on the model's trainable parameters.
        """
        closures = _closures(closure)
        runtime = runtime or Runtime()
        begun: list[Passes] = []

        def begin(closure: Closure) -> Passes:
            begun.append(Passes(self.model, closure, runtime, self._store))
            return begun[-1]

        undone = UndoneOnError(self._undoing(begun))
        with undone, undone:  # twice: an interrupt may hit the first
            step = self.fill_step(map(begin, closures))
            if any(passes.moves_nothing for passes in begun):
                self.warn_once(
                    f"{type(self).__name__}: the gradient of the first pass is exactly 0 for every parameter, so that "
                    f"nothing was perturbed and the step was a plain one; is the loss 0 (all labels masked?), or is it "
                    f"detached from the parameters?"
                )
            return step if runtime.scaler is None else step.unscaled(runtime.scaled(torch.ones_like(step.loss)))

    def _undoing(self, begun: Sequence[Passes]) -> Callable[[BaseException], None]:
        """A function that undoes a partial call, however far it has got; it may be interrupted and called again."""
        surroundings, later = Surroundings(self.model), in_later_pass()
        methods = (self, *(m for m in vars(self).values() if isinstance(m, Method)))
        attributes = [(method, dict(vars(method))) for method in methods]

        def undo(error: BaseException) -> None:
            with ExitStack() as last_first:  # runs every callback, even if another one raises
                for passes in begun:
                    last_first.callback(passes.rollback)
                last_first.callback(self._store.bring_back, copy_one_by_one)
                for method, values in attributes:
                    last_first.callback(vars(method).update, values)
                last_first.callback(set_later, later)
                last_first.callback(surroundings.restore)
                last_first.callback(finish_suspended, error)

        return undo

    def warn_once(self, message: str) -> None:
        """Issue a RuntimeWarning at the line of user code, once per message and method."""
        if message not in self._warned:
            self._warned |= {message}  # a new set: undoing a failed call restores the old one, so it warns again
            warn(message)

    def fill_step(self, micro_batches: Iterator[Passes]) -> Step:
        """Fill ``.grad`` from micro-batches, each started when it is drawn; override to share anything among them."""
        return Step.together([self.fill(passes) for passes in micro_batches])

    @abc.abstractmethod
    def fill(self, passes: Passes) -> Step:
        """Run the passes of one micro-batch and fill ``.grad``."""

    @property
    def needs_all_micro_batches(self) -> bool:
        """Whether the micro-batches of a step must be passed in one call, because they share something."""
        return False

    @property
    def per_example(self) -> bool:
        """Whether it computes gradients of single rows of a batch, and so must see every use of a parameter."""
        return False

    @property
    def compares_predictions(self) -> bool:
        """Whether it needs the logits that the loss is computed from."""
        return False

    @property
    def loss_is_perturbed(self) -> bool:
        """Whether the first pass, and so ``Step.loss``, is at moved weights: methods of one pass."""
        return False

    @property
    def fresh_dropout(self) -> bool:
        """Whether later passes draw new dropout masks; otherwise they replay those of the first."""
        return False

    def follow(self, optimizer: torch.optim.Optimizer, *, total_steps: int | None = None) -> None:  # noqa: B027
        """Count the steps of an optimizer, for methods with a schedule; a no-op for others.

        A copied or unpickled method follows no optimizer until this is called again.

        Args:
            optimizer: The optimizer whose steps count.
            total_steps: Total number of optimizer steps, for schedules that depend on it.
        """

    def training_ended(self) -> None:  # noqa: B027
        """Say at the end of training what should be known of it; trainers call it. A no-op for most methods."""

    _following: RemovableHandle | None = None

    def after_each_step(self, optimizer: torch.optim.Optimizer, hook: Callable[..., None]) -> None:
        """Run a hook after each step of this optimizer from now on, and no longer after those of another."""
        if self._following is not None:
            self._following.remove()  # an optimizer that is followed twice must be counted once
        inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper skips steps of the optimizer inside

        def unless_skipped(stepped: torch.optim.Optimizer, *arguments: Any) -> None:
            # A fused optimizer is called in a step that a loss scaler skips, and told so.
            found = getattr(stepped, "found_inf", None)
            if found is None or not float(found):
                hook(stepped, *arguments)

        self._following = inner.register_step_post_hook(unless_skipped)

    def __getstate__(self) -> dict[str, Any]:
        """State of a copy: it follows no optimizer, since a copied optimizer has no hooks."""
        return {key: value for key, value in self.__dict__.items() if key != "_following"}

    def state_dict(self) -> dict[str, Any]:
        """State that training must save for a bitwise resume; empty for most methods.

        Nested dictionaries and lists of tensors and JSON values, which ``torch.load(weights_only=True)`` reads back.
        It is the same in all processes, so that one of them can save it for all; later steps do not modify it.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state, whatever device its tensors are on.

        Raises:
            ValueError: The state was saved by another method.
        """
        self.check_state(state, ())

    def check_state(self, state: dict[str, Any], *known: Collection[str]) -> None:
        """Refuse a state with other keys than this method saves.

        Args:
            state: The state to be loaded.
            known: The allowed sets of keys, one for each kind of state that the method may save.

        Raises:
            ValueError: The state's keys match none of them.
        """
        if set(state) not in [set(keys) for keys in known]:
            saves, given = " or ".join(", ".join(keys) or "nothing" for keys in known), ", ".join(state) or "nothing"
            raise ValueError(f"{self.spec} saves {saves}, but was given {given}; load what the same method saved")

    @property
    def spec(self) -> str:
        """This method as text, ``sam:rho=0.05``: ``make_method(spec, model)`` recreates it."""
        return format_spec(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.spec}>"


def hyperparameters(cls: type[Method]) -> dict[str, Any]:
    """The hyper-parameters of a method and their defaults, read from its signature."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def format_spec(method: Method) -> str:
    """The spec of a method, with every hyper-parameter that is not None: ``sam:rho=0.05``."""
    given = {k: getattr(method, k) for k in hyperparameters(type(method))}
    values = ",".join(f"{k}={v}" for k, v in given.items() if v is not None)
    return f"{method.name}:{values}" if values else method.name
