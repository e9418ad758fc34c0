"""SMART: smoothness in the embeddings, and proximity to an average of past weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltasam.core.checks import nonnegative, one_of, whole
from deltasam.core.closure import loss_of
from deltasam.core.passes import Passes
from deltasam.method import Step
from deltasam.methods.bases import embeddings
from deltasam.methods.bases.predictions import Predictions, logits_of, predictions_of, watched
from deltasam.methods.bases.regularizer import PredictionRegularizer


class SMART(PredictionRegularizer, name="smart"):
    """Smoothness and proximity: ``grad [L + alpha * D(p, p_adversarial) + mu * D(p, p_average)]``.

    D is the mean over the predictions of ``KL(p, q) + KL(q, p)``, each weighted as in the loss; for regression it is
    the squared difference. ``p_adversarial``: predictions with the embeddings moved by noise of standard deviation
    sigma and then, ``steps`` times, along the gradient of D, by at most step_size in each element of a token.
    ``p_average``: predictions at an exponential moving average of the weights, ``beta * average + (1 - beta) *
    weights`` after each optimizer step, with the same dropout masks; treated as constant. Unless mu is 0, call
    ``method.follow(optimizer)`` once before training; the average is part of the state.

    Cost: with steps=1 three forwards and two backwards; with mu another forward, and a copy of the weights.

    Source: Jiang et al., "SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models through
    Principled Regularized Optimization", ACL 2020 (arXiv 1911.03437), algorithm 1. As in the authors' code the
    ascent is normalised token by token, not projected, and dropout masks differ; that code has no average.

    When: fine-tuning on little data, where predictions should neither jump with the input nor drift away from those of
    past weights.

    When not: time or memory is short: it is the most expensive method here. Inputs are not token ids: refused.

    Args:
        model: The model to train.
        alpha: Weight of the smoothness term. With mu=0 and alpha=0 it is plain training.
        mu: Weight of the proximity term. 0: no average is kept.
        step_size: Step size of the ascent.
        sigma: Standard deviation of the noise the ascent starts from.
        steps: Number of ascent steps.
        beta: Decay factor of the average, from 0 to 1. The paper uses 0.99, and 0.999 after a tenth of training.
        dropout: ``fresh``: the perturbed forwards draw other dropout masks, as in the authors' code; or ``same``: only
            the embeddings differ, as in the equation.

    Raises:
        ValueError: A number is negative, NaN or infinite, beta is above 1, steps is below 1, or dropout is unknown.
    """

    neutral: ClassVar[dict[str, float]] = {"alpha": 0.0, "mu": 0.0}

    def __init__(
        self,
        model: nn.Module,
        *,
        alpha: float = 1.0,
        mu: float = 1.0,
        step_size: float = 1e-3,
        sigma: float = 1e-5,
        steps: int = 1,
        beta: float = 0.99,
        dropout: str = "fresh",
    ) -> None:
        super().__init__(model)
        self.alpha, self.mu = nonnegative("SMART", "alpha", alpha), nonnegative("SMART", "mu", mu)
        self.step_size = nonnegative("SMART", "step_size", step_size)
        self.sigma = nonnegative("SMART", "sigma", sigma)
        self.steps = whole("SMART", "steps", steps)
        self.beta = nonnegative("SMART", "beta", beta)
        if beta > 1:
            raise ValueError(f"SMART(beta={beta}): beta must be at most 1, where the average never moves")
        self.dropout = one_of("SMART", "dropout", dropout, ("fresh", "same"))
        self._average: dict[str, Tensor] = {}
        self._keeps_average = self.mu > 0  # a schedule may set mu to 0 for a while

    def follow(self, optimizer: torch.optim.Optimizer, *, total_steps: int | None = None) -> None:
        """Update the average after each step of an optimizer from now on; it starts at the current weights."""
        if self._keeps_average:
            self._average = {name: p.detach().clone() for name, p in self._trained()}
            self.after_each_step(optimizer, self._move_average)

    def state_dict(self) -> dict[str, Any]:
        """The average, by parameter name."""
        return {"weight_average": self._average} if self._average else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved average; call it after ``follow``, which starts a new one.

        Raises:
            ValueError: The state was saved by another method, or for other parameters than those that are trained.
        """
        self.check_state(state, (), ("weight_average",))
        saved, trained = state.get("weight_average", {}), dict(self._trained())
        if {n: a.shape for n, a in saved.items()} != ({n: p.shape for n, p in trained.items()} if saved else {}):
            raise ValueError("SMART: the saved average is of other parameters than those being trained")
        self._average = {name: saved[name].to(p).clone() for name, p in trained.items() if saved}

    def regularize(self, passes: Passes) -> Step:
        generator = torch.Generator().manual_seed(passes.seed())
        with watched(self.model) as seen:
            output = passes.first()
        loss = loss_of(output)
        passes.check_autograd_graph(loss)
        predictions = predictions_of(output, seen, loss, "SMART")
        metrics = {"divergence_loss": torch.zeros_like(loss.detach())}
        total = loss
        if self.mu:
            proximity = predictions.divergence(self._at_average(passes))
            metrics["average_divergence_loss"] = proximity.detach()
            total = total + self.mu * proximity
        if self.alpha:
            metrics |= self._descend(passes, predictions, total, generator)
        else:
            passes.backward(total)
        return Step(loss.detach(), metrics)

    def _descend(
        self, passes: Passes, predictions: Predictions, total: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        offset = embeddings.EmbeddingOffset(
            self.model, lambda x, real: self.sigma * embeddings.sample_noise(torch.randn, x, real, generator)
        )
        for _ in range(self.steps):
            with self._moved(passes, offset) as (_, logits):
                gradient = passes.grad(predictions.detached().divergence(logits), [offset.value])[0]
            if gradient is not None:
                direction = embeddings.normalized_direction(gradient, lambda g: g.abs().amax(-1, keepdim=True))
                offset.set_(offset.value + self.step_size * direction)
        with self._moved(passes, offset) as (output, logits):
            divergence = predictions.divergence(logits)
            passes.backward(total + self.alpha * divergence)
        return {"perturbed_loss": loss_of(output).detach(), "divergence_loss": divergence.detach()}

    @contextmanager
    def _moved(self, passes: Passes, offset: embeddings.EmbeddingOffset) -> Iterator[tuple[Any, Tensor]]:
        with offset.added(), watched(self.model) as seen, passes.at(fresh=self.fresh_dropout) as point:
            offset.check()
            yield point.output, logits_of(point.output, seen, "SMART")

    @torch.no_grad()
    def _at_average(self, passes: Passes) -> Tensor:
        if self._following is None or not self._average:
            raise RuntimeError(
                f"{self.spec}: the average of the weights is updated by the optimizer's steps; call "
                f"method.follow(optimizer) once before training, or use mu=0"
            )
        away = [self._average[name] - p for name, p in self._trained()]
        with watched(self.model) as seen, passes.at(away) as point:
            return logits_of(point.output, seen, "SMART")

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    @torch.no_grad()
    def _move_average(self, *_: object) -> None:
        for name, p in self._trained():
            self._average[name].lerp_(p, 1 - self.beta)
