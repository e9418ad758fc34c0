"""Methods by name: specs, what is wrong with one, and the registry."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

import deltasam
from classifier import losses
from deltasam import Method
from deltasam.core.closure import loss_of
from deltasam.method import hyperparameters
from deltasam.spec import full_spec, short_spec


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("samm", "did you mean 'sam'"),
        ("nothing like it", r"there are: ae_sam, asam, delta_sam, erm"),
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
        (
            "per_instance_sam:unsupported=maybe",
            r"PerInstanceSAM\(unsupported='maybe'\): unsupported must be one of 'error', 'loop', 'skip'$",
        ),
        (
            "delta_sam:weights='norms'",
            r"DeltaSAM\(weights=\"'norms'\"\): weights must be one of 'auto', 'own_curvature', 'norms', 'cu",
        ),
        ("delta_sam:weights=", "'weights=' has no value; write delta_sam:weights=value"),
    ],
)
def test_bad_specs(spec: str, words: str, model: nn.Module) -> None:
    with pytest.raises(ValueError, match=words) as error:
        deltasam.make_method(spec, model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "full"),
    [
        ("per_instance_sam:unsupported=skip", "per_instance_sam:rho=0.005,m=1,unsupported=skip"),
        ("delta_sam: weights = curvature", "delta_sam:rho=0.02,weights=curvature,sigma=0.001,share=micro-batch"),
        ("delta_sam", "delta_sam:rho=0.02,weights=auto,sigma=0.001,share=micro-batch"),
    ],
)
def test_words_in_specs(spec: str, full: str, model: nn.Module) -> None:
    assert deltasam.make_method(spec, model).spec == full
    assert deltasam.make_method(full, model).spec == full
    assert deltasam.split_specs(f"erm,{full},sam") == ["erm", full, "sam"]


@pytest.mark.parametrize(
    ("spec", "short"),
    [
        ("erm", "erm"),
        ("sam", "sam"),
        ("sam:rho=0.02", "sam"),
        ("sam:rho=0.05", "sam:rho=0.05"),
        ("per_instance_sam:m=2", "per_instance_sam:m=2"),
        ("per_instance_sam:unsupported=loop,rho=0.1", "per_instance_sam:rho=0.1,unsupported=loop"),
    ],
)
def test_short_specs(spec: str, short: str, model: nn.Module) -> None:
    full = deltasam.make_method(spec, model).spec
    assert short_spec(full) == short
    assert deltasam.make_method(short, model).spec == full


@pytest.mark.parametrize("spec", ["unknown:rho=0.02", "unknown", "[b]x[/b]:a=1,b=2"])
def test_unknown_specs_are_not_shortened(spec: str) -> None:
    assert short_spec(spec) == spec


def test_short_specs_are_told_apart(model: nn.Module) -> None:
    """What a short spec leaves out can be filled in again, so no two methods have the same."""
    values = {"rho": (0, 0.005, 0.02, 0.5), "eta": (0.01, 1), "sigma": (0.001, 1), "weights": ("auto", "norms"),
              "m": (1, 2), "unsupported": ("error", "loop"), "share": ("micro-batch", "global"),
              "only": ("norm",)}  # fmt: skip
    specs = {
        deltasam.make_method(f"sam:rho={rho}@{when}", model).spec
        for rho in (0.02, 1)
        for when in ("every=2", "last=0.5")
    }
    for name in ("erm", "sam", "asam", "delta_sam", "per_instance_sam"):
        names = hyperparameters(Method.registry[name])
        for choice in itertools.product(*(values[n] for n in names)):
            spec = f"{name}:" + ",".join(f"{n}={v}" for n, v in zip(names, choice, strict=True))
            specs.add(deltasam.make_method(spec, model).spec)
    assert len({short_spec(spec) for spec in specs}) == len(specs) == 4 + 1 + 8 + 16 + 32 + 16
    assert all(deltasam.make_method(short_spec(spec), model).spec == spec for spec in specs)


def test_lists_of_specs() -> None:
    assert deltasam.split_specs("erm, asam:rho=0.5,eta=0.1 ,sam,") == ["erm", "asam:rho=0.5,eta=0.1", "sam"]


def test_a_method_of_ones_own(model: nn.Module, batch: Any) -> None:
    class Doubled(Method, name="doubled"):
        """Twice the gradient."""

        neutral = {"times": 1}  # noqa: RUF012

        def __init__(self, model: nn.Module, *, times: int = 2, exact: bool = False) -> None:
            super().__init__(model)
            self.times, self.exact = times, exact

        def fill(self, passes: Any) -> deltasam.Step:
            return deltasam.Step(passes.backward(self.times * loss_of(passes.first())))

    try:
        method = deltasam.make_method("doubled:times=3,exact=True", model)
        assert method.spec == "doubled:times=3,exact=True"
        assert method.backward(lambda: losses(model, batch)).loss > 0
        with pytest.raises(ValueError, match="is taken by"):
            type("Other", (Doubled,), {}, name="doubled")
    finally:
        del Method.registry["doubled"]


@pytest.mark.parametrize("name", deltasam.method_names())
def test_a_spec_draws_no_random_number(name: str) -> None:
    """Training with a method begins as training without one."""
    before = torch.get_rng_state()
    full_spec(f"{name}@every=2" if "rho" in deltasam.Method.registry[name].neutral else name)
    assert torch.equal(torch.get_rng_state(), before)
