"""What each prediction weighs in a loss, found from the loss; how far two predictions are apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
from deltasam.methods.bases.predictions import Predictions, logits_of, predictions_of

N, T = 4, 6
IGNORED = -100


def labels(classes: int) -> Tensor:
    y = torch.randint(classes, (N, T))
    y[0, :3] = y[2, 5] = IGNORED
    return y


def found(loss: Tensor, logits: Tensor, **more: Any) -> Tensor:
    return predictions_of(deltasam.Output(loss, logits, **more), [], loss, "M").weights


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("classes", [2, 3, 50])
def test_cross_entropies(classes: int, smoothing: float, dtype: torch.dtype) -> None:
    """Masked, shifted by one, divided by a count that is not the batch's, and scaled."""
    x, y = torch.randn(N, T, classes).to(dtype).requires_grad_(), labels(classes)
    wide = x[:, :-1].to(torch.promote_types(dtype, torch.float32))
    loss = F.cross_entropy(wide.flatten(0, 1), y[:, 1:].flatten(), reduction="sum", label_smoothing=smoothing)
    expected = F.pad((y[:, 1:] != IGNORED).double(), (0, 1)) * 64 / 37
    rounding = 100 * torch.finfo(dtype).eps if dtype in (torch.float32, torch.float64) else 0.05
    torch.testing.assert_close(found(64 * loss / 37, x).double(), expected, rtol=rounding, atol=0)


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, T, 1)])
def test_squared_errors(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    loss = F.mse_loss(x.squeeze(-1) if x.ndim > 1 else x, torch.randn(shape[:2] if x.ndim == 3 else shape[:1]))
    weights = found(3 * loss, x)
    torch.testing.assert_close(weights, torch.full_like(weights, 3 / x.numel()))


def test_masked_squared_errors_and_the_bent_part_of_huber() -> None:
    """What has no part in the loss has no gradient either; without an error there is no gradient, but curvature."""
    x, mask = torch.randn(N, requires_grad=True), torch.tensor([1.0, 0, 2, 0])
    torch.testing.assert_close(found(((x - 5).square() * mask).sum(), x), mask)
    huber = F.huber_loss(x, x.detach() + torch.tensor([0.0, 0.5, -0.5, 0.9]))
    torch.testing.assert_close(found(huber, x), torch.full((N,), 0.5 / N))


@pytest.mark.parametrize("label", [0, 1])
def test_certain_predictions_weigh_nothing(label: int) -> None:
    """To the last bit, right or wrong; a wrong one has a gradient all the same."""
    x = torch.tensor([[1000.0, 0.0], [0.5, 0.0]], requires_grad=True)
    torch.testing.assert_close(found(F.cross_entropy(x, torch.tensor([label, 0])), x), torch.tensor([0.0, 0.5]))


def test_classes_with_weights_and_examples_with_weights() -> None:
    x, y, each = torch.randn(N, 3, requires_grad=True), torch.tensor([0, 1, 2, 1]), torch.rand(N)
    of_class = torch.tensor([1.0, 2.0, 4.0])
    loss = (F.cross_entropy(x, y, of_class, reduction="none") * each).mean()
    torch.testing.assert_close(found(loss, x), of_class[y] * each / N)


@pytest.mark.parametrize("larger", [1.0, 20.0, 80.0])
def test_nearly_certain_predictions_keep_their_weight(larger: float) -> None:
    """p (1 - p) is rounding there: the weight comes from what is beside the most likely class."""
    x = (larger * torch.tensor([[1.0, 0, 0], [0, 1, 0.5], [0, 0.2, 1]])).requires_grad_()
    loss = F.cross_entropy(x, torch.tensor([0, 1, 0]))
    torch.testing.assert_close(found(loss, x), torch.full((3,), 1 / 3), rtol=1e-5, atol=0)


def test_small_weights_in_float16() -> None:
    """A gradient is rounded to it where the model computes in it, and entries of one over a thousand squares vanish."""
    x, y = torch.randn(4000, 300).half().requires_grad_(), torch.randint(300, (4000,))
    weights = found(F.cross_entropy(x.float(), y), x)
    torch.testing.assert_close(weights, torch.full((4000,), 1 / 4000), rtol=1e-3, atol=0)


def focal(x: Tensor) -> Tensor:
    p = x.softmax(-1)[:, 0]
    return (-((1 - p) ** 2) * p.log()).mean()


NO_SUM = {
    "focal of two": (2, focal),
    "focal of three": (3, focal),
    "brier": (2, lambda x: x.softmax(-1)[:, 0].square().mean()),
    "squares of three": (3, lambda x: x.square().mean()),
    "binary of one": (1, lambda x: F.binary_cross_entropy_with_logits(x, torch.ones_like(x))),
    "binary of three": (3, lambda x: F.binary_cross_entropy_with_logits(x, torch.ones_like(x))),
    "fourth powers": (1, lambda x: x.pow(4).mean()),
    "absolute errors": (1, lambda x: F.l1_loss(x, torch.zeros_like(x))),
    "hinge": (1, lambda x: (2 + x.abs().detach() - x).relu().mean()),
    "hinge by clamp": (1, lambda x: (2 + x.abs().detach() - x).clamp(min=0).mean()),
    "all of huber": (1, lambda x: F.smooth_l1_loss(x, x.detach() + 3)),
    "a part of huber": (1, lambda x: F.huber_loss(x, x.detach() + torch.tensor([[0.5], [0.0], [0.1], [3.0]]))),
    "negative": (3, lambda x: -F.cross_entropy(x, torch.zeros(len(x)).long())),
    "examples meet": (3, lambda x: F.cross_entropy(x - x.mean(0), torch.zeros(len(x)).long())),
    "linear": (3, lambda x: x.sum()),
    "of something else": (3, lambda x: (x * 0).detach().sum() + torch.ones((), requires_grad=True)),
}


@pytest.mark.parametrize("name", NO_SUM)
def test_other_losses_are_refused(name: str) -> None:
    classes, loss = NO_SUM[name]
    x = torch.randn(N, classes, requires_grad=True)
    with pytest.raises(
        ValueError, match=r"not a weighted sum of cross entropies.*return deltasam.Output\(.*logit_weights"
    ):
        found(loss(x), x)
    found(loss(x), x, logit_weights=torch.ones(N))  # told, it need not be found


def test_weights_that_do_not_fit_are_refused() -> None:
    x = torch.randn(N, 3, requires_grad=True)
    with pytest.raises(ValueError, match=r"logit_weights have shape \[3\], but the predictions have shape \[4\]"):
        found(x.sum(), x, logit_weights=torch.ones(3))


def test_the_loss_of_what_the_logits_were_before_a_cast() -> None:
    x = torch.randn(N, 3).bfloat16().requires_grad_() * 1
    loss = F.cross_entropy(x.float(), torch.tensor([0, 1, 2, 1]))
    torch.testing.assert_close(found(loss, x.float()), torch.full((N,), 1 / N), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ([], "ran 0 times"),
        ([SimpleNamespace(logits=torch.ones(2, 2))] * 2, "ran 2 times"),
        ([{"sentence_embedding": torch.ones(2, 2)}], "returned dict without logits"),
    ],
)
def test_where_there_are_no_logits(seen: list[Any], words: str) -> None:
    with pytest.raises(ValueError, match=rf"M compares predictions.*{words}; return deltasam.Output\(loss, logits\)"):
        logits_of(torch.ones(2), seen, "M")


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: SimpleNamespace(logits=x), lambda x: {"logits": x}])
def test_logits_that_the_model_returned(wrap: Callable[[Tensor], Any]) -> None:
    x = torch.ones(2, 2)
    assert logits_of(torch.ones(2), [wrap(x)], "M") is x


def test_divergence_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2): KL(p, q) + KL(q, p) = sum (p - q) log(p / q) = log(3) / 4."""
    x, y = torch.tensor([[math.log(3), 0.0], [5.0, 5.0]]), torch.tensor([[2.0, 2.0], [1.0, 1.0]])
    divergence = Predictions(x, torch.tensor([0.5, 8.0])).divergence(y)
    assert float(divergence) == pytest.approx(0.5 * math.log(3) / 4)
    numbers = Predictions(torch.tensor([[1.0], [2.0]]), torch.tensor([0.5, 0.25]))
    assert float(numbers.divergence(torch.tensor([3.0, 3.0]))) == pytest.approx(0.5 * 4 + 0.25)


def test_classes_that_are_ruled_out_have_no_part() -> None:
    x = torch.tensor([[1.0, 0.0, -math.inf]], requires_grad=True)
    y = torch.tensor([[0.0, 0.0, -math.inf]])
    divergence = Predictions(x, torch.ones(1)).divergence(y)
    (gradient,) = torch.autograd.grad(divergence, x)
    expected = Predictions(x[:, :2], torch.ones(1)).divergence(y[:, :2])
    torch.testing.assert_close(divergence, expected)
    assert gradient.isfinite().all()


def test_r_drop_of_a_linear_model_by_hand() -> None:
    """Two rows of masks of the inputs: the gradient is X^T times what each logit gets."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3, bias=False)).double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    masks: list[Tensor] = []
    net[0].register_forward_hook(lambda *call: masks.append(call[-1].detach()))
    deltasam.RDrop(net, alpha=3.0).backward(lambda: F.cross_entropy(net(x), y, reduction="none"))
    (a, b), w = masks, net[1].weight.detach()
    assert not torch.equal(a, b)
    p, q = (a @ w.T).softmax(-1), (b @ w.T).softmax(-1)
    ratio, target = (p / q).log(), F.one_hot(y, 3)
    # d/dx of sum (p - q) log(p / q), for the logits of p; and with p and q exchanged for those of q.
    of_p = p * (ratio - (p * ratio).sum(-1, keepdim=True)) + p - q
    of_q = q * (-ratio + (q * ratio).sum(-1, keepdim=True)) + q - p
    at_a, at_b = ((p - target) / 2 + 3.0 * of_p / 2) / 5, ((q - target) / 2 + 3.0 * of_q / 2) / 5
    torch.testing.assert_close(net[1].weight.grad, at_a.T @ a + at_b.T @ b)


def test_compiled_models_run_as_they_were_written() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    compiled, x, y = torch.compile(net, backend="eager"), torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0])
    gradients = []
    for model in (net, compiled):
        net.zero_grad()
        method = deltasam.RDrop(model)
        torch.manual_seed(1)
        if model is compiled:
            with pytest.warns(RuntimeWarning, match="RDrop runs the compiled model as it was written"):
                method.backward(lambda: F.cross_entropy(compiled(x), y))
        else:
            method.backward(lambda: F.cross_entropy(net(x), y))
        gradients.append(net[0].weight.grad.clone())
    assert torch.equal(*gradients)
