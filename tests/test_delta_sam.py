"""delta-SAM's weights: own curvature, exact norms, the estimates by forwards, the noise, and what each costs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cases
import deltasam
from classifier import losses
from deltasam.core.runtime import Runtime
from deltasam.methods.delta_sam import NOISE_OF_ONE_SLOPE, kept_share, shrunk
from deltasam.per_example.perturbed_forward import Perturbed
from deltasam.per_example.recorder import Record

Batch = tuple[Tensor, Tensor]
Closure = Callable[[], Tensor]


def caught(method: deltasam.DeltaSAM, closure: Closure) -> tuple[deltasam.Step, list[str]]:
    """A step, and what it warned of."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        step = method.backward(closure)
    return step, [str(w.message) for w in found]


def calls(method: deltasam.DeltaSAM, closure: Closure) -> int:
    """How often a step runs the closure."""
    made: list[int] = []
    method.backward(lambda: (made.append(0), closure())[1])
    return len(made)


# Own curvature.


def exact(model: nn.Module, batch: Batch) -> Tensor:
    """The losses of a model in float64."""
    return F.cross_entropy(model(batch[0].double()), batch[1], reduction="none")


@pytest.fixture
def wide(model: nn.Module) -> nn.Module:
    return model.double()


def excesses(closure: Closure, model: nn.Module, rho: float) -> tuple[Tensor, Tensor]:
    """Relatively, what each loss rises over rho along its gradient beyond what that says; and the gradients' norms."""
    params, n = list(model.parameters()), len(closure())
    found, norms = [], []
    for i in range(n):
        before = closure()[i]
        gradients = torch.autograd.grad(before, params)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        with torch.no_grad():
            starts = [p.clone() for p in params]
            for p, g in zip(params, gradients, strict=True):
                p.add_(rho / norm * g)
            after = closure()[i]
            for p, start in zip(params, starts, strict=True):
                p.copy_(start)
        found.append((after - before.detach()) / (rho * norm) - 1)
        norms.append(norm)
    return torch.stack(found), torch.stack(norms)


@pytest.mark.parametrize("rho", [0.05, 0.5, 3.0])
def test_weights_go_by_own_curvature(wide: nn.Module, batch: Batch, rho: float) -> None:
    excess, norms = excesses(lambda: exact(wide, batch), wide, rho)
    expected = 0.3**2 + excess**2 * norms / norms.mean()
    step = deltasam.DeltaSAM(wide, rho=rho).backward(lambda: exact(wide, batch))
    torch.testing.assert_close(step.metrics["weights"], expected / expected.mean(), rtol=1e-9, atol=1e-12)
    assert rho < 0.5 or expected.max() > 1.2 * expected.min()


def test_known_curvature_along_the_gradient() -> None:
    """Losses a_i (w x_i)^2 / 2 with orthonormal x: |g_i| = a_i |w x_i|, h_i = a_i, an excess of rho h_i / 2 |g_i|."""
    w = nn.Linear(3, 1, bias=False).double()
    w.weight.data = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    sizes, rho = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), 0.1
    step = deltasam.DeltaSAM(w, rho=rho).backward(lambda: sizes * w(torch.eye(3).double())[:, 0].square() / 2)
    norms = sizes * w.weight[0].detach().abs()
    expected = 0.09 + (rho * sizes / (2 * norms)) ** 2 * norms / norms.mean()
    torch.testing.assert_close(step.metrics["weights"], expected / expected.mean())


@pytest.mark.parametrize("reduce", [Tensor.mean, Tensor.sum])
@pytest.mark.parametrize("weights", ["auto", "own_curvature"])
def test_with_a_scalar_loss_curvature_comes_from_a_slope(weights: str, reduce: Callable[[Tensor], Tensor]) -> None:
    """The same to second order, so at a small radius; and far from equal weights, since the constant is as small."""
    case = cases.make("bert")
    found = []
    for closure in (case.closure, lambda: reduce(case.closure())):
        torch.manual_seed(3)
        step = deltasam.DeltaSAM(case.model, rho=1e-3, weights=weights).backward(closure)
        found.append(step.metrics["weights"] - 1)
    assert found[0].abs().max() > 1e-7
    torch.testing.assert_close(found[1], found[0], rtol=0.01, atol=0)


def test_losses_beside_a_scalar_are_not_asked() -> None:
    """Nothing says that they are its parts: the weights are those of the scalar alone."""
    case = cases.make("bert")
    found = []
    for reduce in (Tensor.mean, lambda x: {"loss": x.mean(), "example_losses": lambda: 7 * x.flip(0)}):
        torch.manual_seed(3)
        step = deltasam.DeltaSAM(case.model, rho=0.3).backward(lambda: reduce(case.closure()))  # noqa: B023
        found.append(step.metrics["weights"])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_losses_that_are_nearly_0_are_rounding() -> None:
    """A cross entropy of 1e-5 is the difference of logits of size 10, and so is its rounding."""
    found = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3)).to(dtype)
        x, y = torch.randn(8, 6).to(dtype), model(torch.randn(8, 6).to(dtype)).argmax(1)

        def closure() -> Tensor:
            logits = model(x)  # noqa: B023
            sure = 12 * F.one_hot(y, 3).to(logits)  # noqa: B023
            return F.cross_entropy(logits + sure, y, reduction="none")  # noqa: B023

        found.append(deltasam.DeltaSAM(model, rho=0.005).backward(closure).metrics["weights"].double())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0.05)


def test_half_precision_within_the_closure_is_seen() -> None:
    """Autocast in the closure alone, or a frozen base in bfloat16, where the losses are in float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3))
    x, y = torch.randn(8, 6), torch.arange(8) % 3

    def closure() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        return F.cross_entropy(logits.float(), y, reduction="none")

    assert (deltasam.DeltaSAM(model, rho=1e-3).backward(closure).metrics["weights"] - 1).abs().max() < 0.05
    base = nn.Linear(6, 6).to(torch.bfloat16).requires_grad_(False)
    both = nn.ModuleList([base, model])
    step = deltasam.DeltaSAM(both, rho=1e-3).backward(
        lambda: F.cross_entropy(model(base(x.bfloat16()).float()), y, reduction="none")
    )
    assert (step.metrics["weights"] - 1).abs().max() < 0.05


@pytest.mark.parametrize("scalar", [True, False])
def test_where_rows_move_norms_are_enough_for_that_step(scalar: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.make("bert")
    method = deltasam.DeltaSAM(case.model, rho=0.3)
    refusing = [False]
    check = Perturbed.check_rows

    def check_rows(self: Perturbed) -> None:
        if refusing[0]:
            raise deltasam.NotCoveredError("rows are in another order")
        check(self)

    monkeypatch.setattr(Perturbed, "check_rows", check_rows)

    def closure() -> Tensor:
        return case.closure().mean() if scalar else case.closure()

    method.backward(closure)
    refusing[0] = True
    torch.manual_seed(3)
    with pytest.warns(RuntimeWarning, match="weighs by norms alone in steps like this one: rows are in"):
        step = method.backward(closure)
    norms = step.metrics["example_norms"]
    torch.testing.assert_close(step.metrics["weights"], norms.sqrt() / norms.sqrt().mean())
    assert method.state_dict() == {}
    refusing[0] = False
    weights = method.backward(closure).metrics["weights"]
    assert not torch.allclose(weights, step.metrics["weights"])
    refusing[0] = True
    with pytest.raises(deltasam.NotCoveredError, match=r"weights='own_curvature'\): rows are in"):
        deltasam.DeltaSAM(case.model, weights="own_curvature").backward(closure)


@pytest.mark.parametrize("alone", [True, False])
def test_one_process_of_several_does_not_leave_the_engine_by_itself(
    alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others would wait for it: what its rows alone show after the first step is an error."""
    case = cases.make("mlp")
    case.model.norm.eval()
    method = deltasam.DeltaSAM(case.model, sigma=1e-2)
    method.backward(case.closure)
    case.model.norm.train()  # refused from here on
    monkeypatch.setattr(Runtime, "is_alone", alone)
    if alone:
        with pytest.warns(RuntimeWarning, match="estimates slopes by a forward pass"):
            method.backward(case.closure)
    else:
        with pytest.raises(deltasam.NotCoveredError, match="Ways out: weights='slopes'"):
            method.backward(case.closure)


@pytest.mark.parametrize("autocast", [True, False])
def test_in_half_precision_curvature_comes_from_slopes(autocast: bool) -> None:
    """Near to what float64 gives, where a difference of losses would be rounding."""
    found = []
    for dtype in (torch.float64, torch.float32 if autocast else torch.bfloat16):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3)).to(dtype)
        x, y = torch.randn(8, 6).to(dtype), torch.arange(8) % 3
        half = autocast and dtype != torch.float64

        def closure() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):  # noqa: B023
                return F.cross_entropy(8 * model(x).float(), y, reduction="none")  # noqa: B023

        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found.append(deltasam.DeltaSAM(model, rho=0.02).backward(closure).metrics["weights"].double() - 1)
    assert found[0].abs().max() > 0.1
    assert (found[1] - found[0]).norm() < 0.4 * found[0].norm()  # from losses nothing would be left: equal weights


def test_losses_that_meet_have_a_slope_each(wide: nn.Module, batch: Batch) -> None:
    """Where each loss depends on other examples too, the curvature is that of the sum along one example's share."""

    def together() -> Tensor:
        apart = exact(wide, batch)
        return apart + apart.mean()

    method = deltasam.DeltaSAM(wide, rho=1e-3)
    found = method.backward(together).metrics["weights"]
    twice = deltasam.DeltaSAM(wide, rho=1e-3).backward(lambda: 2 * exact(wide, batch).sum()).metrics["weights"]
    assert not method._engine.losses_apart
    apart = method.backward(lambda: exact(wide, batch)).metrics["weights"]  # known of each closure by itself
    torch.testing.assert_close(method.backward(together).metrics["weights"], found)
    alone = deltasam.DeltaSAM(wide, rho=1e-3).backward(lambda: exact(wide, batch)).metrics["weights"]
    torch.testing.assert_close(apart, alone, rtol=0, atol=0)
    torch.testing.assert_close(found, twice)


def test_a_loss_scale_changes_no_curvature(wide: nn.Module, batch: Batch) -> None:
    class Scaling(Runtime):
        def scaled(self, loss: Tensor) -> Tensor:
            return 1024 * loss

    for reduce in (lambda x: x, Tensor.mean):
        found = [
            deltasam.DeltaSAM(wide, rho=0.5)
            .backward(lambda: reduce(exact(wide, batch)), runtime=runtime)  # noqa: B023
            .metrics["weights"]
            for runtime in (Runtime(), Scaling())
        ]
        torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("size", [0.0, float("inf")])
def test_curvature_that_cannot_be_told_is_sam(size: float) -> None:
    """No gradient anywhere, or a loss that is infinite a little farther on."""
    w = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        w.weight.fill_(1.0)
    x = torch.eye(2).double()

    def closure() -> Tensor:
        y = w(x)[:, 0]
        return y * 0 if size == 0 else torch.where(y > 1, y / 0, y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an ascent of 0
        assert deltasam.DeltaSAM(w, rho=0.5).backward(closure).metrics["weights"].tolist() == [1, 1]


def test_rounding_is_no_curvature() -> None:
    """Losses that are linear but for their last bits are weighed equally, to the last bit."""
    torch.manual_seed(0)
    w = nn.Linear(300, 1)
    x = torch.randn(6, 300)
    weights = deltasam.DeltaSAM(w, rho=1e-4).backward(lambda: w(x)[:, 0] + 100).metrics["weights"]
    assert (weights == 1).all()


# Exact norms.


def test_weights_go_by_the_roots_of_the_norms(model: nn.Module, batch: Batch) -> None:
    norms = deltasam.per_example_grad_norms(model, lambda: losses(model, batch))
    weights = deltasam.DeltaSAM(model, weights="norms").backward(lambda: losses(model, batch)).metrics["weights"]
    assert norms.max() > 1.5 * norms.min()
    torch.testing.assert_close(weights, norms**0.5 / (norms**0.5).mean())


def test_norms_see_the_masks_of_the_step() -> None:
    case = cases.make("bert")
    torch.manual_seed(3)
    norms = deltasam.per_example_grad_norms(case.model, case.closure)
    weights = deltasam.DeltaSAM(case.model, weights="norms").backward(case.closure).metrics["weights"]
    torch.testing.assert_close(weights, norms**0.5 / (norms**0.5).mean())


@pytest.mark.parametrize("reduce", [Tensor.mean, Tensor.sum])
def test_a_scalar_loss_is_enough_for_norms(reduce: Callable[[Tensor], Tensor]) -> None:
    case = cases.make("bert")
    found = []
    for closure in (case.closure, lambda: reduce(case.closure())):
        torch.manual_seed(3)
        case.model.zero_grad()
        step = deltasam.DeltaSAM(case.model, rho=0.3, weights="norms").backward(closure)
        found.append({n: p.grad for n, p in case.model.named_parameters()} | step.metrics)
    scale = cases.EXAMPLES if reduce is Tensor.sum else 1
    for key, value in found[0].items():
        # A norm is of one example's loss, or of its share in the scalar.
        factors = {"weights": 1, "radius_ratio": 1, "example_norms": scale / cases.EXAMPLES}
        expected = factors.get(key, scale) * value
        torch.testing.assert_close(found[1][key], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weights", ["slopes", "curvature"])
def test_a_scalar_loss_is_not_enough_for_estimates(model: nn.Module, batch: Batch, weights: str) -> None:
    with pytest.raises(ValueError, match="DeltaSAM needs one loss per example"):
        deltasam.DeltaSAM(model, weights=weights).backward(lambda: losses(model, batch).mean())


@pytest.mark.parametrize(
    ("weights", "expected"), [("auto", 3), ("own_curvature", 3), ("norms", 2), ("slopes", 3), ("curvature", 6)]
)
def test_cost(weights: str, expected: int) -> None:
    case = cases.make("bert")
    method = deltasam.DeltaSAM(case.model, weights=weights)
    calls(method, case.closure)  # the first step is checked, where there are norms
    assert calls(method, case.closure) == expected


# What is not covered.


def test_a_model_that_is_not_covered_is_estimated_in_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.make("mlp")
    method = deltasam.DeltaSAM(case.model, sigma=1e-2)
    opened: list[Record] = []
    open_record = Record.open
    monkeypatch.setattr(Record, "open", lambda record: (opened.append(record), open_record(record))[1])
    with pytest.warns(RuntimeWarning, match="estimates slopes by a forward pass"):
        assert calls(method, case.closure) == 5  # once more, unwatched, and once to see whether it repeats itself
    assert len(opened) == 1
    assert int(case.model.norm.num_batches_tracked) == 1
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert calls(method, case.closure) == 3
    assert len(opened) == 1  # nothing is recorded any more


def test_a_model_that_is_not_covered_needs_a_loss_per_example() -> None:
    case = cases.make("mlp")
    method = deltasam.DeltaSAM(case.model)
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            with pytest.raises(ValueError, match="DeltaSAM needs one loss per example"):
                method.backward(lambda: case.closure().mean())


@pytest.mark.parametrize(("weights", "passes"), [("own_curvature", 3), ("norms", 2)])
def test_what_the_engine_gives_is_never_replaced(weights: str, passes: int) -> None:
    case = cases.make("mlp")
    method = deltasam.DeltaSAM(case.model, weights=weights)
    for _ in range(2):
        with pytest.raises(deltasam.NotCoveredError, match="Ways out: weights='slopes'"):
            method.backward(case.closure)
    case.model.norm.eval()
    calls(method, case.closure)  # checked
    assert calls(method, case.closure) == passes


# Estimates.


@pytest.mark.parametrize(("sigma", "warns"), [(1e-7, True), (1e-2, False)])
@pytest.mark.parametrize("weights", ["slopes", "curvature"])
def test_differences_that_are_rounding_are_said(weights: str, sigma: float, warns: bool) -> None:
    case = cases.make("bert", torch.float32)
    _, said = caught(deltasam.DeltaSAM(case.model, weights=weights, sigma=sigma), case.closure)
    assert any("no more than rounding" in words for words in said) == warns


@pytest.mark.parametrize("weights", ["auto", "own_curvature", "norms"])
def test_what_the_engine_gives_has_no_sigma_to_get_wrong(weights: str) -> None:
    case = cases.make("bert", torch.float32)
    assert caught(deltasam.DeltaSAM(case.model, weights=weights, sigma=1e-30), case.closure)[1] == []


@pytest.mark.parametrize("weights", ["norms", "slopes", "curvature"])
def test_weights_of_losses_of_several_sizes(weights: str) -> None:
    """Losses a_i (w x)^2 have gradients and second differences that grow with a_i: p_i ~ a_i^(1/2), or a_i / a_i."""
    w = nn.Linear(400, 1, bias=False).double()
    sizes = torch.tensor([1.0, 100.0, 10000.0], dtype=torch.float64)
    x = torch.ones(3, 400, dtype=torch.float64)
    method = deltasam.DeltaSAM(w, weights=weights, sigma=1e-2)
    step = method.backward(lambda: sizes * w(x)[:, 0].square())
    expected = torch.ones(3, dtype=torch.float64) if weights == "curvature" else sizes.sqrt() / sizes.sqrt().mean()
    if weights == "slopes":  # a part of the spread could be noise
        expected = 1 + (1 - 0.18034059901609578 / expected.var()) * (expected - 1)
    torch.testing.assert_close(step.metrics["weights"], expected)


def test_curvature_that_draws_agree_on_is_kept() -> None:
    """Half the losses bend, 100 (w x)^2 + 100 w x, and half are straight: the first have all the weight."""
    w = nn.Linear(4000, 1, bias=False).double()
    x = torch.ones(6, 4000, dtype=torch.float64) / 4000**0.5
    bent = torch.tensor([1.0, 0, 1, 0, 1, 0], dtype=torch.float64)
    nn.init.zeros_(w.weight)
    method = deltasam.DeltaSAM(w, weights="curvature", sigma=1e-2)
    step = method.backward(lambda: (lambda y: 100 * bent * y.square() + 100 * y)(w(x)[:, 0]))
    assert float(step.metrics["weights"][1::2].max()) < 0.9 < 1.1 < float(step.metrics["weights"][::2].min())


def test_curvature_that_is_noise_is_sam() -> None:
    """Where draws do not agree on who bends, weights are equal; where they agree in part, they go a part of the way."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 400, generator=generator)
    assert float(shrunk(noise).std()) < 0.4 * float((noise.mean(0).abs() / noise.mean(0).abs().mean()).std())
    signal = 3 + torch.randn(400, generator=generator)
    known = shrunk(torch.stack([signal, signal]))
    torch.testing.assert_close(known, signal.abs() / signal.abs().mean())
    partly = shrunk(signal + 0.5 * noise)
    assert 0.5 < float(partly.std() / known.std()) < 0.99


@pytest.mark.parametrize("at", range(6))
def test_curvature_puts_everything_back(at: int) -> None:
    case = cases.make("bert")
    method = deltasam.DeltaSAM(case.model, weights="curvature", sigma=1e-2)
    method.backward(case.closure)  # checked
    case.model.zero_grad()
    before, turns = copy.deepcopy(case.model.state_dict()), iter(range(6))

    def closure() -> Tensor:
        if next(turns) == at:
            raise KeyboardInterrupt
        return case.closure()

    with pytest.raises(KeyboardInterrupt):
        method.backward(closure)
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())
    assert all(p.grad is None for p in case.model.parameters())


def test_slopes_that_differ_by_chance_are_sam() -> None:
    """Of examples with equal norms, nearly nothing is left of the spread that one Gaussian makes."""
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(2000, generator=generator).abs().sqrt()
    weights = roots / roots.mean()
    assert float(kept_share(NOISE_OF_ONE_SLOPE, weights)) < 0.1
    assert float(kept_share(NOISE_OF_ONE_SLOPE, torch.tensor([1.0, 100.0]))) > 0.99


def test_no_weight_is_extreme() -> None:
    weights = shrunk(torch.tensor([1e6, *[1.0] * 15]).expand(2, 16))
    assert 4 <= float(weights[0]) < 16  # four times the mean, which then is less
    assert float(weights.mean()) == pytest.approx(1)
    for hopeless in (torch.zeros(2, 8), torch.full((2, 8), float("nan"))):
        assert (shrunk(hopeless) == 1).all()
    assert (shrunk(torch.ones(2, 1)) == 1).all()  # one example has no spread


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
