"""Vectors in weight space: distances, and gradients that are shared or sparse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import cases
import deltasam
from deltasam import weight_space
from deltasam.core.torch_internals import foreach


def test_distance_in_units() -> None:
    starts = [torch.randn(700, 900), torch.randn(5)]  # one larger than a chunk
    ends = [s + 0.1 * torch.randn_like(s) for s in starts]
    units = [torch.rand(700, 900) + 0.5, torch.tensor(2.0)]
    difference = [(e - s).double() for e, s in zip(ends, starts, strict=True)]
    flat = torch.cat([d.flatten() for d in difference])
    torch.testing.assert_close(weight_space.distance(ends, starts).double(), flat.norm(), rtol=1e-5, atol=0)
    scaled = torch.cat([(d / u).flatten() for d, u in zip(difference, units, strict=True)])
    torch.testing.assert_close(weight_space.distance(ends, starts, units).double(), scaled.norm(), rtol=1e-5, atol=0)


def test_a_step_is_added_a_few_weights_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In half precision steps are widened, for which there may be no room at once; the bits are the same."""
    weights = [torch.randn(n, 3).to(torch.bfloat16).T for n in (5, 40, 1, 2, 7)]
    steps = [None, *(torch.randn_like(w) for w in weights[1:])]
    together, apart = [w.clone() for w in weights], [w.clone() for w in weights]
    weight_space.add(together, steps, 0.3)
    monkeypatch.setattr(weight_space, "_CHUNK", 20)
    widened: list[int] = []
    real = foreach.add_

    def add(params: list[torch.Tensor], wide: list[torch.Tensor], *, alpha: float) -> None:
        widened.append(sum(step.numel() for step in wide))
        real(params, wide, alpha=alpha)

    monkeypatch.setattr(foreach, "add_", add)
    weight_space.add(apart, steps, 0.3)
    assert widened == [120, 9, 21]
    assert all(map(torch.equal, apart, together))
    assert not torch.equal(apart[1], weights[1])


def test_gradients_that_share_memory_are_not_scaled_twice() -> None:
    """The gradients of two biases that are added up can be one and the same tensor."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

    model = Sum()
    step = deltasam.SAM(model, rho=1.0).backward(lambda: (model.a + model.b).square().sum() + (model.a + model.b).sum())
    assert float(step.metrics["radius_ratio"]) == pytest.approx(1)
    assert torch.allclose(model.a.grad, torch.full((3,), 1 + 4 / 6**0.5))


def test_sparse_gradients() -> None:
    model = nn.Embedding(10, 4, sparse=True)
    dense = cases.copy_of(model)
    dense.sparse = False
    ids = torch.tensor([1, 1, 3])
    for m in (model, dense):
        deltasam.SAM(m, rho=0.5).backward(lambda m=m: m(ids).square().sum())
    torch.testing.assert_close(model.weight.grad.to_dense(), dense.weight.grad)


def test_complex_parameters() -> None:
    """As two real ones: the norm, and the distance that was moved."""

    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(5, dtype=torch.complex128))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.w * x).abs().square().sum()

    model, x = Spectrum(), torch.randn(5, dtype=torch.complex128)
    plain = cases.copy_of(model)
    plain(x).backward()
    direction = plain.w.grad / torch.linalg.vector_norm(torch.view_as_real(plain.w.grad))
    with torch.no_grad():
        plain.w += 0.3 * direction
    plain.w.grad = None
    plain(x).backward()
    step = deltasam.SAM(model, rho=0.3).backward(lambda: model(x))
    torch.testing.assert_close(model.w.grad, plain.w.grad)
    assert float(step.metrics["radius_ratio"]) == pytest.approx(1)


@pytest.mark.parametrize("scale", [1.0, 1e25, 1e-25])  # squares that float32 does not hold
def test_what_is_left_after_a_projection_is_orthogonal(scale: float) -> None:
    a, b = [torch.tensor([1.0, 2.0]), None, torch.tensor(3.0)], [torch.tensor([2.0, 0.0]), torch.ones(2), None]
    a, b = ([v if v is None else v * scale for v in vector] for vector in (a, b))
    assert weight_space.projection(a, b) == pytest.approx(2 / 6)
    assert weight_space.projection(a, [v if v is None else 0 * v for v in b]) == 0.0
    assert weight_space.projection(a, [None, None, None]) == 0.0


def test_the_projection_of_complex_vectors_is_that_of_their_parts() -> None:
    a, b = [torch.tensor([1 + 2j])], [torch.tensor([3 - 1j])]
    assert weight_space.projection(a, b) == pytest.approx((3 - 2) / 10)
