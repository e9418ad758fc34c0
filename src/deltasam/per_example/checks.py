"""The check of a step against plain PyTorch, which shares nothing with what it checks.

The closure runs again, untouched: loss, what the model returns and every gradient must be those of the recorded pass.
One example is drawn: all weights are moved as its own are, and what an ordinary forward and backward then make of it
must be what the engine makes of it while the others stay. And by value: some examples are moved, and of the others
nothing may change.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltasam.core import vectors
from deltasam.core.closeness import close, rounding_of, rounding_of_tf32
from deltasam.core.closure import losses_of
from deltasam.core.passes import Passes
from deltasam.core.repeats import CHANGES
from deltasam.core.torch_internals.modules import BatchNorm
from deltasam.core.vectors import HALF_DTYPES, Vector, wide
from deltasam.per_example.example_gradients import ExampleGradients
from deltasam.per_example.plain import LOSSES, Plain, moved_run, plain_run, returned_by, through_rows
from deltasam.per_example.recorder import Record, Use
from deltasam.per_example.separation import Looks, Rows, RowsOfUses, Separation, selections
from deltasam.per_example.tracing import HIDDEN

# How far weights are moved for a look: by so much of the loss, to first order, and of the weights at most.
_OF_LOSS, _OF_WEIGHTS = 0.1, 0.05
_TRIES = 4

# The loss is multiplied so for a look, unless the type has no room for it: a backward must be linear.
_TIMES = 2.0**10

WHOLE = "the model"
"""Stands for the name of a parameter where a reason holds for all of them."""

_SAME = "a closure must do the same each time"
_ALONE = (
    "examples interact in a way that gradients do not show (a statistic of the batch without gradient, a gradient "
    "hook, a backward that looks at the whole batch), a hook or a backward is not linear (it clips, say), or a "
    "function computes otherwise with a copy for each example"
)
_CHANGES_WATCHED = (
    "its forward pass gives another result while its functions are watched: it keeps state in Python attributes (use "
    "deltasam.in_later_pass()), or uses parameters in a way that copies for each example do not follow"
)


def coupling_layers(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Modules in which the examples of a batch always meet: why, by name."""
    return {
        name: f"{type(module).__name__} in training mode normalises over the batch, so examples meet in it; call "
        f"eval() on it, or use GroupNorm or LayerNorm"
        for name, module in modules.items()
        if isinstance(module, BatchNorm) and (module.training or module.running_mean is None)
    }


def complex_parameters(parameters: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """Parameters that are complex numbers: why they are not covered, by name."""
    return {name: "is complex: norms are of real numbers" for name, p in parameters.items() if p.is_complex()}


def find_indivisible_rows(uses: Sequence[Use], examples: int, names: Mapping[int, str]) -> dict[str, str]:
    """Parameters that meet a number of rows which the examples do not divide: why, by name."""
    return {
        names[id(p)]: f"meets {use.shape[0]} rows, which {examples} examples do not divide; the examples must be the "
        f"first axis, each with as many rows"
        for use in uses
        for p in use.parameters
        if use.shape[0] % examples
    }


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        reasons: Why the recorded pass cannot be trusted, by the names of parameters; empty where it can.
        conclusive: Whether the gradient showed anything: not 0, and finite.
        losses_apart: Whether the loss of one example depends on no other.
        of_single_uses: Whether the reasons are of the uses of these parameters alone: with these as constants the
            others may be exact.
    """

    reasons: Mapping[str, str]
    conclusive: bool = True
    losses_apart: bool = True
    of_single_uses: bool = False


@dataclass(frozen=True)
class _Probe:
    """An engine's pass with some groups moved: its losses and returned tensors, with graphs, and the rows of all."""

    shown: list[Tensor]
    rows: list[Rows]


class Check:
    """One check of a recorded pass.

    Args:
        model: The model.
        passes: Of the step; the first one has run.
        record: Of it.
        losses: What it gave, the loss [] or losses [n].
        gradients: Of its groups of examples; they are not changed.
        seed: Draws an example.
    """

    def __init__(
        self,
        model: nn.Module,
        passes: Passes,
        record: Record,
        losses: Tensor,
        gradients: ExampleGradients,
        *,
        seed: int,
    ) -> None:
        self._model, self._passes, self._record, self._gradients = model, passes, record, gradients
        self._shown = [losses.detach(), *(t.detach() for t in record.returned)]
        self._hidden = self._find_hidden_uses(losses)
        self._n, self._groups = record.examples(losses), gradients.groups
        self._norms, self._still = gradients.norms().detach(), gradients.zeros()
        self._radius, self._looks, self._seed = self._far(), Looks(self._groups), seed
        self._group = self._drawn(seed)
        # Of sharded weights this process has whole ones while they are used, which are those that were recorded.
        self._whole = list(record.parameters.values()) if passes.sharded else None
        trained = (name for name, p in model.named_parameters() if p.requires_grad)
        self._names = list(record.parameters if passes.sharded else trained)
        dtypes = {*(use.dtype for use in record.uses), *(p.dtype for p in model.parameters()), losses.dtype}
        self._tolerance = rounding_of(*(d for d in dtypes if d.is_floating_point), *record.lowered)
        self._times = _TIMES if torch.float16 not in {*dtypes, *record.lowered} else 1.0
        if any(p.is_cuda for p in passes.params):
            self._tolerance = max(self._tolerance, rounding_of_tf32())

    def verdict(self) -> Verdict:
        """Run the check."""
        if not self._norms.isfinite().all():
            return Verdict({}, conclusive=False)  # a loss scale was too large; the next batch will show
        drawn = self._examples(self._group)
        # Where parameters are left out, or hooks are there, no uses tell that the examples' gradients add up.
        doubtful = self._record.hooked or len(self._names) > len(self._record.parameters)
        plain = plain_run(
            self._model, self._passes, self._n, drawn, self._times, self._whole, with_rest=doubtful and self._groups > 1
        )
        size = vectors.norm(plain.total)
        if not size.isfinite():
            return Verdict({}, conclusive=False)
        reasons = (
            self._find_forward_mismatch(plain) or self._find_gradient_mismatch(plain) or self._find_missing_terms(plain)
        )
        if reasons or not size:
            return Verdict(reasons, conclusive=False, of_single_uses=WHOLE not in reasons)
        for _ in range(_TRIES):
            if (verdict := self._by_value(plain)) is not None:
                return verdict
            self._radius /= 10
        return Verdict({}, conclusive=False)

    # The recorded pass beside the plain one.

    def _find_forward_mismatch(self, plain: Plain) -> dict[str, str]:
        if self._same(self._shown, plain.shown):
            return {}
        watched = Record(self._record.structure, skip=set(self._names) - set(self._record.parameters), verify=True)
        with watched.open(), self._passes.at() as point:
            there = [losses_of(point.output), *watched.returned]
        with returned_by(self._model) as returned, self._passes.at() as point:
            again = [losses_of(point.output), *returned]
        if self._same(there, plain.shown) or not self._same(again, plain.shown):
            return {WHOLE: CHANGES}
        return watched.refusals or {WHOLE: _CHANGES_WATCHED}

    def _same(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
        return len(a) == len(b) and all(close(x, y, self._tolerance) for x, y in zip(a, b, strict=True))

    def _find_gradient_mismatch(self, plain: Plain) -> dict[str, str]:
        parameters = self._record.parameters
        found = dict(zip(parameters, self._gradients.totals(parameters.values()), strict=True))
        aligned = [found.get(name) for name in self._names]
        wrong = {*self._hidden, *self._other_gradients(aligned, plain.total)}
        hooked = " (a gradient hook on a tensor of the forward pass was seen)" if self._record.hooked else ""
        return {name: HIDDEN + hooked for name in parameters if name in wrong}

    def _find_hidden_uses(self, losses: Tensor) -> set[str]:
        """The parameters that the losses depend on by other ways than through their uses, whatever the gradient is."""
        uses = {(use.output.node, use.output.output_nr): use.came_from for use in self._record.uses}
        waiting: list[tuple[Any, int]] = [(losses.grad_fn, losses.output_nr)]
        seen, found = set(waiting), set()
        while waiting:
            edge = node, _ = waiting.pop()
            if edge in uses:  # from here on only what the examples came from
                following = list(uses[edge])
            else:
                found.add(id(getattr(node, "variable", None)))
                overwritten = node.name() == "torch::autograd::CopyBackwards"  # its first input, which gets no gradient
                following = list(node.next_functions)[overwritten:]
            new = [edge for edge in following if edge[0] is not None and edge not in seen]
            seen.update(new)
            waiting += new
        return {name for key, name in self._record.names.items() if key in found}

    def _find_missing_terms(self, plain: Plain) -> dict[str, str]:
        if not plain.rest or not self._other_gradients(
            vectors.times(vectors.plus(plain.own, plain.rest), 1 / plain.times), plain.total
        ):
            return {}
        return {WHOLE: "the gradient of the batch is not the sum of the gradients of its examples; " + _ALONE}

    def _other_gradients(self, found: Vector, expected: Vector) -> list[str]:
        """The names of the parameters whose gradients are others than they should be."""
        pairs = zip(self._names, found, expected, strict=True)
        there = [(name, a, b) for name, a, b in pairs if not (a is None and b is None)]
        far = _norms_of(lambda: (_difference(a, b) for _, a, b in there))
        known = iter(_norms_of(lambda: (b for *_, b in there if b is not None)))
        sizes = [0.0 if b is None else next(known) for *_, b in there]
        total = sum(size * size for size in sizes) ** 0.5
        # Measured also against the whole gradient: a key's bias, say, has a gradient of 0 but for rounding.
        return [
            name
            for (name, *_), distance, size in zip(there, far, sizes, strict=True)
            if not distance <= self._tolerance * (size + 0.01 * total)
        ]

    # By value, with weights moved.

    def _by_value(self, plain: Plain) -> Verdict | None:
        """None where something is not finite with weights that are moved so far."""
        separation = Separation()
        for moved in selections(self._groups, self._group, self._seed):
            with self._probe(moved, stirred=True) as probe:
                separation.add(moved.long(), probe.rows)
        only = torch.arange(self._groups, device="cpu") == self._group
        with self._probe(only) as probe:
            separation.add(2 * only.long(), probe.rows)
            if separation.uneven or len(probe.shown) != len(self._shown):
                return Verdict({WHOLE: "its forward pass does other things when weights are moved; " + _SAME})
            if not _finite(probe.shown):
                return None
            shown = [i for i, t in enumerate(probe.shown) if t.ndim]
            apart = LOSSES in shown and not separation.is_changed(-len(shown))
            if reasons := self._find_batch_mixing(separation) or self._find_misordered_rows(separation, apart=apart):
                return Verdict(reasons)
            told_apart = self._radius and plain.through and (apart or plain.through != (LOSSES,))
            if told_apart:
                rows = [probe.shown[i][self._examples(self._group)].detach() for i in plain.through]
                through = through_rows([probe.shown[i] for i in plain.through], plain.slopes, slice(None))
                found = self._passes.grad(through)
        if told_apart:
            other = self._find_example_mismatch(plain, rows, found)
            return None if other is None else Verdict(other, losses_apart=apart)
        with self._probe(torch.zeros_like(only)) as probe:
            multiplied = self._passes.grad(self._times * probe.shown[LOSSES].sum(), self._whole)
        found = vectors.times(multiplied, 1 / self._times)
        return Verdict(self._find_second_pass_mismatch(found, plain.total), losses_apart=apart)

    def _find_batch_mixing(self, separation: Separation) -> dict[str, str]:
        reason = (
            "what meets it depends on other examples: examples interact inside the model (statistics of the batch, "
            "packed sequences, rows in another order, an axis in front of that of the examples)"
        )
        return dict.fromkeys(next(filter(None, separation.changed), ()), reason)

    def _find_misordered_rows(self, separation: Separation, *, apart: bool) -> dict[str, str]:
        """Parameters whose rows are not known to belong to the examples in turn: nothing that comes out shows it."""
        if apart:
            return {}  # each loss is of its own example alone
        of_examples = [i for i, t in enumerate(self._shown) if i != LOSSES and t.ndim and len(t) == self._n]
        with_rows = [i for i, t in enumerate(self._shown) if t.ndim]
        changed = {i: separation.is_changed(with_rows.index(i) - len(with_rows)) for i in of_examples}
        shows = _before([self._record.returned[i - 1].grad_fn for i in of_examples if not changed[i]])
        mixes = _before([self._record.returned[i - 1].grad_fn for i in of_examples if changed[i]])
        wrong = (
            f"meets rows that do not belong to {self._n} examples in turn, as many to each (packed or unpadded "
            f"sequences, an axis in front of that of the examples), or all that the model returns depends on several "
            f"examples (a matrix of similarities): return the embeddings as well"
        )
        unknown = (
            f"meets rows of which nothing shows that they belong to {self._n} examples in turn: neither losses of one "
            f"example each nor what the model returns; return one of them"
        )
        found: dict[str, str] = {}
        for use in self._record.uses:
            if use.output.node in shows:
                continue
            if use.output.node in mixes or use.shape[0] != self._n:
                reason = wrong if use.output.node in mixes or len(self._shown[LOSSES].shape) else unknown
                found.update((self._record.names[id(p)], reason) for p in use.parameters)
        return found

    def _find_example_mismatch(self, plain: Plain, rows: Sequence[Tensor], found: Vector) -> dict[str, str] | None:
        """What the engine makes of the drawn example beside an ordinary pass with all weights moved as its own.

        None where that is not finite.

        Args:
            plain: The ordinary pass at the weights as they are.
            rows: Of the drawn example, by the engine.
            found: The gradient by the engine, with the drawn example moved and no other.
        """
        if any(p.dtype in HALF_DTYPES for p in self._record.parameters.values()):
            return {}  # such weights cannot be moved so little: the engine is the exact one
        own = [g if name in self._record.parameters else None for name, g in zip(self._names, plain.own, strict=True)]
        length = vectors.length(own)
        if not close(length.norm / plain.times, self._norms[self._group], self._tolerance):
            return {WHOLE: "the norm of one example's gradient is another when the example is alone; " + _ALONE}
        expected = vectors.plus(plain.total, plain.own, -1 / plain.times)
        examples = self._examples(self._group)
        there, own_there = moved_run(self._model, self._passes, plain, own, self._radius / length.value, examples)
        if not _finite(there) or not vectors.norm(own_there).isfinite():
            return None
        if not all(close(a, b, self._tolerance) for a, b in zip(rows, there, strict=True)):
            return {WHOLE: "with its own weights moved an example comes out otherwise than it does alone; " + _ALONE}
        return self._find_second_pass_mismatch(found, vectors.plus(expected, own_there, 1 / plain.times))

    def _find_second_pass_mismatch(self, found: Vector, expected: Vector) -> dict[str, str]:
        wrong = self._other_gradients(found, expected)
        none = [n for n, a, b in zip(self._names, found, expected, strict=True) if (a is None) != (b is None)]
        reason = "would get another gradient in the second pass than an ordinary pass with the same weights gives it; "
        return dict.fromkeys([*wrong, *none], reason + _ALONE)

    @contextmanager
    def _probe(self, moved: Tensor, *, stirred: bool = False) -> Iterator[_Probe]:
        """The engine's second pass, with some groups moved [g]; a backward belongs inside.

        Args:
            moved: Which.
            stirred: Parameters whose gradient is 0 today are moved as well: it will not stay so.
        """
        able = moved.to(self._norms.device) & (self._norms > 0)
        steps = self._gradients.scaled(torch.where(able, self._radius / self._norms, 0.0))
        if stirred:
            steps.stir(self._still, torch.where(able, self._radius, 0.0))
        perturbed = RowsOfUses(self._record, steps, looks=self._looks)
        with ExitStack() as stack:
            returned = stack.enter_context(returned_by(self._model))
            stack.enter_context(perturbed)
            with perturbed.noting():
                point = stack.enter_context(self._passes.at())
            shown = [losses_of(point.output), *returned]
            rows = [self._looks.at(t) for t in shown if t.ndim] if len(shown) == len(self._shown) else []
            yield _Probe(shown, [*perturbed.rows, *rows])

    def _far(self) -> float:
        """How far to move for a look: so far that it shows, and near enough for rounding to stay small."""
        losses = self._shown[LOSSES]
        share = float(losses.abs().sum()) / self._groups
        able = self._norms[(self._norms > 0) & self._norms.isfinite()]
        slope = float(able.median()) / self._passes.loss_scale() if len(able) else 0.0
        most = _OF_WEIGHTS * float(vectors.norm([p.detach() for p in self._passes.params]))
        return min(_OF_LOSS * (share + 0.01) / slope, most) if slope else 0.0

    def _drawn(self, seed: int) -> int:
        """A group that has a direction to go."""
        able = [i for i, norm in enumerate(self._norms.tolist()) if 0 < norm < float("inf")]
        return random.Random(seed).choice(able or [0])

    def _examples(self, group: int) -> slice:
        m = self._n // self._groups
        return slice(group * m, (group + 1) * m)


def _difference(a: Tensor | None, b: Tensor | None) -> Tensor:
    """What two gradients are apart, one of which may not be there."""
    if a is not None and b is not None:
        return a.to(b.dtype) - b
    return next(g for g in (a, b) if g is not None)


def _norms_of(tensors: Callable[[], Iterable[Tensor]]) -> list[float]:
    """The norm of each, in one transfer; one is made after the other, and none is kept."""
    norms = [torch.linalg.vector_norm(wide(t.detach())) for t in tensors()]
    found: list[float] = torch.stack([n.to(norms[0].device) for n in norms]).tolist() if norms else []
    if all(map(math.isfinite, found)) or norms[0].device.type == "mps":
        return found
    # With a large loss scale squares may be infinite where gradients are not.
    return [float(torch.linalg.vector_norm(t.detach(), dtype=torch.float64)) for t in tensors()]


def _finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)


def _before(roots: Sequence[Any]) -> set[Any]:
    """All nodes of a graph that some of its nodes depend on, and these."""
    waiting, seen = list(roots), set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(following for following, _ in node.next_functions)
    return seen
