"""What each method should give, straight from its equation: deep copies, plain loops, one example at a time.

Imports nothing of deltasam, so it shares no mistake with what it checks. A model and a batch are here a function
``losses(model) -> [n]``; every evaluation runs on a fresh deep copy of the model and starts from the same random state,
so it sees the same dropout masks, the same buffers and the same Python attributes.

Where examples interact in the loss, the gradient of an example is the one through a copy of the weights of its own:
there a batch is two functions, ``outputs(model) -> [n, ...]`` and ``loss_of(outputs) -> [n] or []``.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Losses = Callable[[nn.Module], Tensor]
Gradient = dict[str, Tensor]


@dataclass
class Answer:
    """What a method should have done.

    Attributes:
        gradient: By name; zeros where the loss does not depend on a parameter.
        loss: Mean loss [] at the weights as they are.
        perturbed_loss: Mean loss [] at the perturbed weights.
        norms: Of the gradient of each group's summed losses [groups], for methods that have groups.
    """

    gradient: Gradient
    loss: Tensor
    perturbed_loss: Tensor | None = None
    norms: Tensor | None = None


class Generators:
    """The state of torch's and Python's generators."""

    def __init__(self) -> None:
        self._torch, self._python = torch.get_rng_state(), random.getstate()

    def restore(self) -> None:
        """Put it back."""
        torch.set_rng_state(self._torch)
        random.setstate(self._python)


def _with_weights_of_a_forward(model: nn.Module, losses: Losses, generators: Generators) -> nn.Module:
    """The model with the weights that one forward leaves: where it writes into them, all passes begin from there."""
    run = copy.deepcopy(model)
    generators.restore()
    losses(run)
    generators.restore()
    if all(map(torch.equal, model.parameters(), run.parameters())):
        return model
    model = copy.deepcopy(model)
    for p, q in zip(model.parameters(), run.parameters(), strict=True):
        p.data.copy_(q.data)
    return model


class Oracle:
    """A model and a batch, and what each method should give there.

    Args:
        model: Is never run, only copied.
        losses: One per example [n].
        only: Names of the parameters that may be perturbed; None: all.
        generators: The random state that every evaluation begins with; None: as it is now.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Losses,
        only: Collection[str] | None = None,
        generators: Generators | None = None,
    ) -> None:
        self._losses, self._generators = losses, generators or Generators()
        self._before = model
        self._model = _with_weights_of_a_forward(model, losses, self._generators)
        self._trained = [name for name, p in model.named_parameters() if p.requires_grad]
        self._only = set(self._trained if only is None else only)
        self._examples: dict[int, list[Gradient]] = {}
        self._loss: Tensor | None = None

    def erm(self) -> Answer:
        """``grad mean_i L_i(w)``."""
        losses, weights = self._at()
        return Answer(_gradient(losses.mean(), weights), losses.mean().detach())

    def after_plain(self) -> nn.Module:
        """The model as one ordinary forward and backward leave it (buffers, weights written in a forward)."""
        return self.plain_step()[0]

    def plain_step(self) -> tuple[nn.Module, Generators]:
        """The model and the random state as one ordinary forward and backward leave them."""
        model = copy.deepcopy(self._before)
        self._generators.restore()
        self._losses(model).mean().backward()
        after = Generators()
        self._generators.restore()
        return model, after

    def at(self, step: Gradient) -> Answer:
        """Plain training at moved weights, ``grad L(w + step)``."""
        losses, weights = self._at(step)
        return Answer(_gradient(losses.mean(), weights), losses.mean().detach())

    def along(self, direction: Gradient, rho: float) -> Answer:
        """``grad L(w + rho d / |d|)`` for a given direction."""
        return self._moved_answer(_scaled(direction, rho), self.erm().loss)

    def sam(self, rho: float) -> Answer:
        """``grad L(w + rho g / |g|)``."""
        return self._along(lambda g: g, rho)

    def asam(self, rho: float, eta: float) -> Answer:
        """``grad L(w + rho T^2 g / |T g|)``, T = |w| + eta where the name contains "weight", else 1."""
        units = {
            name: p.detach().abs() + eta if "weight" in name else torch.ones_like(p)
            for name, p in self._model.named_parameters()
        }
        plain = self.erm()
        scaled = {name: units[name] * g for name, g in plain.gradient.items()}
        length = norm(scaled)
        step = {name: rho / length * units[name] * v if length > 0 else 0 * v for name, v in scaled.items()}
        return self._moved_answer(step, plain.loss)

    def friendly_sam(self, rho: float, sigma: float, momentum: float, average: Gradient) -> Answer:
        """``grad L(w + rho d / |d|)``, ``d = g - sigma m``; m is changed in place, and begins with the first g."""
        plain = self.erm()
        g = plain.gradient
        direction = {name: v - sigma * average[name] if name in average else v for name, v in g.items()}
        for name, v in g.items():
            average[name] = momentum * average[name] + (1 - momentum) * v if name in average else v
        return self._moved_answer(_scaled(direction, rho), plain.loss)

    def per_instance_sam(self, rho: float, m: int = 1) -> Answer:
        """``mean over groups of m examples of grad L_group(w + rho g_group / |g_group|)``."""
        gradients = self.example_gradients(m)
        n = m * len(gradients)
        total: Gradient = {}
        perturbed = []
        for k, g in enumerate(gradients):
            losses, weights = self._at(_scaled(g, rho))
            share = losses[k * m : (k + 1) * m].sum() / n
            total = _sum(total, _gradient(share, weights))
            perturbed.append(share.detach())
        return Answer(total, self.loss(), torch.stack(perturbed).sum(), self.example_norms(m))

    def loss(self) -> Tensor:
        """Mean loss []."""
        if self._loss is None:
            self._loss = self._at()[0].mean().detach()
        return self._loss

    def example_norms(self, m: int = 1) -> Tensor:
        """Norm of the gradient of each group's summed losses [n / m]."""
        return torch.stack([norm(g) for g in self.example_gradients(m)])

    def example_gradients(self, m: int = 1) -> list[Gradient]:
        """Gradient of each group's summed losses."""
        if m not in self._examples:
            n = len(self._at()[0])
            found = []
            for start in range(0, n, m):
                losses, weights = self._at()
                found.append(self._perturbed_part(_gradient(losses[start : start + m].sum(), weights)))
            self._examples[m] = found
        return self._examples[m]

    def delta_sam(self, rho: float, *, by_norms: bool) -> Answer:
        """SAM along ``grad mean_i p_i L_i``, ``p_i ~ 0.3^2 + b_i^2 |g_i| / mean |g|``, or ``|g_i|^(1/2)``.

        ``b_i`` is how much more the loss of example i rises over rho along its gradient than that says, relatively.
        """
        size = self.example_norms()
        if by_norms or not rho:
            p = size.sqrt() if by_norms else torch.ones_like(size)
        else:
            at = self._at()[0].detach()
            ends = [_scaled(g, rho) for g in self.example_gradients()]
            there = torch.stack([self._at(end)[0].detach()[i] for i, end in enumerate(ends)])
            excess = (there - at) / (rho * size) - 1
            p = 0.09 + torch.where(size > 0, excess, 0.0) ** 2 * size / size.mean()
        return self._reweighted(p / p.mean(), rho)

    def rw_sam(self, rho: float, tilt: float) -> Answer:
        """SAM along ``grad sum_i p_i L_i``, ``p_i = exp(tilt |g_i| / mean |g|) / sum_j exp(...)``."""
        size = self.example_norms()
        p = torch.exp(tilt * size / size.mean())
        return self._reweighted(len(p) * p / p.sum(), rho)

    def estimated(self, rho: float, noise: Gradient, sigma: float, weigh: Callable[..., Tensor]) -> Answer:
        """SAM along ``grad mean_i p_i L_i``, where p is found from the losses at w, w + sigma d and w - sigma d.

        Args:
            rho: Radius.
            noise: d, by name.
            sigma: Its size.
            weigh: From the three losses [n] to weights [n] of mean 1.
        """
        away = {name: sigma * d for name, d in noise.items()}
        back = {name: -step for name, step in away.items()}
        at, above, below = (self._at(step)[0].detach() for step in (None, away, back))
        return self._reweighted(weigh(at, above, below), rho)

    def _reweighted(self, p: Tensor, rho: float) -> Answer:
        losses, weights = self._at()
        a = _gradient((p.detach() * losses).mean(), weights)
        return self._moved_answer(_scaled(a, rho), losses.mean().detach())

    def _along(self, direction: Callable[[Gradient], Gradient], rho: float) -> Answer:
        plain = self.erm()
        return self._moved_answer(_scaled(direction(plain.gradient), rho), plain.loss)

    def _moved_answer(self, step: Gradient, loss: Tensor) -> Answer:
        losses, weights = self._at(step)
        return Answer(_gradient(losses.mean(), weights), loss, losses.mean().detach())

    def _perturbed_part(self, g: Gradient) -> Gradient:
        return {name: v if name in self._only else torch.zeros_like(v) for name, v in g.items()}

    def _at(self, step: Gradient | None = None) -> tuple[Tensor, dict[str, nn.Parameter]]:
        """The losses of a fresh copy, moved, and its trained parameters."""
        model = moved_copy(self._model, step)
        self._generators.restore()
        losses = self._losses(model)
        self._generators.restore()
        named = dict(model.named_parameters())
        return losses, {name: named[name] for name in self._trained}


def of_copies(
    model: nn.Module,
    outputs: Callable[[nn.Module], Tensor],
    loss_of: Callable[[Tensor], Tensor],
    rho: float,
    n: int,
    m: int = 1,
    generators: Generators | None = None,
) -> Answer:
    """Per-instance SAM where examples interact in the loss: group k's rows come from copy k, run on the whole batch.

    Args:
        model: The model.
        outputs: Its rows [n, ...]; examples do not interact in there.
        loss_of: From rows to losses [n], or to one loss [].
        rho: Radius.
        n: Number of examples.
        m: Examples per group.
        generators: As for ``Oracle``.
    """
    generators = generators or Generators()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]

    def run(steps: Sequence[Gradient | None]) -> tuple[Tensor, list[Gradient]]:
        copies = [moved_copy(model, step) for step in steps]
        rows = []
        for k, one in enumerate(copies):
            generators.restore()
            rows.append(outputs(one)[k * m : (k + 1) * m])
        generators.restore()
        loss = loss_of(torch.cat(rows))
        parameters = [{name: dict(one.named_parameters())[name] for name in trained} for one in copies]
        loss.sum().backward()
        return loss.detach(), [_gradient(loss.detach(), weights) for weights in parameters]

    loss, ascents = run([None] * (n // m))
    perturbed, descents = run([_scaled(g, rho) for g in ascents])
    total: Gradient = {}
    for g in descents:
        total = _sum(total, {name: v / max(1, loss.numel()) for name, v in g.items()})
    norms = torch.stack([norm(g) for g in ascents])
    return Answer(total, loss.mean(), perturbed.mean(), norms)


def moved_copy(model: nn.Module, step: Gradient | None) -> nn.Module:
    """A deep copy of the model with its weights moved."""
    one = copy.deepcopy(model)
    if step is not None:
        with torch.no_grad():
            for name, p in one.named_parameters():
                if name in step:
                    p.add_(step[name])
    for p in one.parameters():
        p.grad = None
    return one


def norm(gradient: Gradient) -> Tensor:
    """Euclidean norm [] over all parameters."""
    return torch.cat([torch.zeros(0), *(v.flatten() for v in gradient.values())]).norm()


def difference(found: Gradient, wanted: Gradient) -> float:
    """Norm of the difference over the norm of what is wanted; parameters that were not found count as 0."""
    apart = {name: found[name].detach() - v if name in found else -v for name, v in wanted.items()}
    length = float(norm(wanted))
    return float(norm(apart)) / length if length > 0 else float(norm(apart))


def _scaled(direction: Gradient, rho: float) -> Gradient:
    length = norm(direction)
    return {name: v * (rho / length) if length > 0 else torch.zeros_like(v) for name, v in direction.items()}


def _sum(a: Gradient, b: Gradient) -> Gradient:
    return {name: a[name] + v for name, v in b.items()} if a else b


def _gradient(loss: Tensor, weights: dict[str, nn.Parameter]) -> Gradient:
    """By ``backward`` and ``.grad``, as training has it, also where a backward calls ``backward`` itself."""
    if loss.requires_grad:
        loss.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in weights.items()}
