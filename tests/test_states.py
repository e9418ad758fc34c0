"""What a method saves is loaded by the same method, and refused by any other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deltasam
from deltasam import Method


def weights() -> dict[str, Tensor]:
    return {"weight": torch.ones(2, 3), "bias": torch.ones(2)}


STATES: dict[str, dict[str, Any]] = {
    "friendly_sam": {"gradient_average": weights()},
    "smart": {"weight_average": weights()},
    "per_instance_sam:unsupported=skip": {"skipped": {"weight": "why"}, "checked": ["bias", "weight"]},
    "delta_sam": {"uncovered": ["bias", "weight"]},
    "sam@every=2": {"steps": 3, "method": {}},
    "friendly_sam@every=2": {"steps": 3, "method": {"gradient_average": weights()}},
}
PLAIN = ["erm", "sam", "asam", "r_drop", "r3f", "freelb"]


def made(spec: str) -> Method:
    method = deltasam.make_method(spec, nn.Linear(3, 2))
    method.follow(torch.optim.SGD(method.model.parameters(), lr=0.1))
    return method


@pytest.mark.parametrize("spec", STATES)
def test_its_own_state_is_loaded(spec: str) -> None:
    method = made(spec)
    method.load_state_dict(STATES[spec])
    assert repr(method.state_dict()) == repr(STATES[spec])


@pytest.mark.parametrize(("spec", "owner"), [(s, owner) for s in (*PLAIN, *STATES) for owner in STATES if s != owner])
def test_that_of_another_method_is_refused(spec: str, owner: str) -> None:
    method = made(spec)
    before = repr(method.state_dict())
    with pytest.raises(ValueError, match=r"saves .*, but was given .*; load what the same method saved"):
        method.load_state_dict(STATES[owner])
    assert repr(method.state_dict()) == before


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("sam@every=2", r"sam:rho=0.02,share=micro-batch@every=2 saves steps, method, but was given nothing"),
        ("friendly_sam", r"friendly_sam:.* saves gradient_average, but was given nothing"),
    ],
)
def test_nothing_is_no_state_of_these(spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made(spec).load_state_dict({})


@pytest.mark.parametrize("spec", ["erm", "sam", "smart", "per_instance_sam", "delta_sam", "rw_sam"])
def test_nothing_is_a_state_of_the_others(spec: str) -> None:
    made(spec).load_state_dict({})
