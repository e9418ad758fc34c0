"""Two processes: every method under DDP and FSDP2 equals its equation; sharded norms; who talks how often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distributed import gradients
from distributed.launch import told

pytestmark = pytest.mark.xdist_group("distributed")


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the tests that were selected ask for, from one start."""
    given = [item.callspec.params for item in request.session.items if item.path == Path(__file__)]  # type: ignore[attr-defined]
    wanted = [params.get("part") or f"{params['stack']} | {params['spec']}" for params in given]
    return told(Path(__file__).with_name("gradients.py"), *wanted)


@pytest.mark.parametrize("spec", gradients.SPECS)
@pytest.mark.parametrize("stack", gradients.STACKS)
def test_equals_its_equation(stack: str, spec: str, results: dict[str, Any]) -> None:
    found = results[f"{stack} | {spec}"]
    kept = {"friendly_sam": "the moving average", "vasso": "the moving average", "s2_sam": "the last gradient"}
    kept["ae_sam"] = "the first gradient"
    kept |= dict.fromkeys(("gsam", "wsam", "looksam"), "the first of two gradients")
    if stack.startswith("fsdp") and (what := kept.get(spec.partition(":")[0])):
        assert f"FSDP cuts the weights up between the processes, and {what} with them" in found
    elif stack.startswith("fsdp") and (
        "share=micro-batch" in spec or "share=rank" in spec or spec == f"sam:rho={gradients.RHO},only=head"
    ):
        assert found.startswith("ValueError")
        assert "FSDP cuts the weights up between the processes" in found
        assert "use share=global, or per_instance_sam" in found
    else:
        assert found < 1e-10


@pytest.mark.parametrize("part", ["norms"])
def test_the_norm_of_a_sharded_vector_is_that_of_all_parts(part: str, results: dict[str, Any]) -> None:
    norms = results[part]
    assert norms["ours"] == pytest.approx(norms["true"], rel=1e-12)
    assert abs(norms["local"] - norms["true"]) > 0.01 * norms["true"]


@pytest.mark.parametrize("part", ["collectives"])
def test_a_sharded_per_instance_step_reduces_no_more_than_plain_training(part: str, results: dict[str, Any]) -> None:
    """Weights are collected for two passes instead of one; gradients are reduced once, and nothing else is said."""
    plain, per_instance, sam = (results[part][name] for name in ("erm", "per_instance_sam", "sam"))
    assert plain["_reduce_scatter_base_"] > 0
    # One number more: whether a process has seen something new, so that all check it.
    assert per_instance == {**plain, "_allgather_base_": 2 * plain["_allgather_base_"], "allreduce_": 1}
    assert sam["_reduce_scatter_base_"] == 2 * plain["_reduce_scatter_base_"]
    # Two numbers more: the norm of the ascent, and the distance that was moved.
    assert sam.keys() - plain.keys() == {"all_reduce"}
    assert sam["all_reduce"] == 2


@pytest.mark.parametrize("part", ["no sync"])
def test_gradient_synchronisation_may_be_off_where_the_first_pass_needs_none(
    part: str, results: dict[str, Any]
) -> None:
    found = results[part]
    assert found["erm"] < 1e-10
    assert found["per_instance_sam"] < 1e-10
    assert "FSDP has not reduced the gradient of the first pass" in found["sam"]
    assert "share=global" in found["sam"]
