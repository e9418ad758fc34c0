"""Every method written directly from its equation: slow, obvious, and independent of the rest of the library.

The oracle of the tests and of the documentation. Here a model is a function ``losses(w) -> [n]`` from weights to one
loss per example, made by ``losses_function``; nothing is moved, hooked or restored. The gradient of a method is a
dictionary from parameter name to tensor.

Where examples interact in the loss, or the model's loss is one number, an example's gradient is taken with respect to
its own copy of the weights: there a model is a function ``losses([w_1, ..., w_k])``, made by ``copies_function``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

Weights = dict[str, Tensor]
Losses = Callable[[Weights], Tensor]
LossesOfCopies = Callable[[Sequence[Weights]], Tensor]
Predict = Callable[..., tuple[Tensor, Tensor]]


def losses_function(model: nn.Module, run: Callable[[Callable[..., Any]], Tensor]) -> tuple[Losses, Weights]:
    """A model and a batch as a function of the weights, and the current weights.

    Every call starts from the random state and the buffers at the time of this call, so it sees the same dropout masks.

    Args:
        model: The model; it is not changed.
        run: Function that takes a substitute for the model and returns one loss per example [n].
    """
    losses_of_copies, weights = copies_function(model, run)
    return lambda w: losses_of_copies([w]), weights


def copies_function(model: nn.Module, run: Callable[[Callable[..., Any]], Tensor]) -> tuple[LossesOfCopies, Weights]:
    """A model and a batch as a function of several copies of the weights, and the current weights.

    With k copies the batch is k groups of consecutive examples, and each group's rows come from its own copy: the
    model runs once per copy on the whole batch, each time with the same random state, and the group's rows are taken
    from every tensor that it returns. Outputs without one row per example (a loss, say) cannot be split.

    Args:
        model: The model; it is not changed.
        run: Function that takes a substitute for the model and returns one loss per example [n], or one loss [].
    """
    random = torch.get_rng_state()
    fixed = {name: b.detach().clone() for name, b in model.named_buffers()}
    fixed |= {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    places = _places(model)

    def losses(copies: Sequence[Weights]) -> Tensor:
        torch.set_rng_state(random)
        states = [{**{name: t.clone() for name, t in fixed.items()}, **copy} for copy in copies]
        result = run(lambda *args, **kwargs: output(states, args, kwargs))
        torch.set_rng_state(random)
        return result

    def output(states: list[Weights], args: Any, kwargs: Any) -> Any:
        before = torch.get_rng_state()
        outputs = []
        for state in states:
            torch.set_rng_state(before)
            everywhere = {place: tensor for name, tensor in state.items() for place in places[name]}
            outputs.append(functional_call(model, everywhere, args, kwargs, tie_weights=False))
        return tree_map(rows_of_each, *outputs) if len(outputs) > 1 else outputs[0]

    weights = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters() if p.requires_grad}
    return losses, weights


def _places(model: nn.Module) -> dict[str, list[str]]:
    """All qualified names under which each parameter and buffer is held, one for each module that holds it.

    ``functional_call`` restores a module that has two names with another tensor than it had (seen in 2.6, 2.13, 2.15),
    so names that share a tensor are collected here, with every module under its first name.
    """
    held: dict[int, list[str]] = {}
    for prefix, module in model.named_modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            held.setdefault(id(tensor), []).append(f"{prefix}.{key}".lstrip("."))
    return {name: held[id(t)] for name, t in (*model.named_parameters(), *model.named_buffers())}


def rows_of_each(*values: Any) -> Any:
    """The first of k equal parts of the first value's rows, the second part of the second's, and so on."""
    if not isinstance(values[0], Tensor):
        return values[0]
    return torch.cat([v.unflatten(0, (len(values), -1))[i] for i, v in enumerate(values)])


def gradient(loss: Tensor, weights: Weights, *, retain_graph: bool = False) -> Weights:
    """Gradient of a loss []; zeros where it does not depend on a weight."""
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, retain_graph=retain_graph)
    return {n: torch.zeros_like(w) if g is None else g for (n, w), g in zip(weights.items(), gradients, strict=True)}


def norm(vector: Weights) -> Tensor:
    """Euclidean norm over all weights []."""
    return torch.cat([v.flatten() for v in vector.values()]).norm()


def moved(weights: Weights, vector: Weights, factor: float | Tensor) -> Weights:
    """``w + factor * v`` as new leaf tensors."""
    return {n: (w + factor * vector[n]).detach().requires_grad_() for n, w in weights.items()}


def step(rho: float, vector: Weights) -> float | Tensor:
    """The factor that scales a vector to length rho; 0 for a zero vector."""
    length = norm(vector)
    return rho / length if length > 0 else 0.0


def erm(losses: Losses, w: Weights) -> Weights:
    """``grad mean_i L_i(w)``."""
    return gradient(losses(w).mean(), w)


def sam(losses: Losses, w: Weights, *, rho: float) -> Weights:
    """``grad L(w + rho g / |g|)``."""
    g = erm(losses, w)
    return erm(losses, moved(w, g, step(rho, g)))


def asam(losses: Losses, w: Weights, *, rho: float, eta: float) -> Weights:
    """``grad L(w + rho T^2 g / |T g|)``, ``T = |w| + eta`` for weights and 1 for biases."""
    unit = {n: v.detach().abs() + eta if "weight" in n else torch.ones_like(v) for n, v in w.items()}
    scaled = {n: unit[n] * g for n, g in erm(losses, w).items()}
    return erm(losses, moved(w, {n: unit[n] * v for n, v in scaled.items()}, step(rho, scaled)))


def friendly_sam(losses: Losses, w: Weights, *, rho: float, sigma: float, momentum: float, memory: Weights) -> Weights:
    """``grad L(w + rho d / |d|)``, ``d = g - sigma m``; then ``m <- momentum m + (1 - momentum) g``.

    Args:
        losses: Per-example losses as a function of the weights.
        w: The weights.
        rho: Radius.
        sigma: Factor of the memory that is subtracted.
        momentum: Decay factor of the memory.
        memory: The average m, changed in place; empty before the first step, in which d is g and m becomes g.
    """
    g = erm(losses, w)
    d = {n: v - sigma * memory[n] for n, v in g.items()} if memory else g
    memory |= {n: momentum * memory[n] + (1 - momentum) * v for n, v in g.items()} if memory else g
    return erm(losses, moved(w, d, step(rho, d)))


def vasso(losses: Losses, w: Weights, *, rho: float, theta: float, memory: Weights) -> Weights:
    """``grad L(w + rho d / |d|)`` after ``d <- (1 - theta) d + theta g``.

    Args:
        losses: Per-example losses as a function of the weights.
        w: The weights.
        rho: Radius.
        theta: Weight of the newest gradient.
        memory: The average d, changed in place; empty before the first step, in which it becomes g.
    """
    g = erm(losses, w)
    memory |= {n: (1 - theta) * memory[n] + theta * v for n, v in g.items()} if memory else g
    return erm(losses, moved(w, memory, step(rho, memory)))


def random_sam(losses: Losses, w: Weights, *, rho: float, noise: Sequence[Tensor]) -> Weights:
    """``grad L(w + rho z / |z|)`` for given standard normal noise z."""
    z = dict(zip(w, noise, strict=True))
    return erm(losses, moved(w, z, step(rho, z)))


def flat_lora(losses: Losses, w: Weights, *, rho: float, noise: Sequence[Tensor]) -> Weights:
    """``grad L(w + e)``, ``e_ij = rho |w_i| / sqrt(n) z_ij`` for rows of n entries, without adapters.

    Weights with fewer than two axes do not move. With adapters the frozen weights move, which are not among w.

    Args:
        losses: Per-example losses as a function of the weights.
        w: The weights.
        rho: Standard deviation of the noise, relative to the root mean square of a row.
        noise: Standard normal noise z, one tensor per weight with two axes or more.
    """
    z = iter(noise)
    moves = {n: torch.zeros_like(v) for n, v in w.items()}
    for name, v in w.items():
        if v.ndim > 1:
            rows = v.detach().flatten(1)
            size = rows.norm(dim=1) / rows.shape[1] ** 0.5
            moves[name] = (size[:, None] * next(z).flatten(1)).view_as(v)
    return erm(losses, moved(w, moves, rho))


def momentum_sam(losses: Losses, w: Weights, *, rho: float, memory: Weights, momentum: float = 0.9) -> Weights:
    """``grad L(w - rho m / |m|)``; then ``m <- momentum m + (1 - momentum) grad``.

    Args:
        losses: Per-example losses as a function of the weights.
        w: The weights.
        rho: Radius.
        memory: The optimizer's average m, changed in place; empty before the first step, which is a plain one.
        momentum: Decay factor of the optimizer's average.
    """
    g = erm(losses, moved(w, memory, -step(rho, memory)) if memory else w)
    memory |= {n: (1 - momentum) * v + (momentum * memory[n] if memory else 0.0) for n, v in g.items()}
    return g


def s2_sam(losses: Losses, w: Weights, *, rho: float, memory: Weights) -> Weights:
    """``grad L(w + rho g' / |g'|)``, which is the next step's g'.

    Args:
        losses: Per-example losses as a function of the weights.
        w: The weights.
        rho: Radius.
        memory: The last step's gradient g', changed in place; empty before the first step, which is a plain one.
    """
    g = erm(losses, moved(w, memory, step(rho, memory)) if memory else w)
    memory |= g
    return g


def gsam(losses: Losses, w: Weights, *, rho: float, alpha: float) -> Weights:
    """``g_s - alpha (g - (g . g_s) / |g_s|^2 g_s)``, ``g_s = grad L(w + rho g / |g|)``."""
    g, g_s = erm(losses, w), sam(losses, w, rho=rho)
    along = sum((g[n] * g_s[n]).sum() for n in w) / norm(g_s) ** 2 if norm(g_s) > 0 else 0.0
    return {n: g_s[n] - alpha * (g[n] - along * g_s[n]) for n in w}


def wsam(losses: Losses, w: Weights, *, rho: float, gamma: float) -> Weights:
    """``g + gamma / (1 - gamma) (g_s - g)``, ``g_s = grad L(w + rho g / |g|)``."""
    g, g_s = erm(losses, w), sam(losses, w, rho=rho)
    return {n: g[n] + gamma / (1 - gamma) * (g_s[n] - g[n]) for n in w}


def looksam(losses: Losses, w: Weights, *, rho: float, k: int, alpha: float, memory: dict[str, Any]) -> Weights:
    """``g_s = grad L(w + rho g / |g|)`` in steps 0, k, 2k, ...; in the others ``g + alpha |g| / |v| v``.

    Args:
        losses: Per-example losses as a function of the weights.
        w: The weights.
        rho: Radius.
        k: Number of steps from one with two passes to the next.
        alpha: Length of v, as a fraction of that of g.
        memory: The step's number, and ``v = g_s - (g . g_s) / |g|^2 g`` of the last step with two passes; changed in
            place, empty before the first.
    """
    g, number = erm(losses, w), memory.get("number", 0)
    memory["number"] = number + 1
    if number % k:
        v = memory["v"]
        return {n: g[n] + alpha * norm(g) / norm(v) * v[n] for n in w}
    g_s = sam(losses, w, rho=rho)
    along = sum((g[n] * g_s[n]).sum() for n in w) / norm(g) ** 2 if norm(g) > 0 else 0.0
    memory["v"] = {n: g_s[n] - along * g[n] for n in w}
    return g_s


def ae_sam(
    losses: Losses, w: Weights, *, rho: float, threshold: float, momentum: float, memory: dict[str, Any]
) -> Weights:
    """``grad L(w + rho g / |g|)`` if ``|g|^2 >= mu + threshold sigma``, else ``g``.

    Args:
        losses: Per-example losses as a function of the weights.
        w: The weights.
        rho: Radius.
        threshold: Number of standard deviations.
        momentum: Decay factor of the estimates.
        memory: The estimates mu and sigma^2 of |g|^2, changed in place; empty before the first step, which is
            perturbed.
    """
    g = erm(losses, w)
    square = norm(g) ** 2
    first = not memory
    memory["mu"] = square if first else momentum * memory["mu"] + (1 - momentum) * square
    away = (square - memory["mu"]) ** 2
    memory["sigma^2"] = 0 * away if first else momentum * memory["sigma^2"] + (1 - momentum) * away
    large = square >= memory["mu"] + threshold * memory["sigma^2"].sqrt()
    return sam(losses, w, rho=rho) if first or large else g


def functional_sam(predict: Predict, w: Weights, *, rho: float) -> Weights:
    """``J(w + rho g / |g|)^T dL/dF(w)``, J the Jacobian of the logits F."""
    losses, outputs = predict(w)
    (slope,) = torch.autograd.grad(losses.mean(), outputs, retain_graph=True)
    g = gradient(losses.mean(), w)
    there = moved(w, g, step(rho, g))
    return gradient((predict(there)[1] * slope).sum(), there)


def preconditioned(g: Weights, memory: Weights, *, beta: float) -> Weights:
    """``g / (r + rms(r) / 100)``, ``r = sqrt(beta v + (1 - beta) g^2)``."""
    second = {n: beta * memory[n] if memory else torch.zeros_like(v) for n, v in g.items()}
    root = {n: (second[n] + (1 - beta) * v**2).sqrt() for n, v in g.items()}
    damping = torch.cat([r.flatten() for r in root.values()]).square().mean().sqrt() / 100
    return {n: v / (root[n] + damping) if damping > 0 else v for n, v in g.items()}


def preconditioned_sam(losses: Losses, w: Weights, *, rho: float, memory: Weights, beta: float = 0.999) -> Weights:
    """``grad L(w + rho d / |d|)``, ``d`` as in ``preconditioned``; then the optimizer updates v with the result.

    Args:
        losses: Per-example losses as a function of the weights.
        w: The weights.
        rho: Radius.
        memory: The optimizer's second moment v, changed in place; empty before the first step.
        beta: Its decay factor.
    """
    d = preconditioned(erm(losses, w), memory, beta=beta)
    result = erm(losses, moved(w, d, step(rho, d)))
    memory |= {n: (1 - beta) * v**2 + (beta * memory[n] if memory else 0.0) for n, v in result.items()}
    return result


def preconditioned_functional_sam(
    predict: Predict, w: Weights, *, rho: float, memory: Weights, beta: float = 0.999
) -> Weights:
    """``J(w + rho d / |d|)^T dL/dF(w)``, d as in ``preconditioned_sam``.

    Args:
        predict: The model.
        w: The weights.
        rho: Radius.
        memory: The optimizer's second moment, changed in place; empty before the first step.
        beta: Its decay factor.
    """
    losses, outputs = predict(w)
    (slope,) = torch.autograd.grad(losses.mean(), outputs, retain_graph=True)
    d = preconditioned(gradient(losses.mean(), w), memory, beta=beta)
    there = moved(w, d, step(rho, d))
    result = gradient((predict(there)[1] * slope).sum(), there)
    memory |= {n: (1 - beta) * v**2 + (beta * memory[n] if memory else 0.0) for n, v in result.items()}
    return result


def per_instance_sam(losses: Losses, w: Weights, *, rho: float, m: int) -> Weights:
    """``mean over groups of m examples of grad L_group(w + rho g_group / |g_group|)``."""
    n = len(losses(w))
    total = {name: torch.zeros_like(v) for name, v in w.items()}
    for start in range(0, n, m):
        g = gradient(losses(w)[start : start + m].mean(), w)
        there = moved(w, g, step(rho, g))
        for name, v in gradient(losses(there)[start : start + m].mean(), there).items():
            total[name] += v * m / n
    return total


def per_instance_functional_sam(predict: Predict, w: Weights, *, rho: float, m: int) -> Weights:
    """``mean over groups of m examples of J_group(w + rho g_group / |g_group|)^T dL_group/dF(w)``."""
    n = len(predict(w)[0])
    total = {name: torch.zeros_like(v) for name, v in w.items()}
    for start in range(0, n, m):
        losses, outputs = predict(w)
        loss = losses[start : start + m].mean()
        (slope,) = torch.autograd.grad(loss, outputs, retain_graph=True)
        g = gradient(loss, w)
        there = moved(w, g, step(rho, g))
        for name, v in gradient((predict(there)[1] * slope).sum(), there).items():
            total[name] += v * m / n
    return total


def per_instance_sam_of_copies(
    losses: LossesOfCopies, w: Weights, *, rho: float, groups: int
) -> tuple[Weights, Tensor]:
    """``sum_k d mean(L) / d w_k`` at ``w_k = w + rho g_k / |g_k|``, ``g_k = d sum(L) / d w_k``; and every ``|g_k|``.

    ``w_k`` is group k's copy of the weights.
    """
    copies = [moved(w, w, 0.0) for _ in range(groups)]
    ascents = gradients(losses(copies).sum(), copies)
    there = [moved(w, g, step(rho, g)) for g in ascents]
    descents = gradients(losses(there).mean(), there)
    total = {name: torch.stack([d[name] for d in descents]).sum(0) for name in w}
    return total, torch.stack([norm(g) for g in ascents])


def gradients(loss: Tensor, copies: Sequence[Weights]) -> list[Weights]:
    """Gradient of a loss [] with respect to each copy of the weights."""
    return [gradient(loss, copy, retain_graph=True) for copy in copies]


def rw_sam(
    losses: Losses, w: Weights, *, rho: float, tilt: float, weights: str, sigma: float, noise: Sequence[Tensor]
) -> Weights:
    """``grad L(w + rho a / |a|)``, ``a = grad sum_i p_i L_i(w)``, ``p_i = exp(tilt |g_i| / mean |g|) / sum_j ...``.

    Args:
        losses: Per-example losses as a function of the weights.
        w: The weights.
        rho: Radius.
        tilt: Strength of the weighting towards larger gradients.
        weights: ``norms``: exact gradient norms; ``slopes``: ``|L_i(w + sigma s) - L_i(w)| / sigma``, s the signs.
        sigma: Magnitude of the noise.
        noise: Noise, one tensor per weight, of which the signs s are used.
    """
    if weights == "norms":
        size = torch.stack([norm(gradient(losses(w)[i], w)) for i in range(len(losses(w)))])
    else:
        there = moved(w, {n: z.sign() for n, z in zip(w, noise, strict=True)}, sigma)
        size = (losses(there) - losses(w)).detach().abs() / sigma
    p = torch.exp(tilt * size / size.mean())
    a = gradient((p / p.sum() * losses(w)).sum(), w)
    return erm(losses, moved(w, a, step(rho, a)))


def delta_sam(
    losses: Losses,
    w: Weights,
    *,
    rho: float,
    weights: str,
    sigma: float,
    noise: Sequence[Tensor],
    more_noise: Sequence[Tensor] = (),
) -> Weights:
    """``grad L(w + rho a / |a|)``, ``a = grad mean_i p_i L_i(w)``, for given standard normal noise.

    Args:
        losses: Per-example losses as a function of the weights.
        w: The weights.
        rho: Radius.
        weights: Kind of weights, see ``delta_sam_ascent``.
        sigma: Standard deviation of the noise.
        noise: Standard normal noise, one tensor per weight.
        more_noise: A second draw, which ``curvature`` needs; the first again if empty.
    """
    a = delta_sam_ascent(losses, w, rho=rho, weights=weights, sigma=sigma, noise=noise, more_noise=more_noise)
    return erm(losses, moved(w, a, step(rho, a)))


def delta_sam_ascent(
    losses: Losses,
    w: Weights,
    *,
    rho: float,
    weights: str,
    sigma: float,
    noise: Sequence[Tensor],
    more_noise: Sequence[Tensor] = (),
) -> Weights:
    """``grad mean_i p_i L_i(w)``.

    By own curvature ``p_i ~ 0.3^2 + b_i^2 |g_i| / mean |g|``, ``b_i = (L_i(w + e_i) - L_i(w)) / rho |g_i| - 1``, with
    ``e_i = rho g_i / |g_i|``.

    Args:
        losses: Per-example losses as a function of the weights.
        w: The weights.
        rho: Radius.
        weights: ``own_curvature``: as above; ``own_slope``: ``b_i = (<grad L_i(w + e_i), g_i> / |g_i|^2 - 1) / 2``, as
            the method computes it with a scalar loss and in half precision; ``norms``: ``|g_i|^(1/2)``; ``slopes``:
            ``|L_i(w + d) - L_i(w)|^(1/2)``, scaled to mean 1, with deviations from 1 multiplied by ``1 - v / var``, v
            the variance of such a root for equal norms; ``curvature``: ``|c + c'| / 2`` with ``c`` and ``c'`` the
            second differences along d and d' over |g_i|, deviations from the mean multiplied by
            ``1 - mean (c - c')^2 / 4 var``, and no weight above four times the mean. var is the variance of the
            multiplied quantity; no factor is below 0.
        sigma: Standard deviation of the noise.
        noise: Standard normal noise for d, one tensor per weight.
        more_noise: Standard normal noise for d', one tensor per weight; that of d if empty.
    """
    n = len(losses(w))
    at = losses(w).detach()
    ways = [dict(zip(w, drawn, strict=True)) for drawn in (noise, more_noise or noise)]
    along = [[losses(moved(w, d, sign * sigma)).detach() for sign in (1.0, -1.0)] for d in ways]
    if weights == "slopes":
        p = (along[0][0] - at).abs().sqrt()
        p = p / p.mean()
        p = 1 + max(0.0, 1 - 0.18034059901609578 / float(p.var())) * (p - 1)
    else:
        own = [gradient(losses(w)[i], w) for i in range(n)]
        size = torch.stack([norm(g) for g in own])
        p = size.sqrt()
        if weights == "curvature":
            c, c_again = ((up + down - 2 * at) / size for up, down in along)
            p = (c + c_again).abs() / 2
            noisy = ((c - c_again) ** 2 / 4).mean() / p.var()
            p = p.mean() + max(0.0, 1 - float(noisy)) * (p - p.mean())
            p = torch.minimum(p / p.mean(), torch.tensor(4.0, dtype=p.dtype))
        elif weights != "norms" and rho:
            ends = [moved(w, g, step(rho, g)) for g in own]
            if weights != "own_slope":
                there = [losses(end)[i].detach() for i, end in enumerate(ends)]
                excess = (torch.stack(there) - at) / (rho * size) - 1
            else:
                far = [gradient(losses(end)[i], end) for i, end in enumerate(ends)]
                rates = [sum((far[i][name] * own[i][name]).sum() for name in w) / size[i] for i in range(n)]
                excess = (torch.stack(rates) / size - 1) / 2
            excess = torch.where(size > 0, excess, 0.0)  # without a gradient there is no direction to measure along
            p = 0.3**2 + excess**2 * size / size.mean()
    p = p / p.mean()
    p = p if p.isfinite().all() else torch.ones_like(p)
    return gradient((p * losses(w)).mean(), w)


def predict_function(
    model: nn.Module, run: Callable[[Callable[..., Any]], Tensor], embedding: nn.Module | None = None
) -> tuple[Predict, Weights]:
    """A model and a batch as a function ``predict(w, offset=None, detach=False)``, and the current weights.

    It returns one loss per example [n] and the model's logits. Every call starts from the random state at the time of
    this call; for other dropout masks make another function.

    Args:
        model: The model; it is not changed.
        run: As for ``losses_function``; calls the model once.
        embedding: The module to whose output the offset is added; with ``detach`` the output is detached first.
    """
    seen: list[Any] = []

    def remembering(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: object, **kwargs: object) -> Any:
            seen.append(call(*args, **kwargs))
            return seen[-1]

        return called

    losses, weights = losses_function(model, lambda call: run(remembering(call)))

    def predict(w: Weights, offset: Tensor | None = None, detach: bool = False) -> tuple[Tensor, Tensor]:
        seen.clear()
        if offset is None or embedding is None:
            of_each = losses(w)
        else:
            hook = embedding.register_forward_hook(lambda _m, _i, x: (x.detach() if detach else x) + offset)
            of_each = losses(w)
            hook.remove()
        return of_each, seen[0] if isinstance(seen[0], Tensor) else seen[0].logits

    return predict, weights


def symmetric_kl(x: Tensor, y: Tensor) -> Tensor:
    """``KL(p, q) + KL(q, p)`` of each prediction, for logits x of p and y of q."""
    p, q = x.softmax(-1), y.softmax(-1)
    return (p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)


def r_drop(predict: Predict, again: Predict, w: Weights, *, alpha: float, shares: Tensor) -> Weights:
    """``grad [mean_i (L_i + L_i') / 2 + alpha sum_k s_k (KL(p_k, p_k') + KL(p_k', p_k)) / 2]``.

    Args:
        predict: The model, with the dropout masks of the first forward.
        again: The model, with other masks.
        w: The weights.
        alpha: Weight of the divergence.
        shares: Weight s_k of each prediction in the mean loss.
    """
    (losses, x), (others, y) = predict(w), again(w)
    return gradient((losses + others).mean() / 2 + alpha * (shares * symmetric_kl(x, y)).sum() / 2, w)


def r3f(
    predict: Predict, again: Predict, w: Weights, *, lam: float, eps: float, drawn: Tensor, shares: Tensor
) -> Weights:
    """``grad [mean_i L_i + lam sum_k s_k (KL(p_k, q_k) + KL(q_k, p_k))]``, q from noisy embeddings without gradient.

    Args:
        predict: The model, with the dropout masks of the first forward.
        again: The model, with those of the noisy forward.
        w: The weights.
        lam: Weight of the divergence.
        eps: Magnitude of the noise.
        drawn: Noise of magnitude 1 [n, T, d], 0 at padding.
        shares: Weight s_k of each prediction in the mean loss.
    """
    (losses, x), (_, y) = predict(w), again(w, eps * drawn, detach=True)
    return gradient(losses.mean() + lam * (shares * symmetric_kl(x, y)).sum(), w)


def freelb(
    predict: Predict,
    w: Weights,
    *,
    steps: int,
    adv_lr: float,
    init_mag: float,
    max_norm: float,
    drawn: Tensor,
    lengths: Sequence[int],
) -> Weights:
    """``mean_t grad_w L(w, x + delta_t)``, ``delta_{t+1} = project(delta_t + adv_lr g / |g|)`` for each example.

    Args:
        predict: The model.
        w: The weights.
        steps: Number of gradients that are averaged.
        adv_lr: Length of an ascent step.
        init_mag: Magnitude of the initial noise: ``delta_1`` is this times the drawn noise over ``sqrt(length * d)``.
        max_norm: Largest norm of an offset; 0: unbounded.
        drawn: Noise, uniform in (-1, 1) [n, T, d], 0 at padding.
        lengths: Number of tokens of each example.
    """
    d = drawn.shape[-1]
    delta = torch.stack([init_mag * z / (n * d) ** 0.5 for z, n in zip(drawn, lengths, strict=True)])
    total = {name: torch.zeros_like(v) for name, v in w.items()}
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        loss = predict(w, delta)[0].mean()
        (ascent,) = torch.autograd.grad(loss, delta, retain_graph=True)
        for name, g in gradient(loss, w).items():
            total[name] += g / steps
        rows = []
        for row, g, n in zip(delta.detach(), ascent, lengths, strict=True):
            g[n:] = 0
            row = row + adv_lr * g / g.norm()
            rows.append(row * max_norm / row.norm() if 0 < max_norm < row.norm() else row)
        delta = torch.stack(rows)
    return total


def smart(
    predict: Predict,
    again: Predict,
    w: Weights,
    *,
    alpha: float,
    mu: float,
    step_size: float,
    sigma: float,
    steps: int,
    drawn: Tensor,
    lengths: Sequence[int],
    average: Weights,
    shares: Tensor,
) -> Weights:
    """``grad [mean_i L_i + alpha D(p, p_adversarial) + mu D(p, p_average)]``, D as in ``r3f``.

    Args:
        predict: The model, with the dropout masks of the first forward.
        again: The model, with those of the perturbed forwards.
        w: The weights.
        alpha: Weight of the smoothness term.
        mu: Weight of the proximity term.
        step_size: Step size of the ascent on D, whose gradient is divided by its largest entry in each token.
        sigma: Standard deviation of the noise the ascent starts from.
        steps: Number of ascent steps.
        drawn: Noise of magnitude 1 [n, T, d], 0 at padding.
        lengths: Number of tokens of each example.
        average: The averaged weights, constant.
        shares: Weight of each prediction in the mean loss.
    """
    losses, x = predict(w)
    delta = sigma * drawn
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        (ascent,) = torch.autograd.grad((shares * symmetric_kl(x.detach(), again(w, delta)[1])).sum(), delta)
        largest = ascent.abs().amax(-1, keepdim=True)
        rows = delta.detach() + step_size * torch.where(largest > 0, ascent / largest, 0.0)
        delta = torch.stack([torch.cat([r[:n], 0 * r[n:]]) for r, n in zip(rows, lengths, strict=True)])
    smoothness = (shares * symmetric_kl(x, again(w, delta)[1])).sum()
    proximity = (shares * symmetric_kl(x, predict(average)[1].detach())).sum()
    return gradient(losses.mean() + alpha * smoothness + mu * proximity, w)


def reference_of(method: type) -> Callable[..., Weights]:
    """The reference of a method: the function of its name here, or beside its class.

    Args:
        method: A subclass of ``Method`` with a name.

    Raises:
        LookupError: There is no such function.
    """
    name: str = method.name  # type: ignore[attr-defined]
    found = globals().get(name) or getattr(sys.modules[method.__module__], name, None)
    if found is None:
        raise LookupError(
            f"there is no function {name}(losses, w, ...) beside the class {method.__name__}, nor in "
            f"deltasam.reference; write it from the equation, for the method to be compared with"
        )
    return found
