"""What a method is: something that fills ``.grad``, in place of ``loss.backward()``."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from deltasam.guards import WeightStore
from deltasam.passes import Closure, Passes
from deltasam.runtime import Runtime


@dataclass(frozen=True)
class Step:
    """What one call of ``backward`` did.

    Attributes:
        loss: Mean loss at the weights as they are [], detached; what ``loss.item()`` would have logged.
        metrics: Detached facts, in the units of the closure's loss. Always ``loss``; where a perturbation is
            made also ``perturbed_loss`` (the mean loss there), ``ascent_norm`` (norm of the gradient it follows)
            and ``radius_ratio`` (the distance the weights really moved over rho: 1 unless rounding, an infinite
            or a zero gradient got in the way). ``weights`` [n]: one per example, for methods that weight them.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.metrics.setdefault("loss", self.loss)


class Method(abc.ABC):
    """A way to fill ``.grad``.

    Subclass with a registry name, hyper-parameters as keyword-only arguments kept under their own names, the
    values at which the method is plain training, and one function::

        class SAM(Method, name="sam"):
            neutral = {"rho": 0.0}

            def __init__(self, model, *, rho=0.05):
                super().__init__(model)
                self.rho = nonnegative("SAM", "rho", rho)

            def _fill(self, passes): ...
    """

    registry: ClassVar[dict[str, type[Method]]] = {}
    name: ClassVar[str]
    neutral: ClassVar[dict[str, Any]]
    """The hyper-parameters at which the method equals ERM."""

    def __init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
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
        self.model = model
        self._store = WeightStore()

    def backward(self, closure: Closure, *, runtime: Runtime | None = None) -> Step:
        """Add this method's gradient to ``.grad``, as ``loss.backward()`` would.

        Weights, buffers and random state are afterwards where one plain forward and backward would have left
        them; after an exception they are where they were before the call (``.grad`` may hold a part).

        Args:
            closure: Runs one forward pass and returns a loss (see ``deltasam.outputs``). Never calls
                ``backward``. It is called several times on the same batch.
            runtime: How a loss becomes gradients; plain PyTorch unless given.
        """
        passes = Passes(self.model, closure, runtime or Runtime(), self._store)
        try:
            return self._fill(passes)
        except BaseException:
            passes.abandon()
            raise

    @abc.abstractmethod
    def _fill(self, passes: Passes) -> Step:
        """Run the passes of one step and fill ``.grad``."""

    @property
    def spec(self) -> str:
        """This method as text, ``sam:rho=0.05``: ``make_method(spec, model)`` makes it again."""
        from deltasam.spec import format_spec

        return format_spec(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.spec}>"
