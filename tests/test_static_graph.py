"""DistributedDataParallel(static_graph=True) reduces wrongly, without a word, if its first backward is an ascent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import deltasam


@pytest.fixture(autouse=True)
def _one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make(*, static_graph: bool) -> tuple[nn.Module, Callable[[], Tensor]]:
    model = DistributedDataParallel(nn.Linear(3, 2), static_graph=static_graph, find_unused_parameters=not static_graph)
    return model, lambda: model(torch.ones(4, 3)).square().mean(1)


@pytest.mark.parametrize("name", [n for n in deltasam.method_names() if n != "erm"])
def test_a_static_graph_is_refused_until_it_is_known(name: str) -> None:
    model, closure = make(static_graph=True)
    with pytest.raises(RuntimeError, match=r"static_graph=True.*take the first step with ERM"):
        deltasam.make_method(name, model).backward(closure)
    model, closure = make(static_graph=True)
    deltasam.ERM(model).backward(closure)
    deltasam.make_method(name, model).backward(closure)


@pytest.mark.parametrize("name", deltasam.method_names())
def test_other_data_parallel_models_are_not(name: str) -> None:
    model, closure = make(static_graph=False)
    deltasam.make_method(name, model).backward(closure)
    assert model.module.weight.grad.isfinite().all()
