"""float16 loss scaling: ``torch.amp.GradScaler``.

What one sees: scaled inside the closure, or by the runtime and the closure returns the plain loss, it is one unscale,
one clipping, one ``scaler.step``, and the weights are those of training without a scale. The metrics of the runtime's
way are in the units of the plain loss. In float16 a scale may be so large that gradients are infinite, in the first
pass or in the second. Then it goes as in plain training: the step is skipped, no weight has changed by a bit, the
scale is halved, until steps work.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam

torch.manual_seed(0)
X, Y = torch.randn(8, 4), torch.randint(3, (8,))


def train(
    spec: str, scaler: torch.amp.GradScaler, *, by_runtime: bool, half: bool = False, steps: int = 4
) -> list[Tensor]:
    """The weights before training and after each step."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    method = deltasam.make_method(spec, model)
    history = [nn.utils.parameters_to_vector(model.parameters()).detach().clone()]
    runtime = deltasam.Runtime(scaler=scaler) if by_runtime else None

    def closure() -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16, enabled=half):
            losses = F.cross_entropy(model(X).float(), Y, reduction="none")
        return losses if by_runtime else scaler.scale(losses)

    for _ in range(steps):
        step = method.backward(closure, runtime=runtime)
        assert step.loss < 5 or not by_runtime  # not scaled
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        history.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
    return history


if __name__ == "__main__":
    unscaled = torch.amp.GradScaler("cpu", enabled=False)
    for spec in ("erm", "sam:rho=0.1", "asam", "delta_sam:rho=0.1,weights=norms", "per_instance_sam:rho=0.1"):
        plain = train(spec, unscaled, by_runtime=False)
        for by_runtime in (False, True):
            way = "by the runtime" if by_runtime else "in the closure"
            scaled = train(spec, torch.amp.GradScaler("cpu", init_scale=2.0**12), by_runtime=by_runtime)
            assert (scaled[-1] - plain[-1]).abs().max() < 1e-6

            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
            history = train(spec, scaler, by_runtime=by_runtime, half=True, steps=16)
            moved = [not torch.equal(before, after) for before, after in itertools.pairwise(history)]
            skipped = moved.index(True)
            print(f"{spec:30} scaled {way}: as without; in float16 {skipped} steps skipped, then all work")
            assert 0 < skipped < 16
            assert all(moved[skipped:])
            assert scaler.get_scale() == 2.0 ** (24 - skipped)
