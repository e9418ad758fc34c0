"""The core beside the contracts: closure protocol, specs, mixed precision, warnings, imports."""

from __future__ import annotations

import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cases
import deltasam
from deltasam import Method, weight_space
from deltasam.dropout_masks import DropoutMasks
from deltasam.outputs import example_losses_of, loss_of


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 6), torch.randint(0, 3, (8,))


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).float(), batch[1], reduction="none")


# The closure protocol.


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: SimpleNamespace(loss=x), lambda x: {"loss": x}])
def test_every_form_of_a_loss(wrap: Any) -> None:
    w = torch.ones(3, requires_grad=True)
    assert loss_of(wrap(w)).item() == 1.0
    assert loss_of(wrap(w.sum())).item() == 3.0
    assert example_losses_of(wrap(w), "m") is w


@pytest.mark.parametrize(
    ("output", "error", "words"),
    [
        (None, TypeError, "returned NoneType; it must return"),
        (SimpleNamespace(loss=None), TypeError, "were labels given"),
        (1.0, TypeError, "returned float"),
        (torch.ones(2, 2, requires_grad=True), ValueError, r"shape \[2, 2\]"),
        (torch.ones(0, requires_grad=True), ValueError, r"shape \[0\]"),
        (torch.ones(2), ValueError, "does not depend on any trainable weight"),
    ],
)
def test_what_is_no_loss_is_named(output: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        loss_of(output)


@pytest.mark.parametrize("name", ["delta_sam", "per_instance_sam"])
def test_methods_that_need_losses_per_example_say_so(name: str, model: nn.Module, batch: Any) -> None:
    method = deltasam.make_method(name, model)
    with pytest.raises(ValueError, match=f"{type(method).__name__} needs one loss per example.*reduction='none'"):
        method.backward(lambda: losses(model, batch).mean())


@pytest.mark.parametrize("name", ["erm", "sam", "asam"])
def test_a_scalar_is_enough_for_the_others(name: str, model: nn.Module, batch: Any) -> None:
    method = deltasam.make_method(name, model)
    method.backward(lambda: losses(model, batch).mean())
    scalar = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    method.backward(lambda: losses(model, batch))
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), scalar, strict=True))


def test_no_grad_is_refused(model: nn.Module, batch: Any) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"under torch\.no_grad"):
        deltasam.SAM(model).backward(lambda: losses(model, batch))


def test_a_frozen_model_is_refused(model: nn.Module, batch: Any) -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        deltasam.SAM(model.requires_grad_(False)).backward(lambda: losses(model, batch))


def test_m_must_divide_the_batch(model: nn.Module, batch: Any) -> None:
    with pytest.raises(ValueError, match=r"m=3.*must divide.*which is 8"):
        deltasam.PerInstanceSAM(model, m=3).backward(lambda: losses(model, batch))


# Specs and the registry.


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("samm", "did you mean 'sam'"),
        ("nothing like it", r"there are: asam, delta_sam, erm"),
        ("sam:roh=1", "no hyper-parameter 'roh'; did you mean 'rho'"),
        ("erm:rho=1", r"no hyper-parameter 'rho' \(there are: none\)"),
        ("sam:rho", "'rho' has no value"),
        ("sam:rho=much", "rho must be of type float, not 'much'"),
        ("sam:rho=-1", r"SAM\(rho=-1.0\): rho must be a finite number, 0 or more"),
        ("sam:rho=nan", r"SAM\(rho=nan\)"),
        ("delta_sam:rho=inf", r"DeltaSAM\(rho=inf\)"),
        ("delta_sam:sigma=0", r"sigma must be a finite number, above 0"),
        ("asam:eta=0", r"eta must be a finite number, above 0"),
        ("per_instance_sam:m=0", r"m must be a whole number, 1 or more"),
        ("per_instance_sam:m=1.5", "m must be of type int"),
    ],
)
def test_bad_specs(spec: str, words: str, model: nn.Module) -> None:
    with pytest.raises(ValueError, match=words) as error:
        deltasam.make_method(spec, model)
    assert "\n" not in str(error.value)


def test_lists_of_specs() -> None:
    assert deltasam.split_specs("erm, asam:rho=0.5,eta=0.1 ,sam,") == ["erm", "asam:rho=0.5,eta=0.1", "sam"]


def test_a_method_of_ones_own(model: nn.Module, batch: Any) -> None:
    class Doubled(Method, name="doubled"):
        """Twice the gradient."""

        neutral = {"times": 1}  # noqa: RUF012

        def __init__(self, model: nn.Module, *, times: int = 2, exact: bool = False) -> None:
            super().__init__(model)
            self.times, self.exact = times, exact

        def _fill(self, passes: Any) -> deltasam.Step:
            return deltasam.Step(passes.backward(self.times * loss_of(passes.first())))

    try:
        method = deltasam.make_method("doubled:times=3,exact=True", model)
        assert method.spec == "doubled:times=3,exact=True"
        assert method.backward(lambda: losses(model, batch)).loss > 0
        with pytest.raises(ValueError, match="is taken by"):
            type("Other", (Doubled,), {}, name="doubled")
    finally:
        del Method.registry["doubled"]


# Mixed precision.


def test_autocast_around_the_call_does_not_hide_the_perturbation(model: nn.Module, batch: Any) -> None:
    """Inside one autocast block PyTorch keeps low-precision copies of the weights from pass to pass."""

    def gradients(outside: bool) -> list[Tensor]:
        model.zero_grad()
        method = deltasam.SAM(model, rho=1.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=outside):

            def closure() -> Tensor:
                with torch.autocast("cpu", torch.bfloat16):
                    return losses(model, batch)

            method.backward(closure)
        return [p.grad.clone() for p in model.parameters()]

    for around, within in zip(gradients(outside=True), gradients(outside=False), strict=True):
        assert torch.equal(around, within)


@pytest.mark.parametrize("name", deltasam.method_names())
def test_grad_scaler(name: str, model: nn.Module, batch: Any) -> None:
    """closure = scaler.scale(loss): one unscale, and the step of the unscaled loss."""

    def train(scaler: torch.amp.GradScaler) -> list[Tensor]:
        torch.manual_seed(1)
        twin = cases.copy_of(model)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        deltasam.make_method(name, twin).backward(lambda: scaler.scale(losses(twin, batch)))
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return list(twin.parameters())

    on, off = (train(torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=e)) for e in (True, False))
    for scaled, plain in zip(on, off, strict=True):
        torch.testing.assert_close(scaled, plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", deltasam.method_names())
def test_pure_bfloat16_shows_in_the_metrics(name: str, model: nn.Module, batch: Any) -> None:
    model.to(torch.bfloat16)
    before = [p.detach().clone() for p in model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # delta_sam rightly says that bfloat16 is too coarse
        spec = name if name == "erm" else f"{name}:rho=0.01"
        step = deltasam.make_method(spec, model).backward(lambda: losses(model, (batch[0].bfloat16(), batch[1])))
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if "radius_ratio" in step.metrics:  # rounded: the weights are not where they should be, and one can see it
        assert abs(float(step.metrics["radius_ratio"]) - 1) > 1e-3


# delta-SAM's estimates.


@pytest.mark.parametrize(("sigma", "warns"), [(1e-7, True), (1e-2, False)])
def test_delta_sam_warns_when_the_second_difference_is_rounding(sigma: float, warns: bool) -> None:
    case = cases.make("bert", torch.float32)
    method = deltasam.DeltaSAM(case.model, sigma=sigma)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method.backward(case.closure)
    assert any("no more than rounding" in str(w.message) for w in caught) == warns


def test_delta_sam_weights_grow_with_curvature() -> None:
    """Losses a_i |w|^2 have gradients of size 2 a_i |w| and second differences 2 a_i |d|^2: p_i ~ a_i^2 / a_i."""
    w = nn.Linear(400, 1, bias=False).double()
    sizes = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    step = deltasam.DeltaSAM(w, sigma=1e-2).backward(lambda: sizes * w.weight.square().sum())
    torch.testing.assert_close(step.metrics["weights"], sizes / sizes.mean())


def test_the_noise_is_standard_normal_and_new_every_step() -> None:
    model = nn.Linear(2000, 1500)
    method = deltasam.DeltaSAM(model)
    drawn = []
    for _ in range(2):
        noise = method._store.gaussian(list(model.parameters()), torch.Generator().manual_seed(len(drawn)))
        drawn.append(noise[0].flatten().clone())
    for z in drawn:
        assert abs(z.mean()) < 5e-3
        assert abs(z.std() - 1) < 5e-3
        assert abs((z.abs() > 1.96).double().mean() - 0.05) < 2e-3
    assert abs(torch.corrcoef(torch.stack(drawn))[0, 1]) < 5e-3
    blocks = drawn[0].split(1 << 20)
    assert abs(torch.corrcoef(torch.stack([blocks[0], blocks[1]]))[0, 1]) < 5e-3


# Dropout masks that are kept.


class Draws(nn.Module):
    """A closure's worth of random numbers: dropout, others between, and a generator of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.dropout = nn.Parameter(torch.ones(50)), nn.Dropout(0.4)

    def forward(self, p: float = 0.3) -> Tensor:
        x = self.dropout(self.weight) * torch.rand(50)
        return F.dropout(x, p) + torch.bernoulli(torch.full((50,), 0.5)) + torch.rand(())


def test_kept_masks_are_the_drawn_ones() -> None:
    model, masks = Draws(), DropoutMasks(Draws())
    torch.manual_seed(5)
    with masks.record():
        first = model()
    after = torch.rand(3)
    torch.manual_seed(5)
    plain = model()
    torch.manual_seed(5)
    with masks.replay():
        replayed = model()
    assert torch.equal(first, plain)
    assert torch.equal(replayed, plain)
    assert torch.equal(torch.rand(3), after)


def test_a_mask_that_does_not_fit_is_drawn() -> None:
    model, masks = Draws(), DropoutMasks(Draws())
    torch.manual_seed(5)
    with masks.record():
        model()
    for kwargs in ({"p": 0.7}, {}):
        torch.manual_seed(5)
        plain, after = model(**kwargs), torch.rand(3)
        torch.manual_seed(5)
        with masks.replay():
            assert torch.equal(model(**kwargs), plain)
        assert torch.equal(torch.rand(3), after)


def test_every_mask_of_an_encoder_is_kept() -> None:
    case = cases.make("bert")
    masks = DropoutMasks(case.model)
    with masks.record():
        case.closure()
    # Two layers, three masks in each (attention, its output, the feed-forward), the embeddings, the head.
    assert len(masks._masks) == 2 * 3 + 2


def test_nothing_is_recorded_without_dropout() -> None:
    masks = DropoutMasks(cases.make("bert").model.eval())
    with masks.record() as mode:
        assert mode is None


# Vectors in weight space.


def test_distance_in_units() -> None:
    starts = [torch.randn(700, 900), torch.randn(5)]  # one larger than a chunk
    ends = [s + 0.1 * torch.randn_like(s) for s in starts]
    units = [torch.rand(700, 900) + 0.5, torch.tensor(2.0)]
    difference = [(e - s).double() for e, s in zip(ends, starts, strict=True)]
    flat = torch.cat([d.flatten() for d in difference])
    torch.testing.assert_close(weight_space.distance(ends, starts).double(), flat.norm(), rtol=1e-5, atol=0)
    scaled = torch.cat([(d / u).flatten() for d, u in zip(difference, units, strict=True)])
    torch.testing.assert_close(weight_space.distance(ends, starts, units).double(), scaled.norm(), rtol=1e-5, atol=0)


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


# Imports.


def test_import_loads_torch_and_nothing_heavier() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import deltasam
new = {m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(sorted(new))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['deltasam']"
