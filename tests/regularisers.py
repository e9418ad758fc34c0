"""Methods that compare predictions or move embeddings, in a loop that tells them what each prediction weighs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import deltasam

# Every one, at sizes that matter.
SPECS = [
    "r_drop:alpha=2.0",
    "r3f:lam=2.0,eps=0.3",
    "freelb:adv_lr=0.5,init_mag=0.3,max_norm=0.6",
    "smart:alpha=2.0,step_size=0.2,sigma=0.1",
    "smart:alpha=0.0,beta=0.5",
    "r_drop:alpha=2.0@every=2",
]
Run = Callable[[Callable[..., Any]], deltasam.Output]


def by_hand(
    model: nn.Module,
    spec: str,
    steps: Sequence[Sequence[Run]],
    states: Sequence[Tensor],
    *,
    lr: float = 0.1,
    max_norm: float = 0.5,
) -> nn.Module:
    """Clipped gradient descent with a linear schedule on a copy of a model.

    Args:
        model: Where it starts.
        spec: The method.
        steps: The micro-batches of each step, with logits and what each weighs.
        states: The random state before each micro-batch.
        lr: Of the first step.
        max_norm: Gradients are clipped to it.
    """
    model, left = copy.deepcopy(model).train(), list(states)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    method = deltasam.make_method(spec, model)
    method.follow(optimizer, total_steps=len(steps))
    for number, runs in enumerate(steps):
        for run in runs:
            torch.set_rng_state(left.pop(0))
            method.backward(lambda run=run: run(model))
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.param_groups[0]["lr"] = lr * (1 - number / len(steps))
        optimizer.step()
        optimizer.zero_grad()
    return model


def recording(kind: type) -> tuple[type, list[Tensor]]:
    """A trainer that notes the random state before each micro-batch."""
    states: list[Tensor] = []

    class Recording(kind):  # type: ignore[misc, valid-type]
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            states.append(torch.get_rng_state())
            return super().training_step(*args, **kwargs)

    return Recording, states
