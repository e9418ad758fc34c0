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
from deltasam.core.collectives import mean_over_processes
from deltasam.core.dropout_masks import DropoutMasks
from deltasam.core.given_gradient import standing_for
from deltasam.core.restore import Buffers, RandomState, WeightStore, accelerators, moved, reseed
from deltasam.core.reuse import Reuse, ReuseHistory, same_gradient
from deltasam.core.runtime import Runtime
from deltasam.core.sharding import local, refuse_unreduced, reshard, sharded_as
from deltasam.core.structure import Structure
from deltasam.core.torch_internals.backwards import grads_aside, grads_of, refuse_reduction, set_grads
from deltasam.core.torch_internals.graph import REENTRANT, Graph, graph_of
from deltasam.core.torch_internals.modes import unseen
from deltasam.core.torch_internals.tensors import number_of_hooks, runs_after_gradient, version_of
from deltasam.core.vectors import Length, Vector

_LATER: ContextVar[bool] = ContextVar("later", default=False)

Closure = Callable[[], Any]


def in_later_pass() -> bool:
    """Whether the closure is being run again on the same batch, so that what it counts or logs was counted before."""
    return _LATER.get()


def set_later(later: bool) -> None:
    """Set what ``in_later_pass`` returns."""
    _LATER.set(later)


@dataclass(frozen=True)
class PerturbedPass:
    """A later pass at moved weights."""

    output: Any
    """The closure's output at these weights."""
    radius: Callable[[], Tensor]
    """Computes the actual distance [] of the weights from their origin, after rounding. Valid inside the pass."""


class Passes:
    """The first pass, and any number of later passes.

    Attributes:
        structure: Structure of the model at the time of the call.
        params: The trainable parameters at that time, each once.
        moves_nothing: Whether the weights should have moved in ``descend``, but the ascent was exactly 0.
        returned: The model's outputs in the last pass, one per call of the model, if ``watch_model`` was called.
        ran_inner_backwards: Whether a backward ran inside one of the gradients taken: its result went to ``.grad``, and
            only gradients with respect to parameters include it.
    """

    def __init__(self, model: nn.Module, closure: Closure, runtime: Runtime, store: WeightStore) -> None:
        if not torch.is_grad_enabled():
            raise RuntimeError("backward() was called under torch.no_grad(); call it with gradients enabled")
        self.structure = Structure(model)
        self._sharded = self.structure.sharded
        if self._sharded:
            reshard(self._sharded)  # a forward without a backward may have left the root's weights unsharded
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
        self._reuse: Reuse | None = None
        self._watching, self.returned = False, list[Any]()
        self.moves_nothing = self.ran_inner_backwards = self._writes_weights = False
        self._start, self._buffers_before = RandomState(self._devices), self._buffers_now()
        self._grads = grads_of(self.params)

    def first(self) -> Any:
        """Run the closure at the unperturbed weights and return its output. Call it once, before any other pass."""
        before = _versions(self.params)
        with self._masks.record(), self._reuse.keep() if self._reuse else nullcontext():
            output = self._forward()
        self._writes_weights = before != _versions(self.params)
        self._end, self._buffers = RandomState(self._devices), self._buffers_now()
        return output

    def watch_model(self) -> None:
        """Keep what the model returns in each pass from now on."""
        self._watching = True

    def keep_outputs(self, moving: frozenset[str], history: ReuseHistory) -> None:
        """Let ``descend`` use outputs of the first pass again, where they depend on no moving parameter.

        Call it before ``first``; the graph of the first pass is in memory until ``descend`` then.

        Args:
            moving: Names of the parameters that will move.
            history: What checks have found so far; it is updated.
        """
        self._reuse = Reuse(self.structure, moving, self._devices, self._masks, history)

    @contextmanager
    def at(
        self,
        vector: Vector | None = None,
        factor: float = 1.0,
        *,
        scales: Vector | None = None,
        fresh: bool = False,
        guarded: bool = False,
        reusing: bool = False,
    ) -> Iterator[PerturbedPass]:
        """A later pass at the weights moved by ``factor * vector``; run forward *and* backward inside the context.

        Args:
            vector: One tensor per parameter, or None where it does not move. None: nothing moves.
            factor: Scale of the vector.
            scales: Units in which the radius is measured, one tensor per parameter.
            fresh: Whether to draw other dropout masks than the first pass, the same in every such pass of the step.
            guarded: Whether to restore weights that do not move as well, in case the closure writes into them.
            reusing: Whether to use outputs of the first pass again; its graph is used up by a backward.
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
                reuse = self._reuse.give() if self._reuse and reusing and not guarded else nullcontext()
                with nullcontext() if fresh else self._masks.replay(), reuse:
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
                reshard(self._sharded)  # gathered weights are copies of the moved ones
                self._end.restore()
                self._buffers.restore()

    @contextmanager
    def first_at(
        self, vector: Vector, factor: float, *, params: Sequence[nn.Parameter] | None = None
    ) -> Iterator[PerturbedPass]:
        """The first pass, in place of ``first``, at the weights moved by ``factor * vector``; run its backward inside.

        For a method whose only pass is at other weights: it advances the random state and the buffers.

        Args:
            vector: One tensor per parameter, or None where it does not move.
            factor: Scale of the vector.
            params: The parameters that the vector is for, which may be frozen; None: ``params``.
        """
        moving = params or self.params
        # Guarded: a hook that steps an optimizer in the backward writes into weights that do not move, too.
        with moved(moving, vector, factor, self.store, guarded=params is None) as (weights, saved):
            which = [i for i, v in enumerate(vector) if v is not None]
            params = [moving[i] for i in which]
            if params and len(weights) > len(params):  # guarded: all of them are here
                weights, saved = [weights[i] for i in which], [saved[i] for i in which]
            reshard(self._sharded)
            try:
                before = _versions(self._named.values())
                output = self.first()
                yield PerturbedPass(output, lambda: vectors.distance(weights, saved, of=params))
                if self._writes_weights or before != _versions(self._named.values()):
                    raise RuntimeError(
                        "the pass wrote into parameters while they were perturbed (an optimizer that steps in a "
                        "gradient hook, an embedding's max_norm?), which would be undone; step after backward() has "
                        "returned"
                    )
            finally:
                reshard(self._sharded)

    def _refuse_writes(self, before: list[int]) -> None:
        """Raise if a later forward wrote into parameters: it would not start from the values the first one did."""
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
        """Gradient of a loss [] with respect to ``params``, or to other tensors ``wrt``; ``.grad`` is not touched.

        Gradients of parameters are what ``loss.backward()`` would add to ``.grad``, including inner backwards that it
        runs: in hooks of a detached leaf (GradCache), in checkpoints. Those of other tensors follow the graph alone;
        ``ran_inner_backwards`` then tells whether there is more than the graph.

        Where the weights are sharded, the gradient for ``params`` is the mean over all processes.

        Raises:
            ValueError: The loss does not depend on any of ``params``.
            RuntimeError: The result would be wrong: reentrant checkpoints between the loss and tensors that are not
                parameters, inner backwards where gradients are reduced over processes, DDP's first static graph.
        """
        graph = self.check_autograd_graph(loss)
        of_parameters = wrt is None or any(isinstance(w, nn.Parameter) for w in wrt)
        # With all leaves among its inputs, autograd visits the whole graph, and so runs the backwards inside it.
        # (In the graph, sharded weights are unsharded parameters, whose .grad belongs to FSDP.)
        whole = (leaf for leaf in graph.leaves if self.sharded and isinstance(leaf, nn.Parameter))
        known = self._numbers.keys() | set(map(id, whole))
        others = [leaf for leaf in graph.leaves if id(leaf) not in known] if of_parameters else []
        plain_only = graph.reentrant or any(map(runs_after_gradient, others))
        if plain_only:
            self._refuse_where_no_plain_backward(wrt)
        by_backward = plain_only or (wrt is None and self.sharded)
        targets: list[Any] = list(self.params if wrt is None else wrt)
        before = _versions(self.params)
        # FSDP without gradient synchronisation may write an earlier micro-batch's gradients into .grad meanwhile.
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
        """Walk the graph of a pass, once.

        Raises:
            RuntimeError: It is the first graph under DDP's static graph.
        """
        if self._graph is None:
            self._graph = graph_of(loss, self._numbers)
        return self._graph

    def _refuse_where_no_plain_backward(self, wrt: Sequence[Any] | None) -> None:
        """Refuse what a plain backward cannot provide: reentrant checkpoints run in a plain backward only."""
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
        # Sharded weights are other tensors in the graph, and FSDP adds to their gradients without a version bump.
        unchanged = before == _written(self.params) and not self.sharded
        if unchanged and self._numbers.keys().isdisjoint(map(id, graph_of(loss).leaves)):
            raise self._independent()
        return loss.detach()

    def accumulate(self, vector: list[Tensor | None], loss: Tensor) -> None:
        """Add a vector to ``.grad`` in place of a loss's gradient, reduced over processes as that would be.

        Args:
            vector: One tensor per parameter, or None, scaled as the results of ``grad`` are. A parameter that the last
                forward has used must have an entry. The list is emptied: its tensors become ``.grad``, without a copy
                where nothing else holds them.
            loss: Loss [] that stands for it where a training stack looks at the loss.

        Raises:
            RuntimeError: The weights are sharded: their gradients are reduced inside a backward of the model only.
        """
        if self._sharded:
            raise RuntimeError("the gradient of sharded weights can only be filled by a backward through the model")
        if any(map(number_of_hooks, self.params)):
            raise RuntimeError(
                "a hook is registered on a parameter (p.register_hook), and would see this method's gradient twice: "
                "when it is taken, and when it is put together; change .grad after backward() instead, or use sam"
            )
        known = [(p, v) for p, v in zip(self.params, vector, strict=True) if v is not None]
        params, gradients = [p for p, _ in known], [v for _, v in known]
        vector.clear()
        known.clear()
        self._runtime.backward(standing_for(loss.detach(), params, gradients, self.loss_scale()))

    def plain_forward(self) -> Any:
        """Run the closure for a method without later passes, so that nothing is saved for one."""
        return self._forward()

    def _buffers_now(self) -> Buffers:
        return Buffers(self.structure.modules.values())

    def _forward(self) -> Any:
        """Run the closure."""
        self._graph = None
        before = _written(self.params)
        if self._watching:
            self.returned = []
            hook = self._model.register_forward_hook(lambda *call: self.returned.append(call[-1]))
            try:
                output = self._closure()
            finally:
                hook.remove()
        else:
            output = self._closure()
        if before != (after := _written(self.params)):
            changed = [p.grad for p, was, now in zip(self.params, before, after, strict=True) if was != now]
            if any(g is not None and bool((g.coalesce().values() if g.is_sparse else g).any()) for g in changed):
                raise RuntimeError(
                    "the closure has written into .grad of the parameters: it runs a backward itself; it should return "
                    "the loss, and the method takes its gradient"
                )
        return output

    def descend(
        self,
        ascent: list[Tensor | None],
        rho: float,
        *,
        length: Length | None = None,
        scales: Vector | None = None,
        loss: Callable[[Any], Tensor] = loss_of,
    ) -> dict[str, Tensor]:
        """Fill ``.grad`` at the adversarial weights ``w + rho * ascent / norm``.

        If the norm is zero, infinite or NaN, nothing moves and the step is a plain one.

        Args:
            ascent: The direction, one tensor per parameter. The list is emptied: its memory, as much as the model's,
                is free during the pass.
            rho: Radius of the perturbation.
            length: Length of the ascent, in the units of the radius; None: the Euclidean norm.
            scales: Units of the radius, one tensor per parameter; None: Euclidean.
            loss: What is descended on [], from the closure's output at the adversarial weights: its mean loss.

        Returns:
            The metrics ``perturbed_loss``, ``ascent_norm`` and ``radius_ratio``.
        """
        length = vectors.length(ascent) if length is None else length
        factor = vectors.length_to(rho, length)
        self.moves_nothing = rho > 0 and length.value == 0
        reusing = self._may_reuse(ascent, factor, loss)
        moving = self.at(list(ascent), factor, scales=scales, reusing=reusing)
        ascent.clear()
        with moving as point:
            perturbed_loss = self.backward(loss(point.output))
            ratio = radius_ratio(point.radius(), rho)
        return {"perturbed_loss": perturbed_loss, "ascent_norm": length.norm, "radius_ratio": ratio}

    def _may_reuse(self, ascent: Vector, factor: float, loss: Callable[[Any], Tensor]) -> bool:
        """Whether the second pass may use outputs of the first again; checks it where a check is due."""
        reuse = self._reuse
        if reuse is None or self.any_process(not reuse.is_possible):
            return False
        history, behaviour = reuse.history, reuse.behaviour
        history.steps += 1
        if not self.any_process(history.is_due(behaviour)):
            return True
        try:
            with self.at(ascent, factor, reusing=True) as point:
                found = self.grad(loss(point.output))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # noqa: BLE001  # whatever it is: a pass that runs everything shows whether it is the closure's
            found = []
        with self.at(ascent, factor) as point:
            expected = self.grad(loss(point.output))
        wrong = not found or not same_gradient(found, expected)
        history.exact[behaviour] = not self.any_process(wrong)
        return False  # the graph of the first pass is used up

    def loss_scale(self) -> float:
        """The factor by which the runtime scales every loss before a gradient is taken; 1 without a scaler."""
        one = torch.ones((), device=self.params[0].device)
        scaled = self._runtime.scaled(one)
        return 1.0 if scaled is one else scaled.item()  # without a scaler, no device sync

    @property
    def sharded(self) -> bool:
        """Whether the weights are sharded across processes, so that all processes have the same perturbation."""
        return bool(self._sharded)

    def noise(self, params: Sequence[nn.Parameter] | None = None) -> list[Tensor]:
        """Standard normal noise of the parameters' shapes, derived from the random state without advancing it.

        Args:
            params: The parameters, which may be frozen; None: ``params``.
        """
        params = self.params if params is None else params
        seed = self.seed()
        if self._sharded:
            seed += torch.distributed.get_rank()  # shards need independent noise
        generator = torch.Generator().manual_seed(seed)
        parts = self.store.gaussian([local(p.data) for p in params], generator)
        return [sharded_as(z, p) for z, p in zip(parts, params, strict=True)]

    def seed(self) -> int:
        """A seed derived from the random state without advancing it."""
        before = torch.get_rng_state()
        (seed,) = torch.randint(2**62, (1,), device="cpu").tolist()
        torch.set_rng_state(before)
        return seed

    @property
    def begins_step(self) -> bool:
        """Whether ``.grad`` was empty before this call: its gradient is the first of those that are accumulated."""
        return all(g is None for g in self._grads)

    def mean_over_processes(self, vector: list[Tensor | None]) -> list[Tensor | None]:
        """The mean of a vector over all processes; the vector itself in a single process."""
        return self._runtime.mean_over_processes(vector, self.params)

    def mean_of_number(self, value: float) -> float:
        """The mean of a number over all processes."""
        if self.alone:
            return value
        (mean,) = mean_over_processes([torch.tensor([value], device=self.params[0].device)], self._runtime.group)
        return float(mean)

    @property
    def alone(self) -> bool:
        """Whether there is a single process."""
        return self._runtime.is_alone

    def any_process(self, flag: bool) -> bool:
        """Whether a flag is set in any process, so that all processes run the same number of passes."""
        return self._runtime.any_process(flag, self.params[0].device)

    def rollback(self) -> None:
        """Undo the first pass's side effects, so that a failed call leaves no trace."""
        self._start.restore()
        self._buffers_before.restore()
        set_grads(self.params, self._grads)


def _versions(params: Iterable[Tensor]) -> list[int]:
    """Version counter of each tensor; 0 where PyTorch keeps none (inference tensors)."""
    params = list(params)
    with unseen():  # reading a version must not be traced as a use of the parameter
        try:
            return [version_of(p) for p in params]
        except RuntimeError:
            return [0 if p.is_inference() else version_of(p) for p in params]


def _written(params: Iterable[Tensor]) -> list[tuple[int, int]]:
    """Identity and version counter of each parameter's ``.grad``."""
    with unseen():
        return [(0, 0) if g is None else (id(g), version_of(g)) for g in (p.grad for p in params)]


def radius_ratio(radius: Tensor, rho: float) -> Tensor:
    """Actual radius divided by the requested one []: 1 is ideal, 0 means that nothing moved."""
    return radius / rho if rho else torch.ones_like(radius)
