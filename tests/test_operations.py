"""What a step asks of a device beside its arithmetic, counted: no times, which hang on the machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import deltasam
import overhead
from overhead import Operations, bert, llama

SPECS = [*deltasam.method_names(), "delta_sam:weights=norms", "delta_sam:weights=slopes", "rw_sam:weights=slopes"]
LAYERS = 4


def counted(spec: str, task: overhead.Task) -> tuple[Operations, list[int]]:
    """The operations of a step that is not checked; and how often the device was waited for in each forward."""
    model, losses = task()
    method = deltasam.make_method(spec, model)
    method.follow(torch.optim.SGD(model.parameters()))
    waits: list[int] = []

    def closure() -> Tensor:
        before = operations.waits.total()
        result = losses()
        waits.append(operations.waits.total() - before)
        return result

    for _ in range(3):  # counting makes another graph, whose first step is checked
        waits.clear()
        with Operations() as operations:
            method.backward(closure)
    return operations, waits


@pytest.mark.parametrize("make", [bert, llama], ids=["bert", "llama"])
@pytest.mark.parametrize("spec", SPECS)
def test_a_step_waits_for_the_device_three_times_at_most(spec: str, make: Callable[..., overhead.Task]) -> None:
    """Beside what the model itself asks for in every forward, and never in there."""
    (plain,) = counted("erm", make(LAYERS))[1]
    operations, waits = counted(spec, make(LAYERS))
    assert waits == [plain] * len(waits)
    assert operations.waits.total() - sum(waits) <= 3


@pytest.mark.parametrize(
    ("spec", "most"),
    [("sam", 2.5), ("asam", 2.6), ("per_instance_sam", 2.45), ("delta_sam:weights=norms", 2.9)],
)
@pytest.mark.parametrize("make", [bert, llama], ids=["bert", "llama"])
def test_operations_over_those_of_plain_training(spec: str, most: float, make: Callable[..., overhead.Task]) -> None:
    plain, found = (counted(s, make(LAYERS))[0].all.total() for s in ("erm", spec))
    assert found <= most * plain


@pytest.mark.parametrize("spec", ["sam", "asam", "per_instance_sam", "delta_sam:weights=norms"])
def test_operations_and_waits_with_depth(spec: str) -> None:
    """What a layer adds is as many operations in every depth, and no wait."""
    counts = [counted(spec, bert(layers))[0] for layers in (2, 4, 6)]
    first, second, third = (c.all.total() for c in counts)
    assert third - second == pytest.approx(second - first, abs=8)
    assert len({c.waits.total() for c in counts}) == 1
