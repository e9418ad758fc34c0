"""Nothing is made on the default device by accident: it is "meta" here, which stands for an accelerator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam

SPECS = [
    *deltasam.method_names(),
    "per_instance_sam:m=2",
    "per_instance_sam:unsupported=loop",
    "delta_sam:weights=norms",
    "delta_sam:weights=slopes",
    "delta_sam:weights=curvature",
    "rw_sam:weights=slopes",
]


class Tokens(nn.Module):
    """What every method can train: embeddings, logits, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(9, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.dropout = nn.Dropout(0.2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.dropout(self.norm(self.table(ids).tanh())).mean(1))


@pytest.fixture
def another_default() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def steps(spec: str) -> list[Tensor]:
    """Gradients of three steps, the first of which is checked."""
    generator = torch.Generator("cpu").manual_seed(0)
    ids = torch.randint(0, 9, (10, 4), generator=generator, device="cpu")
    y = torch.randint(0, 3, (10,), generator=generator, device="cpu")
    torch.manual_seed(1)
    with torch.device("cpu"):
        model = Tokens()
    method, found = deltasam.make_method(spec, model), []
    method.follow(torch.optim.SGD(model.parameters(), lr=0.1))
    for seed in range(3):
        torch.manual_seed(seed)
        model.zero_grad()
        method.backward(lambda: F.cross_entropy(model(ids), y, reduction="none"))
        found += [p.grad.clone() for p in model.parameters()]
    return found


@pytest.mark.parametrize("spec", SPECS)
def test_every_method_is_as_ever(spec: str, request: pytest.FixtureRequest) -> None:
    wanted = steps(spec)
    request.getfixturevalue("another_default")
    assert all(map(torch.equal, steps(spec), wanted))


def test_norms_of_examples(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("another_default")
    model, x = nn.Linear(3, 2, device="cpu"), torch.ones(4, 3, device="cpu")
    norms = deltasam.per_example_grad_norms(model, lambda: model(x).square().sum(1))
    assert norms.device.type == "cpu"
    assert norms.shape == (4,)
