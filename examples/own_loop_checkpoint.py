"""Save a plain loop and go on: bit by bit as if it had never stopped.

What one sees: saved are the model, the optimizer, the scheduler, the method (a schedule counts steps; most methods
have nothing to save) and the random state. ``load_state_dict`` of the method comes after ``follow``, which counts
from 0.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam

STEPS, STOP = 12, 5
torch.manual_seed(0)
X, Y = torch.randn(STEPS, 8, 4), torch.randint(3, (STEPS, 8))


class Training:
    """A model, what trains it, and how to save all of it."""

    def __init__(self, spec: str) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 3))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=STEPS)
        self.method = deltasam.make_method(spec, self.model)
        self.method.follow(self.optimizer, total_steps=STEPS)

    def run(self, first: int, end: int) -> Tensor:
        """Train some of the steps; returns the weights."""
        for x, y in zip(X[first:end], Y[first:end], strict=True):
            self.method.backward(lambda x=x, y=y: F.cross_entropy(self.model(x), y, reduction="none"))
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        return nn.utils.parameters_to_vector(self.model.parameters()).detach().clone()

    def save(self, path: Path) -> None:
        states = {name: part.state_dict() for name, part in vars(self).items()}
        torch.save({**states, "random": torch.get_rng_state()}, path)

    def load(self, path: Path) -> None:
        states = torch.load(path, weights_only=True)
        torch.set_rng_state(states.pop("random"))
        for name, state in states.items():
            getattr(self, name).load_state_dict(state)


if __name__ == "__main__":
    for spec in ("erm", "sam:rho=0.1@every=3", "delta_sam:weights=slopes@warmup=0.5", "asam@last=0.5"):
        unbroken = Training(spec).run(0, STEPS)
        with tempfile.TemporaryDirectory() as folder:
            stopped = Training(spec)
            stopped.run(0, STOP)
            stopped.save(Path(folder) / "checkpoint.pt")
            resumed = Training(spec)
            resumed.load(Path(folder) / "checkpoint.pt")
            weights = resumed.run(STOP, STEPS)
        print(f"{spec}: stopped after {STOP} of {STEPS} steps, resumed, and the same weights bit by bit")
        assert torch.equal(weights, unbroken)
