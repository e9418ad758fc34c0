"""Methods that remember: what they keep is saved, is the same with any loss scale, and outlives skipped steps."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
from deltasam import Method, Runtime, reference

SPECS = [
    "momentum_sam:rho=0.3",
    "s2_sam:rho=0.3",
    "looksam:rho=0.3,k=3",
    "vasso:rho=0.3,theta=0.6",
    "preconditioned_sam:rho=0.3",
    "preconditioned_functional_sam:rho=0.3",
    "friendly_sam:rho=0.3",
    "ae_sam:rho=0.3,momentum=0.5",
]
Batch = tuple[Tensor, Tensor]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 4)).double()


def batches(count: int) -> list[Batch]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(6, 3, generator=g).double(), torch.randint(4, (6,), generator=g)) for _ in range(count)]


def losses(model: Any, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Training:
    """A model, an optimizer and a method that follows it."""

    def __init__(self, spec: str, optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam) -> None:
        self.model = net()
        self.optimizer = optimizer(self.model.parameters(), lr=0.05)
        self.method = deltasam.make_method(spec, self.model)
        self.method.follow(self.optimizer, total_steps=20)

    def step(self, batch: Batch, parts: int = 1, *, together: bool = False) -> list[deltasam.Step]:
        rows = [tuple(t.chunk(parts)[i] for t in batch) for i in range(parts)]
        closures = [lambda r=r: losses(self.model, r) / parts for r in rows]
        done = [self.method.backward(c) for c in ([closures] if together else closures)]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return done

    def run(self, some: list[Batch], seed: int = 5) -> Tensor:
        torch.manual_seed(seed)
        for batch in some:
            self.step(batch)
        return self.weights()

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def load_weights_of(self, other: Training) -> None:
        self.model.load_state_dict(other.model.state_dict())
        self.optimizer.load_state_dict(copy.deepcopy(other.optimizer.state_dict()))

    def saved(self) -> io.BytesIO:
        file = io.BytesIO()
        states = {"model": self.model, "optimizer": self.optimizer, "method": self.method}
        torch.save({name: part.state_dict() for name, part in states.items()}, file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> None:
        states = torch.load(file, weights_only=True)
        self.model.load_state_dict(states["model"])
        self.optimizer.load_state_dict(states["optimizer"])
        self.method.load_state_dict(states["method"])


@pytest.mark.parametrize("schedule", ["", "@every=2"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("spec", SPECS)
def test_goes_on_from_a_file(spec: str, at: int, schedule: str) -> None:
    whole = Training(spec + schedule)
    whole.run(batches(at))
    again = Training(spec + schedule)
    again.load(whole.saved())
    rest = batches(9)[at:]
    assert torch.equal(again.run(rest), whole.run(rest))


@pytest.mark.parametrize("spec", SPECS)
def test_without_what_it_remembers_it_would_differ(spec: str) -> None:
    whole = Training(spec)
    whole.run(batches(4))
    again = Training(spec)
    again.model.load_state_dict(whole.model.state_dict())
    if "momentum" not in spec and "preconditioned" not in spec:  # whose memory is the optimizer's
        again.optimizer.load_state_dict(whole.optimizer.state_dict())
    rest = batches(7)[4:]
    assert not torch.equal(again.run(rest), whole.run(rest))


@pytest.mark.parametrize("spec", SPECS)
def test_a_saved_state_stays_as_it_is(spec: str) -> None:
    training = Training(spec)
    training.run(batches(4))
    saved = training.method.state_dict()
    kept = copy.deepcopy(saved)
    training.run(batches(6))
    assert str(saved) == str(kept)


@pytest.mark.parametrize("spec", SPECS)
def test_a_changing_loss_scale_changes_nothing(spec: str) -> None:
    plain, scaled = Training(spec), Training(spec)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for i, batch in enumerate(batches(7)):
        torch.manual_seed(i)
        (step,) = plain.step(batch)
        torch.manual_seed(i)
        other = scaled.method.backward(lambda b=batch: losses(scaled.model, b), runtime=Runtime(scaler=scaler))
        scaler.step(scaled.optimizer)
        scaled.optimizer.zero_grad()
        scaler.update(2.0 ** (3 * i))
        for name, value in step.metrics.items():
            torch.testing.assert_close(other.metrics[name], value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(scaled.weights(), plain.weights(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("spec", SPECS)
def test_a_step_that_the_scaler_skips_is_as_if_it_had_not_been(spec: str, bad: float) -> None:
    plain, scaled = Training(spec), Training(spec)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0, backoff_factor=0.999999999, growth_interval=10**6)
    given = batches(7)
    for i, batch in enumerate(given):
        torch.manual_seed(i)
        plain.step(batch)
        for factor in (bad, 1.0) if i in (0, 2, 3) else (1.0,):
            torch.manual_seed(i)
            runtime = Runtime(scaler=scaler)
            scaled.method.backward(lambda b=batch, f=factor: f * losses(scaled.model, b), runtime=runtime)
            scaler.step(scaled.optimizer)
            scaler.update()
            scaled.optimizer.zero_grad()
    torch.testing.assert_close(scaled.weights(), plain.weights(), rtol=1e-7, atol=1e-9)


ACCUMULATED = {"vasso": "share=rank", "preconditioned_sam": "share=rank", "preconditioned_functional_sam": "share=rank"}


@pytest.mark.parametrize("spec", [s for s in SPECS if s[:7] not in ("looksam", "friendl", "ae_sam:")])
def test_micro_batches_of_a_step_are_one_batch(spec: str) -> None:
    """Where the direction is the step's own, it is shared; where it is known before, all parts move along it anyway."""
    share = ACCUMULATED.get(spec.partition(":")[0])
    whole, parts = Training(spec), Training(f"{spec},{share}" if share else spec)
    for training in (whole, parts):
        training.model[2].p = 0.0
    for batch in batches(5):
        whole.step(batch)
        parts.step(batch, 2, together=bool(share))
    torch.testing.assert_close(parts.weights(), whole.weights(), rtol=1e-8, atol=1e-10)


def test_looksam_makes_its_direction_of_all_micro_batches() -> None:
    """v is made of the sums of g and g_s; in between each part is turned by a length of its own."""
    training = Training("looksam:rho=0.3,k=2,alpha=0.5", torch.optim.SGD)
    training.model[2].p = 0.0
    first, second = batches(2)
    parts = [[tuple(t.chunk(2)[i] for t in batch) for i in range(2)] for batch in (first, second)]
    w = {n: p.detach().clone() for n, p in training.model.named_parameters()}
    sums: list[reference.Weights] = []
    for name in ("erm", "sam"):
        options = {"rho": 0.3} if name == "sam" else {}
        found = []
        for part in parts[0]:
            of, at = reference.losses_function(training.model, lambda call, p=part: losses(call, p) / 2)
            found.append(getattr(reference, name)(of, at, **options))
        sums.append({n: found[0][n] + found[1][n] for n in w})
    g, g_s = sums
    along = sum((g[n] * g_s[n]).sum() for n in w) / reference.norm(g) ** 2
    v = {n: g_s[n] - along * g[n] for n in w}
    training.step(first, 2)
    for name, turn in training.method.state_dict()["turn"].items():
        torch.testing.assert_close(turn, v[name], rtol=1e-10, atol=1e-12)
    expected = {n: torch.zeros_like(p) for n, p in w.items()}
    for part in parts[1]:
        of, at = reference.losses_function(training.model, lambda call, p=part: losses(call, p) / 2)
        plain = reference.erm(of, at)
        for n, value in plain.items():
            expected[n] += value + 0.5 * reference.norm(plain) / reference.norm(v) * v[n]
    for part in parts[1]:
        training.method.backward(lambda p=part: losses(training.model, p) / 2)
    for name, p in training.model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-10, atol=1e-12)


def test_momentum_by_hand() -> None:
    """SGD's buffer after gradients 1 and -3 at momentum 0.5 is -2.5: the weight moves by +rho, against it."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.5)
    method = deltasam.MomentumSAM(model, rho=1.0)
    method.follow(optimizer)
    for slope, gradient in ((1.0, 1.0), (-3.0, -4.0), (0.0, 1.0)):  # at 2, at 2 - 1, at 2 + 1
        optimizer.zero_grad()
        method.backward(lambda s=slope: 0.5 * (model.weight - 2).square().sum() + s * model.weight.sum())
        assert model.weight.grad.item() == pytest.approx(gradient)
        model.weight.grad.fill_(slope)
        optimizer.step()


# Optimizers that keep nothing of the kind.


@pytest.mark.parametrize("spec", ["momentum_sam", "preconditioned_sam", "s2_sam", "looksam"])
def test_following_no_optimizer_is_an_error(spec: str) -> None:
    model = net()
    method = deltasam.make_method(spec, model)
    with pytest.raises(RuntimeError, match=r"call method\.follow\(optimizer\)"):
        method.backward(lambda: losses(model, batches(1)[0]))


@pytest.mark.parametrize(
    ("spec", "optimizer", "missing"),
    [
        ("momentum_sam", torch.optim.SGD, "momentum_buffer or exp_avg from the optimizer, and SGD keeps none"),
        ("preconditioned_sam", torch.optim.SGD, "exp_avg_sq from the optimizer, and SGD keeps none"),
        ("momentum_sam", torch.optim.Adagrad, "and Adagrad keeps none"),
    ],
)
def test_an_optimizer_that_keeps_nothing_is_an_error(spec: str, optimizer: Any, missing: str) -> None:
    training = Training(spec, optimizer)
    training.step(batches(1)[0])  # before the first step no optimizer has anything
    with pytest.raises(RuntimeError, match=missing):
        training.step(batches(1)[0])


def test_a_quantized_state_is_an_error() -> None:
    training = Training("momentum_sam")
    training.step(batches(1)[0])
    for state in training.optimizer.state.values():
        state["exp_avg"] = torch.zeros(4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="Adam keeps \\[4\\] for a parameter of shape"):
        training.step(batches(1)[0])


@pytest.mark.parametrize(
    ("spec", "state", "message"),
    [
        ("s2_sam", {"last_gradient": {"0.weight": torch.ones(2, 2)}}, r"a gradient of 0.weight \[2, 2\]"),
        ("looksam", {"steps": 1, "turn": {"elsewhere": torch.ones(2)}}, r"a direction of elsewhere \[2\]"),
        ("vasso", {"gradient_average": {"0.weight": torch.ones(2)}}, r"an average of 0.weight \[2\]"),
        ("looksam", {}, "saves steps, turn, but was given nothing"),
        ("momentum_sam", {"turn": {}}, "saves nothing, but was given turn"),
    ],
)
def test_another_state_is_refused(spec: str, state: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deltasam.make_method(spec, net()).load_state_dict(state)


@pytest.mark.parametrize("name", ["momentum_sam", "s2_sam", "random_sam"])
def test_one_pass_is_one_forward(name: str) -> None:
    training = Training(f"{name}:rho=0.3")
    runs: list[int] = []
    training.model.register_forward_hook(lambda *_: runs.append(1))
    for batch in batches(3):
        runs.clear()
        (step,) = training.step(batch)
        assert len(runs) == 1
    assert torch.equal(step.loss, step.metrics["perturbed_loss"])
    assert float(step.metrics["radius_ratio"]) == pytest.approx(1)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_looksam_has_a_second_pass_in_every_kth_step(k: int) -> None:
    training = Training(f"looksam:rho=0.3,k={k}")
    training.method._steps = 1  # no look at whether the closure repeats itself, which is a pass more
    counts: list[int] = []
    training.model.register_forward_hook(lambda *_: counts.append(1))
    found = []
    for batch in batches(8):
        counts.clear()
        training.step(batch)
        found.append(len(counts))
    assert found == [2 if number % k == 0 else 1 for number in range(8)]


def test_bad_hyper_parameters() -> None:
    for name, arguments, message in [
        ("vasso", {"theta": 0.0}, "above 0, and at most 1"),
        ("wsam", {"gamma": 1.0}, "0 or more, and below 1"),
        ("gsam", {"alpha": -1.0}, "0 or more"),
        ("looksam", {"k": 0}, "1 or more"),
    ]:
        with pytest.raises(ValueError, match=message):
            Method.registry[name](net(), **arguments)


def test_looksam_begins_with_a_second_pass_wherever_a_schedule_lets_it_begin() -> None:
    training = Training("looksam:rho=0.3,k=5@last=0.4")  # of 20 steps: from step 12 on, which 5 does not divide
    training.method.method._steps = 1
    counts: list[int] = []
    training.model.register_forward_hook(lambda *_: counts.append(1))
    found = []
    for batch in batches(20):
        counts.clear()
        training.step(batch, 2)
        found.append(len(counts) // 2)
    assert found == [1] * 12 + [2, 1, 1, 2, 1, 1, 1, 1]


def test_a_step_without_gradients_is_nothing_to_remember() -> None:
    training = Training("s2_sam:rho=0.3")
    training.optimizer.step()
    assert training.method.state_dict() == {"last_gradient": {}}


def test_ae_sam_decides_by_the_norm() -> None:
    """Gradients 1, 2, 1, 3, 0.5 at momentum 0.5: means of squares 1, 2.5, 1.75, 5.375, 2.8125."""
    model = nn.Linear(1, 1, bias=False).double()
    method = deltasam.AESAM(model, rho=0.1, momentum=0.5, threshold=0.5)
    found = []
    for slope in (1.0, 2.0, 1.0, 3.0, 0.5):
        step = method.backward(lambda s=slope: s * model.weight.sum())
        found.append("perturbed_loss" in step.metrics)
    variance, mean, expected = 0.0, 1.0, [True]
    for square in (4.0, 1.0, 9.0, 0.25):
        mean = (mean + square) / 2
        variance = (variance + (square - mean) ** 2) / 2
        expected.append(square >= mean + 0.5 * variance**0.5)
    assert found == expected == [True, True, False, True, False]
    assert method.state_dict() == {"mean": mean, "variance": variance}


@pytest.mark.parametrize(("threshold", "all_steps"), [(-100.0, True), (100.0, False)])
def test_the_threshold_of_ae_sam_leads_from_sam_to_plain_training(threshold: float, all_steps: bool) -> None:
    found = Training(f"ae_sam:rho=0.3,threshold={threshold}").run(batches(1))
    assert torch.equal(found, Training("sam:rho=0.3").run(batches(1)))  # the first is perturbed in any case
    training, other = Training(f"ae_sam:rho=0.3,threshold={threshold}"), Training("sam:rho=0.3")
    other.method = deltasam.make_method("sam:rho=0.3" if all_steps else "erm", other.model)
    for one in (training, other):
        one.run(batches(1) if one is training else [])
    other.load_weights_of(training)
    torch.testing.assert_close(training.run(batches(4)), other.run(batches(4)), rtol=1e-12, atol=1e-14)


def test_looksam_forgets_half_of_a_skipped_step() -> None:
    """The second micro-batch overflows, the optimizer does not step, and the step is made anew of other rows."""
    plain, skipped = (Training("looksam:rho=0.3,k=2", torch.optim.SGD) for _ in range(2))
    for training in (plain, skipped):
        training.model[2].p = 0.0
    first, other, second = batches(3)
    skipped.method.backward(lambda: losses(skipped.model, other))
    skipped.method.backward(lambda: float("inf") * losses(skipped.model, other))
    skipped.optimizer.zero_grad()
    for training in (plain, skipped):
        training.step(first)
        training.step(second)
    assert torch.equal(plain.weights(), skipped.weights())


def test_gradients_may_be_filled_with_zeros_between_steps() -> None:
    plain, zeros = Training("s2_sam:rho=0.3"), Training("s2_sam:rho=0.3")
    for batch in batches(4):
        plain.run([batch])
        torch.manual_seed(5)
        zeros.method.backward(lambda b=batch: losses(zeros.model, b))
        zeros.optimizer.step()
        zeros.optimizer.zero_grad(set_to_none=False)
    assert torch.equal(plain.weights(), zeros.weights())


class Halving(Runtime):
    """A training stack that divides every loss by the number of micro-batches before its backward."""

    def backward(self, loss: Tensor) -> None:
        super().backward(loss / 2)


@pytest.mark.parametrize("name", ["looksam", "gsam", "wsam", "functional_sam", "ae_sam"])
def test_a_stack_that_divides_the_loss_divides_the_gradient(name: str) -> None:
    """Also where a loss scaler multiplies it."""
    found = []
    for scale in (None, 8.0):
        training = Training(f"{name}:rho=0.3", torch.optim.SGD)
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        for kind in (Runtime, Halving):
            for number, batch in enumerate(batches(2)):  # of LookSAM a step of each kind
                torch.manual_seed(number)
                training.optimizer.zero_grad()
                training.method.backward(lambda m=training.model, b=batch: losses(m, b), runtime=kind(scaler=scaler))
                grads = torch.cat([p.grad.flatten() for p in training.model.parameters()])
                found.append(grads / (scale or 1.0) * (2.0 if kind is Halving else 1.0))
                training.method.__dict__.update(_step=1 - number, _mean=None)
    for one, other in zip(found[:2] * 3, found[2:], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["gsam", "wsam", "looksam", "ae_sam"])
def test_hooks_on_parameters_would_act_twice_and_are_refused(name: str) -> None:
    training = Training(f"{name}:rho=0.3" + (",threshold=100" if name == "ae_sam" else ""))
    training.step(batches(1)[0])
    next(training.model.parameters()).register_hook(lambda g: 2 * g)
    with pytest.raises(RuntimeError, match="would see this method's gradient twice"):
        training.step(batches(2)[1])


@pytest.mark.parametrize("spec", ["s2_sam:rho=0.3", "looksam:rho=0.3,k=3", "sam:rho=0.3@every=2"])
def test_a_fused_optimizer_tells_of_a_skipped_step(spec: str) -> None:
    """It is called in that step too, and its hooks with it."""

    def fused(*arguments: Any, **options: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(*arguments, **options, fused=True)

    plain, scaled = Training(spec, fused), Training(spec, fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0, backoff_factor=0.999999999, growth_interval=10**6)
    for i, batch in enumerate(batches(6)):
        torch.manual_seed(i)
        plain.step(batch)
        for factor in (float("inf"), 1.0) if i in (1, 3) else (1.0,):
            torch.manual_seed(i)
            runtime = Runtime(scaler=scaler)
            scaled.method.backward(lambda b=batch, f=factor: f * losses(scaled.model, b), runtime=runtime)
            scaler.step(scaled.optimizer)
            scaler.update()
            scaled.optimizer.zero_grad()
    torch.testing.assert_close(scaled.weights(), plain.weights(), rtol=1e-7, atol=1e-9)


def test_looksam_measures_what_is_trained_now() -> None:
    """Of a direction that was kept for all weights, a part is as long as alpha says for those that are left."""
    training = Training("looksam:rho=0.3,k=9,alpha=0.7", torch.optim.SGD)
    training.model[2].p = 0.0
    first, second = batches(2)
    training.step(first)
    training.method._latest_turn()
    for frozen in (True, False):
        training.model[0].requires_grad_(not frozen)
        of, w = reference.losses_function(training.model, lambda call: losses(call, second))
        g = reference.erm(of, w)
        training.method.backward(lambda: losses(training.model, second))
        added = {n: p.grad - g[n] for n, p in training.model.named_parameters() if p.requires_grad}
        assert float(reference.norm(added) / reference.norm(g)) == pytest.approx(0.7)
        training.optimizer.zero_grad()


def test_what_an_optimizer_keeps_for_some_parameters_only_is_refused() -> None:
    """Adafactor keeps rows and columns of matrices, and whole second moments of vectors."""
    training = Training("preconditioned_sam:rho=0.3")
    training.step(batches(1)[0])
    for p, state in training.optimizer.state.items():
        if p.ndim > 1:
            del state["exp_avg_sq"]
    with pytest.raises(ValueError, match="for some parameters and not for others"):
        training.step(batches(1)[0])


def test_s2_sam_remembers_what_the_optimizer_holds() -> None:
    training = Training("s2_sam:rho=0.3")
    training.optimizer = torch.optim.SGD(training.model[3].parameters(), lr=0.1)
    training.method.follow(training.optimizer)
    training.step(batches(1)[0])
    assert set(training.method.state_dict()["last_gradient"]) == {"3.weight", "3.bias"}


def test_complex_parameters_are_refused_where_noise_is_real() -> None:
    model = nn.Linear(2, 2, dtype=torch.complex128)
    with pytest.raises(ValueError, match="real parts of complex parameters only"):
        deltasam.RandomSAM(model).backward(lambda: model(torch.ones(1, 2, dtype=torch.complex128)).abs().sum())


@pytest.mark.parametrize("name", ["random_sam", "rw_sam"])
def test_a_parameter_without_elements_has_no_noise(name: str) -> None:
    model = net()
    model.register_parameter("empty", nn.Parameter(torch.zeros(0, 3, dtype=torch.float64)))
    deltasam.make_method(f"{name}:rho=0.1", model).backward(lambda: losses(model[:4], batches(1)[0]))
