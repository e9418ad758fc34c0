"""``only=``: the parameters that move, and no others; the gradient is that of all."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cases
import deltasam
from deltasam import Method, reference

MOVING = [n for n, cls in Method.registry.items() if "only" in deltasam.hyperparameters(cls)]
ONE_PASS = [n for n in MOVING if Method.registry[n].loss_is_perturbed is not Method.loss_is_perturbed]
SPECS = [f"{n}:rho=0.3" for n in MOVING] + [
    "delta_sam:rho=0.3,weights=slopes",
    "per_instance_sam:rho=0.3,unsupported=loop",
]


def losses_and_weights(case: cases.Case) -> tuple[Any, dict[str, Tensor]]:
    return reference.losses_function(case.model, lambda call: case.run(call, None))


def gradient(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def filled(spec: str, case: cases.Case) -> dict[str, Tensor]:
    method = deltasam.make_method(spec, case.model)
    method.follow(torch.optim.Adam(case.model.parameters()))
    case.model.zero_grad()
    torch.manual_seed(3)
    method.backward(case.closure)
    return gradient(case.model)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, g in found.items():
        torch.testing.assert_close(g, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("norm", {"bert.embeddings.LayerNorm.weight", "bert.encoder.layer.1.output.LayerNorm.bias"}),
        ("LayerNorm", {"bert.embeddings.LayerNorm.weight"}),
        ("head", {"classifier.weight", "classifier.bias"}),
        ("classifier", {"classifier.weight", "classifier.bias"}),
        (r"layer\.1\..*query", {"bert.encoder.layer.1.attention.self.query.weight"}),
    ],
)
def test_moves_what_it_says(only: str, expected: set[str]) -> None:
    """Every pass is looked at: what is at other values, and what is not."""
    case = cases.make("bert", dropout=False)
    before = {n: p.detach().clone() for n, p in case.model.named_parameters()}
    moved: list[set[str]] = []

    def closure() -> Tensor:
        moved.append({n for n, p in case.model.named_parameters() if not torch.equal(p, before[n])})
        return case.closure()

    deltasam.SAM(case.model, rho=0.3, only=only).backward(closure)
    assert moved[0] == set()
    assert expected <= moved[-1]
    assert all(re.search({"norm": "LayerNorm", "head": "classifier"}.get(only, only), name) for name in moved[-1])


def test_a_tied_head_is_the_head() -> None:
    """In GPT-2 the output layer is the embedding, whose first name says nothing of a head."""
    case = cases.make("gpt2", dropout=False)
    for only in ("head", "lm_head"):
        names = deltasam.SAM(case.model, only=only).moving.names(_structure(case.model))
        assert names == {"transformer.wte.weight"}


def test_adapters() -> None:
    case = cases.make("lora", dropout=False)
    names = deltasam.SAM(case.model, only="adapters").moving.names(_structure(case.model))
    assert names
    assert all("lora_" in name for name in names)
    assert any("classifier" in n for n, p in case.model.named_parameters() if p.requires_grad)


def _structure(model: nn.Module) -> Any:
    from deltasam.core.structure import Structure

    return Structure(model)


@pytest.mark.parametrize("only", ["norm", "head", r"layer\.0"])
def test_sam_equals_its_equation(only: str) -> None:
    case = cases.make("bert")
    found = filled(f"sam:rho=0.3,only={only}", case)
    torch.manual_seed(3)
    losses, w = losses_and_weights(case)
    part = {"norm": "LayerNorm", "head": "classifier", r"layer\.0": "layer.0"}[only]
    g = {n: v if part in n else torch.zeros_like(v) for n, v in reference.erm(losses, w).items()}
    same(found, reference.erm(losses, reference.moved(w, g, reference.step(0.3, g))))


@pytest.mark.parametrize("only", ["norm", "head", r"layer\.0"])
@pytest.mark.parametrize("unsupported", ["error", "loop"])
def test_per_instance_sam_equals_its_equation(only: str, unsupported: str) -> None:
    case = cases.make("padded")
    found = filled(f"per_instance_sam:rho=0.3,unsupported={unsupported},only={only}", case)
    losses, w = losses_and_weights(case)
    part = {"norm": "LayerNorm", "head": "classifier", r"layer\.0": "layer.0"}[only]
    total = {n: torch.zeros_like(v) for n, v in w.items()}
    for i in range(cases.EXAMPLES):
        of_one = reference.gradient(losses(w)[i], w)
        g = {n: v if part in n else torch.zeros_like(v) for n, v in of_one.items()}
        there = reference.moved(w, g, reference.step(0.3, g))
        for n, v in reference.gradient(losses(there)[i], there).items():
            total[n] += v / cases.EXAMPLES
    same(found, total)


@pytest.mark.parametrize("spec", SPECS)
def test_what_does_not_move_is_as_a_constant_to_the_perturbation(spec: str) -> None:
    """With the rest frozen, the moving parameters have the same perturbation, and so the same gradient."""
    case = cases.make("padded")
    parts = filled(f"{spec},only=norm", case)
    assert parts.keys() == filled("erm", case).keys()  # those that do not move are trained too
    for name, p in case.model.named_parameters():
        p.requires_grad_("LayerNorm" in name)
    if any(name in spec for name in ("random", "rw_sam", "slopes", "preconditioned", "gsam")):
        return  # noise, damping and the angle of two gradients are of all trained parameters
    frozen = filled(spec, case)
    assert frozen
    same(frozen, parts)


@pytest.mark.parametrize("spec", SPECS)
def test_everything_is_the_same_as_without(spec: str) -> None:
    case = cases.make("padded")
    same(filled(f"{spec},only=.", case), filled(spec, case))


def test_the_spec_says_it() -> None:
    model = nn.Linear(2, 2)
    assert "only" not in deltasam.SAM(model).spec
    assert deltasam.make_method("sam:only=norm", model).only == "norm"
    assert deltasam.make_method("sam:only=norm", model).spec.endswith(",only=norm")


@pytest.mark.parametrize("name", MOVING)
def test_nothing_to_move_is_an_error(name: str) -> None:
    case = cases.make("bert")
    with pytest.raises(ValueError, match=r"only='elsewhere'\) moves no parameter.*norm, head, adapters"):
        filled(f"{name}:only=elsewhere", case)


def test_not_a_regular_expression() -> None:
    with pytest.raises(ValueError, match="not a regular expression"):
        deltasam.SAM(nn.Linear(1, 1), only="(")


def test_the_first_backward_ends_at_the_first_that_moves() -> None:
    """A hook below the head sees the gradient of the second pass alone."""
    case = cases.make("bert", dropout=False)
    seen: list[int] = []

    def watch(_m: Any, _i: Any, output: Any) -> None:
        (output if isinstance(output, Tensor) else output[0]).register_hook(lambda _: seen.append(1))

    case.model.bert.encoder.layer[0].register_forward_hook(watch)
    for only, count in ((None, 2), ("head", 1)):
        method = deltasam.SAM(case.model, rho=0.1, only=only)
        method.backward(case.closure)  # checked, which takes further passes
        seen.clear()
        method.backward(case.closure)
        assert len(seen) == count


def test_the_head_of_a_model_without_names_is_its_last_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    assert deltasam.SAM(model, only="head").moving.names(_structure(model)) == {"2.weight", "2.bias"}


def test_what_is_called_a_head_inside_a_block_is_none() -> None:
    block = nn.ModuleDict({"fc": nn.Linear(2, 2), "out": nn.Linear(2, 2)})
    model = nn.ModuleDict({"layers": nn.ModuleList([block]), "score": nn.Linear(2, 2)})
    assert deltasam.SAM(model, only="head").moving.names(_structure(model)) == {"score.weight", "score.bias"}
