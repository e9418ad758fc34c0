"""The passes of one ``backward`` call: the same batch, the same dropout masks, other weights.

A *pass* is one forward and one backward. The first pass is the one plain training would have run: it alone
advances the random state and the buffers. Every later pass replays its randomness and leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from deltasam import weight_space
from deltasam.collectives import any_process
from deltasam.dropout_masks import DropoutMasks
from deltasam.graph import refuse_what_goes_wrong
from deltasam.guards import Buffers, RandomState, WeightStore, accelerators, moved, reseed
from deltasam.outputs import loss_of
from deltasam.runtime import Runtime
from deltasam.sharded import grad_by_backward, local, reshard, sharded_modules
from deltasam.weight_space import Vector

_LATER: ContextVar[bool] = ContextVar("later", default=False)

Closure = Callable[[], Any]


def in_later_pass() -> bool:
    """Whether a closure is being run again on the same batch: then what it counts or logs was counted before."""
    return _LATER.get()


@dataclass(frozen=True)
class Point:
    """A later pass at moved weights."""

    output: Any
    """What the closure returned there."""
    radius: Callable[[], Tensor]
    """How far the weights really are from where they were [], after rounding. Valid inside the pass."""


class Passes:
    """The first pass, and as many later ones as a method wants.

    Attributes:
        params: The trainable parameters at the time of the call, each once.
    """

    def __init__(self, model: nn.Module, closure: Closure, runtime: Runtime, store: WeightStore) -> None:
        if not torch.is_grad_enabled():
            raise RuntimeError("backward() was called under torch.no_grad(); call it with gradients enabled")
        self._sharded = sharded_modules(model)
        reshard(self._sharded)  # a forward without a backward may have left the root's weights whole
        named = list(model.named_parameters())
        self.params = [p for _, p in named if p.requires_grad]
        self._frozen = {name: p for name, p in named if not p.requires_grad}
        if not self.params:
            raise ValueError("the model has no trainable parameter; set requires_grad=True on some")
        self.store = store
        store.forget()
        self._model, self._closure, self._runtime = model, closure, runtime
        self._devices = accelerators(model)
        self._masks = DropoutMasks(model)
        self._looked_through = False
        self._start, self._buffers_before = RandomState(self._devices), Buffers(model)

    def first(self) -> Any:
        """What the closure returns at the weights as they are. To be called once, before any other pass."""
        with self._masks.record():
            output = self._closure()
        self._end, self._buffers = RandomState(self._devices), Buffers(self._model)
        return output

    @contextmanager
    def at(
        self, vector: Vector | None = None, factor: float = 1.0, *, scales: Vector | None = None, fresh: bool = False
    ) -> Iterator[Point]:
        """A later pass at the weights moved by ``factor * vector``; forward *and* backward belong inside.

        Args:
            vector: One tensor per parameter, or None where it does not move. None: nothing moves.
            factor: A scale for all of it.
            scales: The radius is measured in these units, one tensor per parameter.
            fresh: Draw other dropout masks than the first pass, the same in every such pass of the step.
        """
        vector = [None] * len(self.params) if vector is None else vector
        with moved(self.params, vector, factor, self.store) as (weights, saved):
            which = [i for i, v in enumerate(vector) if v is not None]
            kept = [None if (s := scales[i]) is None else local(s) for i in which] if scales and weights else None
            params = [self.params[i] for i in which]
            del vector
            reshard(self._sharded)
            later = _LATER.set(True)
            try:
                if fresh:
                    reseed(self.seed())
                else:
                    self._start.restore()
                self._buffers_before.restore_written()
                before = _versions(self._frozen.values())
                with nullcontext() if fresh else self._masks.replay():
                    output = self._closure()
                self._refuse_writes(before)
                after = _versions(params)
                yield Point(output, lambda: weight_space.distance(weights, saved, kept, of=params))
                if after != _versions(params):
                    raise RuntimeError(
                        "the backward pass wrote into the weights while they were perturbed (an optimizer that steps "
                        "in a gradient hook?), which would be undone; step after backward() has returned"
                    )
            finally:
                _LATER.reset(later)
                reshard(self._sharded)  # what was collected is moved
                self._end.restore()
                self._buffers.restore()

    def _refuse_writes(self, before: list[int]) -> None:
        """Raise where a later forward wrote into frozen parameters: of these nothing is kept that could be put back."""
        now = _versions(self._frozen.values())
        changed = [name for name, v, w in zip(self._frozen, before, now, strict=True) if v != w]
        if changed:
            raise RuntimeError(
                f"the forward pass writes into frozen parameters ({', '.join(changed[:3])}), and runs more than once "
                f"in a step: make them buffers, update them outside the closure, or only where "
                f"deltasam.in_later_pass() is False"
            )

    def grad(
        self, loss: Tensor, wrt: Sequence[Tensor] | Sequence[GradientEdge] | None = None, *, retain_graph: bool = False
    ) -> list[Tensor | None]:
        """Gradient of a loss [] for each of ``params``, or of other tensors ``wrt``; ``.grad`` is not touched.

        Where the weights are sharded, the gradient for ``params`` is the mean over all processes.

        Raises:
            RuntimeError: It would be wrong: reentrant checkpoints, the first graph of a static one.
        """
        self.look_through(loss)
        if wrt is None and self._sharded:
            return grad_by_backward(lambda: self._runtime.scaled(loss).backward(retain_graph=retain_graph), self.params)
        return self._runtime.grad(loss, self.params if wrt is None else wrt, retain_graph=retain_graph)

    def look_through(self, loss: Tensor) -> None:
        """Look once for what would make gradients of the loss wrong.

        Raises:
            RuntimeError: There is: reentrant checkpoints, the first graph of a static one.
        """
        if not self._looked_through:
            refuse_what_goes_wrong(loss)
            self._looked_through = True

    def backward(self, loss: Tensor) -> Tensor:
        """Add the gradient of a loss [] to ``.grad``; returns the loss, detached."""
        self._runtime.backward(loss)
        return loss.detach()

    def only(self) -> Any:
        """What the closure returns, for a method that has no later pass: nothing is kept for one."""
        return self._closure()

    def descend(
        self, ascent: list[Tensor | None], rho: float, *, norm: Tensor | None = None, scales: Vector | None = None
    ) -> dict[str, Tensor]:
        """Fill ``.grad`` at the adversarial weights ``w + rho * ascent / norm``.

        A norm that is zero, infinite or NaN moves nothing: the step is then a plain one.

        Args:
            ascent: The direction, one tensor per parameter. The list is emptied: its memory, as much as the model's,
                is free during the pass.
            rho: Distance to go.
            norm: Length of the ascent [], in the units the distance is measured in; Euclidean unless given.
            scales: These units, one tensor per parameter.

        Returns:
            The metrics ``perturbed_loss``, ``ascent_norm`` and ``radius_ratio``.
        """
        norm = weight_space.norm(ascent) if norm is None else norm
        moving = self.at(list(ascent), weight_space.length_to(rho, norm), scales=scales)
        ascent.clear()
        with moving as point:
            perturbed_loss = self.backward(loss_of(point.output))
            ratio = radius_ratio(point.radius(), rho)
        return {"perturbed_loss": perturbed_loss, "ascent_norm": norm, "radius_ratio": ratio}

    def loss_scale(self) -> float:
        """What the runtime multiplies every loss with before a gradient is taken; 1 where it has no scaler."""
        return self._runtime.scaled(torch.ones((), device=self.params[0].device)).item()

    @property
    def sharded(self) -> bool:
        """Whether the weights are cut up between processes, so that all processes have the same perturbation."""
        return bool(self._sharded)

    def noise(self) -> list[Tensor]:
        """Standard normal noise of the parameters' shapes; it follows from the random state without advancing it."""
        seed = self.seed()
        if self._sharded:
            seed += torch.distributed.get_rank()  # every part has noise of its own
        generator = torch.Generator().manual_seed(seed)
        return self.store.gaussian([local(p.data) for p in self.params], generator)

    def seed(self) -> int:
        """A number that follows from the random state without advancing it."""
        before = torch.get_rng_state()
        seed = int(torch.randint(2**62, ()))
        torch.set_rng_state(before)
        return seed

    def mean_over_processes(self, vector: list[Tensor | None]) -> list[Tensor | None]:
        """The mean of a vector over all processes; the vector itself where there is one."""
        return self._runtime.mean_over_processes(vector, self.params)

    def any_process(self, flag: bool) -> bool:
        """Whether a flag is set in any process that trains along, so that all run as many passes."""
        return any_process(flag, self.params[0].device, self._runtime.group)

    def abandon(self) -> None:
        """Undo what the first pass left behind: after an error the call has not happened."""
        self._start.restore()
        self._buffers_before.restore()


def _versions(params: Iterable[Tensor]) -> list[int]:
    """How often each was written into; 0 where PyTorch does not count."""
    return [0 if p.is_inference() else p._version for p in params]


def radius_ratio(radius: Tensor, rho: float) -> Tensor:
    """Realised radius over the wanted one []: 1 when all is well, 0 when nothing moved."""
    return radius / rho if rho else torch.ones_like(radius)
