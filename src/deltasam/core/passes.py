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

from deltasam.core import vectors
from deltasam.core.closure import loss_of
from deltasam.core.dropout_masks import DropoutMasks
from deltasam.core.restore import Buffers, RandomState, WeightStore, accelerators, moved, reseed
from deltasam.core.runtime import Runtime
from deltasam.core.sharding import local, refuse_unreduced, reshard
from deltasam.core.structure import Structure
from deltasam.core.torch_internals.backwards import grads_aside, grads_of, refuse_reduction, set_grads
from deltasam.core.torch_internals.graph import REENTRANT, Graph, graph_of
from deltasam.core.torch_internals.modes import unseen
from deltasam.core.torch_internals.tensors import runs_after_gradient, version_of
from deltasam.core.vectors import Length, Vector

_LATER: ContextVar[bool] = ContextVar("later", default=False)

Closure = Callable[[], Any]


def in_later_pass() -> bool:
    """Whether a closure is being run again on the same batch: then what it counts or logs was counted before."""
    return _LATER.get()


def set_later(later: bool) -> None:
    """Say whether later passes are going on."""
    _LATER.set(later)


@dataclass(frozen=True)
class PerturbedPass:
    """A later pass at moved weights."""

    output: Any
    """What the closure returned there."""
    radius: Callable[[], Tensor]
    """How far the weights really are from where they were [], after rounding. Valid inside the pass."""


class Passes:
    """The first pass, and as many later ones as a method wants.

    Attributes:
        structure: Of the model, at the time of the call.
        params: The trainable parameters at that time, each once.
        moves_nothing: Whether the weights should have moved in ``descend``, but the ascent was exactly 0.
        ran_inner_backwards: Whether a backward ran inside one of the gradients taken: what it found was written into
            ``.grad``, and only gradients of parameters have it in them.
    """

    def __init__(self, model: nn.Module, closure: Closure, runtime: Runtime, store: WeightStore) -> None:
        if not torch.is_grad_enabled():
            raise RuntimeError("backward() was called under torch.no_grad(); call it with gradients enabled")
        self.structure = Structure(model)
        self._sharded = self.structure.sharded
        if self._sharded:
            reshard(self._sharded)  # a forward without a backward may have left the root's weights whole
            self.structure = Structure(model)
        self._named = self.structure.parameters
        self.params = list(self.structure.trained.values())
        self._numbers = {id(p): number for number, p in enumerate(self.params)}
        if not self.params:
            raise ValueError("the model has no trainable parameter; set requires_grad=True on some")
        self.store = store
        store.forget()
        self._model, self._closure, self._runtime = model, closure, runtime
        self._devices = accelerators(self._named.values())
        self._masks = DropoutMasks(self.structure)
        self._graph: Graph | None = None
        self.moves_nothing = self.ran_inner_backwards = self._writes_weights = False
        self._start, self._buffers_before = RandomState(self._devices), self._buffers_now()
        self._grads = grads_of(self.params)

    def first(self) -> Any:
        """What the closure returns at the weights as they are. To be called once, before any other pass."""
        before = _versions(self.params)
        with self._masks.record():
            output = self._forward()
        self._writes_weights = before != _versions(self.params)
        self._end, self._buffers = RandomState(self._devices), self._buffers_now()
        return output

    @contextmanager
    def at(
        self,
        vector: Vector | None = None,
        factor: float = 1.0,
        *,
        scales: Vector | None = None,
        fresh: bool = False,
        guarded: bool = False,
    ) -> Iterator[PerturbedPass]:
        """A later pass at the weights moved by ``factor * vector``; forward *and* backward belong inside.

        Args:
            vector: One tensor per parameter, or None where it does not move. None: nothing moves.
            factor: A scale for all of it.
            scales: The radius is measured in these units, one tensor per parameter.
            fresh: Draw other dropout masks than the first pass, the same in every such pass of the step.
            guarded: Put weights back also where nothing moves, in case that the closure writes into them.
        """
        vector = [None] * len(self.params) if vector is None else vector
        guarded |= self._writes_weights
        with moved(self.params, vector, factor, self.store, guarded=guarded) as (weights, saved):
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
                before = _versions(self._named.values())
                with nullcontext() if fresh else self._masks.replay():
                    output = self._forward()
                self._refuse_writes(before)
                after = _versions(params)
                yield PerturbedPass(output, lambda: vectors.distance(weights, saved, kept, of=params))
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
        """Raise where a later forward wrote into parameters: not from the values that the first one wrote into."""
        now = _versions(self._named.values())
        if now == before:
            return
        changed = [name for name, v, w in zip(self._named, before, now, strict=True) if v != w]
        raise RuntimeError(
            f"the forward pass writes into parameters ({', '.join(changed[:3])}), and runs more than once in a step: "
            f"constrain weights after optimizer.step() (an embedding's max_norm too), make a moving average a buffer, "
            f"or write only where deltasam.in_later_pass() is False"
        )

    def grad(
        self, loss: Tensor, wrt: Sequence[Tensor] | Sequence[GradientEdge] | None = None, *, retain_graph: bool = False
    ) -> list[Tensor | None]:
        """Gradient of a loss [] for each of ``params``, or of other tensors ``wrt``; ``.grad`` is not touched.

        Gradients of parameters are what ``loss.backward()`` would add to ``.grad``, also where that runs backwards of
        its own: in hooks of a detached leaf (GradCache), in checkpoints. Those of other tensors are what the graph
        says; ``ran_inner_backwards`` then tells whether there is more than the graph.

        Where the weights are sharded, the gradient for ``params`` is the mean over all processes.

        Raises:
            ValueError: The loss does not depend on any of ``params``.
            RuntimeError: It would be wrong: reentrant checkpoints between the loss and tensors that are no parameters,
                inner backwards where gradients are reduced over processes, the first graph of a static one.
        """
        graph = self.check_autograd_graph(loss)
        of_parameters = wrt is None or any(isinstance(w, nn.Parameter) for w in wrt)
        # With all leaves among its inputs, autograd leaves out no part of the graph, nor the backwards inside it.
        # (Sharded weights are whole parameters in there, whose .grad is the sharding's own.)
        whole = (leaf for leaf in graph.leaves if self.sharded and isinstance(leaf, nn.Parameter))
        known = self._numbers.keys() | set(map(id, whole))
        others = [leaf for leaf in graph.leaves if id(leaf) not in known] if of_parameters else []
        plain_only = graph.reentrant or any(map(runs_after_gradient, others))
        if plain_only:
            self._refuse_where_no_plain_backward(wrt)
        by_backward = plain_only or (wrt is None and self.sharded)
        targets: list[Any] = list(self.params if wrt is None else wrt)
        before = _versions(self.params)
        # While sharded gradients are not synchronised, those of an earlier micro-batch may arrive in .grad meanwhile.
        watched = by_backward or not self.sharded
        with grads_aside([*self.params, *others] if watched else []):
            if by_backward:
                self._runtime.scaled(loss).backward(retain_graph=retain_graph)
                gradients: list[Tensor | None] = [None] * len(targets)
            else:
                gradients = self._runtime.grad(loss, [*targets, *others], retain_graph=retain_graph)[: len(targets)]
            written = [g.to_dense() if g is not None and g.is_sparse else g for g in grads_of(self.params)]
        if before != _versions(self.params):
            raise RuntimeError(
                "the backward of the first pass wrote into the weights (an optimizer that steps in a gradient hook?); "
                "step after backward() has returned"
            )
        if not by_backward and watched and any(g is not None for g in written):
            refuse_reduction(self._model)
        if by_backward or (watched and any(g is not None for g in written)):
            self.ran_inner_backwards |= not self.sharded
            found = dict(zip(map(id, self.params), written, strict=True))
            gradients = vectors.plus(gradients, [found.get(id(t)) for t in targets])
        if wrt is None and all(g is None for g in gradients):
            if self.sharded:
                refuse_unreduced()
            raise self._independent()
        return gradients

    def check_autograd_graph(self, loss: Tensor) -> Graph:
        """Walk once through the graph of a pass.

        Raises:
            RuntimeError: It is the first graph of a static one.
        """
        if self._graph is None:
            self._graph = graph_of(loss, self._numbers)
        return self._graph

    def _refuse_where_no_plain_backward(self, wrt: Sequence[Any] | None) -> None:
        """Refuse what a plain backward does not give: reentrant checkpoints run in no other."""
        hooks = any(map(runs_after_gradient, self.params))
        if self.sharded or hooks or not all(id(w) in self._numbers for w in wrt or ()):
            raise RuntimeError(REENTRANT)
        refuse_reduction(self._model)

    def _independent(self) -> ValueError:
        kind = type(self._model).__name__
        return ValueError(
            f"the loss depends on no trainable parameter of the model that the method was made with ({kind}): does the "
            f"closure run another model, or a copy of it? Make the method with the model that the closure runs"
        )

    def backward(self, loss: Tensor) -> Tensor:
        """Add the gradient of a loss [] to ``.grad``; returns the loss, detached.

        Raises:
            ValueError: The loss does not depend on any of ``params``.
        """
        before = _written(self.params)
        self._runtime.backward(loss)
        # Sharded weights are other tensors in a graph, and their gradients are added to behind the back of the count.
        unchanged = before == _written(self.params) and not self.sharded
        if unchanged and self._numbers.keys().isdisjoint(map(id, graph_of(loss).leaves)):
            raise self._independent()
        return loss.detach()

    def plain_forward(self) -> Any:
        """What the closure returns, for a method that has no later pass: nothing is kept for one."""
        return self._forward()

    def _buffers_now(self) -> Buffers:
        return Buffers(self.structure.modules.values())

    def _forward(self) -> Any:
        """Run the closure."""
        self._graph = None
        before = _written(self.params)
        output = self._closure()
        if before != (after := _written(self.params)):
            changed = [p.grad for p, was, now in zip(self.params, before, after, strict=True) if was != now]
            if any(g is not None and bool((g.coalesce().values() if g.is_sparse else g).any()) for g in changed):
                raise RuntimeError(
                    "the closure has written into .grad of the parameters: it runs a backward itself; it should return "
                    "the loss, of which the method takes the gradient"
                )
        return output

    def descend(
        self, ascent: list[Tensor | None], rho: float, *, length: Length | None = None, scales: Vector | None = None
    ) -> dict[str, Tensor]:
        """Fill ``.grad`` at the adversarial weights ``w + rho * ascent / norm``.

        A norm that is zero, infinite or NaN moves nothing: the step is then a plain one.

        Args:
            ascent: The direction, one tensor per parameter. The list is emptied: its memory, as much as the model's,
                is free during the pass.
            rho: Distance to go.
            length: Of the ascent, in the units the distance is measured in; Euclidean unless given.
            scales: These units, one tensor per parameter.

        Returns:
            The metrics ``perturbed_loss``, ``ascent_norm`` and ``radius_ratio``.
        """
        length = vectors.length(ascent) if length is None else length
        factor = vectors.length_to(rho, length)
        self.moves_nothing = rho > 0 and length.value == 0
        moving = self.at(list(ascent), factor, scales=scales)
        ascent.clear()
        with moving as point:
            perturbed_loss = self.backward(loss_of(point.output))
            ratio = radius_ratio(point.radius(), rho)
        return {"perturbed_loss": perturbed_loss, "ascent_norm": length.norm, "radius_ratio": ratio}

    def loss_scale(self) -> float:
        """What the runtime multiplies every loss with before a gradient is taken; 1 where it has no scaler."""
        one = torch.ones((), device=self.params[0].device)
        scaled = self._runtime.scaled(one)
        return 1.0 if scaled is one else scaled.item()  # most often the device need not be waited for

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
        (seed,) = torch.randint(2**62, (1,), device="cpu").tolist()
        torch.set_rng_state(before)
        return seed

    def mean_over_processes(self, vector: list[Tensor | None]) -> list[Tensor | None]:
        """The mean of a vector over all processes; the vector itself where there is one."""
        return self._runtime.mean_over_processes(vector, self.params)

    @property
    def alone(self) -> bool:
        """Whether no other process trains along."""
        return self._runtime.is_alone

    def any_process(self, flag: bool) -> bool:
        """Whether a flag is set in any process that trains along, so that all run as many passes."""
        return self._runtime.any_process(flag, self.params[0].device)

    def rollback(self) -> None:
        """Undo what the first pass left behind: after an error the call has not happened."""
        self._start.restore()
        self._buffers_before.restore()
        set_grads(self.params, self._grads)


def _versions(params: Iterable[Tensor]) -> list[int]:
    """How often each was written into; 0 where PyTorch does not count."""
    params = list(params)
    with unseen():  # to look at it is no use of a parameter
        try:
            return [version_of(p) for p in params]
        except RuntimeError:
            return [0 if p.is_inference() else version_of(p) for p in params]


def _written(params: Iterable[Tensor]) -> list[tuple[int, int]]:
    """Which ``.grad`` each has, and how often it was written into."""
    with unseen():
        return [(0, 0) if g is None else (id(g), version_of(g)) for g in (p.grad for p in params)]


def radius_ratio(radius: Tensor, rho: float) -> Tensor:
    """Realised radius over the wanted one []: 1 when all is well, 0 when nothing moved."""
    return radius / rho if rho else torch.ones_like(radius)
