"""``torch.compile``, with dropout on.

What one sees: ``sam``, ``asam`` and ``delta_sam:weights=slopes`` run the compiled model, one graph for all passes,
and train the weights of the model as it was written, to rounding. Every pass of a step has the same dropout masks,
also where compiled code draws numbers of its own. ``per_instance_sam`` and ``delta_sam`` with exact norms must see
every function that uses a parameter, and compiled code shows none: they run the model as it was written, exactly, and
warn once.
"""

from __future__ import annotations

import shutil
import statistics
import time
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam

torch.manual_seed(0)
X, Y = torch.randn(32, 16), torch.randint(3, (32,))


def compiled(model: nn.Module) -> nn.Module:
    if not (shutil.which("g++") or shutil.which("clang++")):
        return torch.compile(model, backend="aot_eager")  # all but the generated code
    # To compare: dropout as eager code draws it, instead of from generated code. Not needed to train.
    return torch.compile(model, options={"fallback_random": True})


def train(spec: str, *, compile_: bool, steps: int = 6) -> tuple[Tensor, float, float, list[str]]:
    """Weights after some steps, forwards per step, median milliseconds per step, and warnings."""
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.LayerNorm(64), nn.Dropout(0.3), nn.Linear(64, 3))
    model = compiled(plain) if compile_ else plain
    method = deltasam.make_method(spec, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    forwards, times = 0, []

    def closure() -> Tensor:
        nonlocal forwards
        forwards += 1
        return F.cross_entropy(model(X), Y, reduction="none")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            start = time.perf_counter()
            method.backward(closure)
            optimizer.step()
            optimizer.zero_grad()
            times.append(1000 * (time.perf_counter() - start))
    said = [str(w.message) for w in caught if "as it was written" in str(w.message)]
    weights = nn.utils.parameters_to_vector(plain.parameters()).detach()
    return weights, forwards / steps, statistics.median(times[1:]), said


if __name__ == "__main__":
    for spec in ("erm", "sam:rho=0.1", "asam", "delta_sam:weights=slopes,sigma=0.01", "delta_sam", "per_instance_sam"):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        (weights, forwards, eager, _), (other, again, fast, said) = (train(spec, compile_=c) for c in (False, True))
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        error = float((other - weights).norm() / weights.norm())
        print(f"{spec:36} {error:.0e} apart, {again:g} forwards, {graphs} graphs; ms: {eager:.2f}, compiled {fast:.2f}")
        assert again == forwards
        assert not torch._dynamo.utils.counters["graph_break"]
        if spec in ("delta_sam", "per_instance_sam"):
            assert graphs == 0
            assert torch.equal(other, weights)
            assert len(said) == 1
        else:
            assert graphs == (2 if "slopes" in spec else 1)  # slopes has a pass without gradients
            assert error < 1e-5
            assert not said
