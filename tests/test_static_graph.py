"""DistributedDataParallel(static_graph=True) reduces wrongly, without a word, if its first backward is an ascent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import deltasam
from test_inner_backwards import Net


@pytest.fixture(autouse=True)
def _one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make(*, static_graph: bool) -> tuple[nn.Module, Callable[[], Tensor]]:
    net = nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(6, 2))
    model = DistributedDataParallel(net, static_graph=static_graph, find_unused_parameters=not static_graph)
    x, y = torch.randint(9, (4, 2)), torch.tensor([0, 1, 0, 1])
    return model, lambda: F.cross_entropy(model(x), y, reduction="none")


def method(name: str, model: nn.Module) -> deltasam.Method:
    made = deltasam.make_method(name, model)
    made.follow(torch.optim.SGD(model.parameters(), lr=0.1))
    return made


ONE_PASS = ["erm", "momentum_sam", "s2_sam", "random_sam", "flat_lora"]  # whose first backward is no ascent


@pytest.mark.parametrize("name", ONE_PASS)
def test_a_static_graph_is_known_after_one_pass(name: str) -> None:
    model, closure = make(static_graph=True)
    for _ in range(2):
        method(name, model).backward(closure)


@pytest.mark.parametrize("name", [n for n in deltasam.method_names() if n not in ONE_PASS])
def test_a_static_graph_is_refused_until_it_is_known(name: str) -> None:
    model, closure = make(static_graph=True)
    with pytest.raises(RuntimeError, match=r"static_graph=True.*take the first step with ERM"):
        method(name, model).backward(closure)
    model, closure = make(static_graph=True)
    deltasam.ERM(model).backward(closure)
    method(name, model).backward(closure)


@pytest.mark.parametrize("run", ["recomputed", "reentrant"])
def test_inner_backwards_are_refused_where_gradients_are_reduced(run: str) -> None:
    net = Net(run)
    model = DistributedDataParallel(net, find_unused_parameters=run == "reentrant")
    x, y = torch.randint(9, (4, 2)), torch.tensor([0, 1, 0, 1])
    with pytest.raises(RuntimeError, match=r"a backward of its own inside its backward.*use one process"):
        deltasam.SAM(model).backward(lambda: F.cross_entropy(model(x), y))


def test_leaves_that_run_no_backward_are_not() -> None:
    """As transformers' enable_input_require_grads() makes them."""
    net = Net("plain", frozen=True)
    model = DistributedDataParallel(net, find_unused_parameters=True)
    x, y = torch.randint(9, (4, 2)), torch.tensor([0, 1, 0, 1])
    deltasam.SAM(model).backward(lambda: F.cross_entropy(model(x), y))
    assert net.head.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", deltasam.method_names())
def test_other_data_parallel_models_are_not(name: str) -> None:
    model, closure = make(static_graph=False)
    method(name, model).backward(closure)
    assert model.module[2].weight.grad.isfinite().all()
