"""Compiled models: per-example methods run them as they were written, the others run them compiled."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam

X, Y = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1, 2])
BACKEND = "aot_eager"  # as torch.compile's own, but for the generated code
SCRIPT_CALL = torch.jit.ScriptFunction.__call__
PER_EXAMPLE = [
    "per_instance_sam:rho=0.3",
    "per_instance_sam:rho=0.3,unsupported=loop",
    "per_instance_sam:rho=0.3,unsupported=skip",
    "delta_sam:rho=0.3",
    "delta_sam:rho=0.3,weights=norms",
]


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.4), nn.Tanh(), nn.Linear(8, 8), nn.Dropout(0.4), nn.Linear(8, 3))


def whole(model: nn.Module) -> tuple[nn.Module, Callable[[], Tensor]]:
    compiled = torch.compile(model, backend=BACKEND)
    return compiled, lambda: F.cross_entropy(compiled(X), Y, reduction="none")


def whole_but_the_method_has_the_model(model: nn.Module) -> tuple[nn.Module, Callable[[], Tensor]]:
    return model, whole(model)[1]


def in_place(model: nn.Module) -> tuple[nn.Module, Callable[[], Tensor]]:
    model.compile(backend=BACKEND)
    return model, lambda: F.cross_entropy(model(X), Y, reduction="none")


def a_layer(model: nn.Module) -> tuple[nn.Module, Callable[[], Tensor]]:
    model[3].compile(backend=BACKEND)
    model[4].compile(backend=BACKEND)
    return model, lambda: F.cross_entropy(model(X), Y, reduction="none")


def a_function(model: nn.Module) -> tuple[nn.Module, Callable[[], Tensor]]:
    return model, torch.compile(lambda: F.cross_entropy(model(X), Y, reduction="none"), backend=BACKEND)


def gradient(spec: str, model: nn.Module, closure: Callable[[], Tensor], steps: int = 3) -> Tensor:
    torch.manual_seed(5)
    method = deltasam.make_method(spec, model)
    for _ in range(steps):
        method.backward(closure)
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def eager(spec: str) -> Tensor:
    model = make()
    return gradient(spec, model, lambda: F.cross_entropy(model(X), Y, reduction="none"))


COMPILED = [whole, whole_but_the_method_has_the_model, in_place, a_layer, a_function]


@pytest.mark.filterwarnings("ignore:.*as it was written")
@pytest.mark.parametrize("compile_", COMPILED)
@pytest.mark.parametrize("spec", PER_EXAMPLE)
def test_per_example_methods_are_exact(spec: str, compile_: Callable) -> None:
    assert torch.equal(gradient(spec, *compile_(make())), eager(spec))
    assert "unique_graphs" not in torch._dynamo.utils.counters["stats"]  # nothing was compiled


@torch.jit.script
def scaled(x: Tensor, scale: Tensor) -> Tensor:
    return x * scale / torch.sqrt(torch.tensor(x.size(-1), dtype=torch.float))


class Scaled(nn.Module):
    function: Callable = staticmethod(scaled)

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(5, 3), nn.Parameter(torch.rand(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x), self.scale)


@pytest.mark.parametrize("spec", ["per_instance_sam:rho=0.3", "delta_sam:rho=0.3,weights=norms"])
def test_a_scripted_function_is_run_as_it_was_written(spec: str) -> None:
    model = Scaled()
    plain = copy.deepcopy(model)
    plain.function = scaled._torchdynamo_inline
    expected = gradient(spec, plain, lambda: F.cross_entropy(plain(X), Y, reduction="none"))
    found = gradient(spec, model, lambda: F.cross_entropy(model(X), Y, reduction="none"))
    assert torch.equal(found, expected)
    assert torch.jit.ScriptFunction.__call__ is SCRIPT_CALL


@pytest.mark.parametrize("compile_", COMPILED)
@pytest.mark.parametrize("spec", ["erm", "sam:rho=0.3", "asam:rho=0.3", "delta_sam:rho=0.3,weights=slopes"])
def test_other_methods_run_compiled_once_and_in_one_piece(spec: str, compile_: Callable) -> None:
    torch.testing.assert_close(gradient(spec, *compile_(make())), eager(spec), rtol=1e-4, atol=1e-5)
    assert not torch._dynamo.utils.counters["graph_break"]
    # Of each compiled piece a graph with gradients, and for slopes one without.
    pieces = 2 if compile_ is a_layer else 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= pieces * (2 if "slopes" in spec else 1)


def test_norms_and_coverage_of_a_compiled_model() -> None:
    model, closure = whole(make().eval())
    plain = make().eval()
    expected = deltasam.per_example_grad_norms(plain, lambda: F.cross_entropy(plain(X), Y, reduction="none"))
    assert torch.equal(deltasam.per_example_grad_norms(model, closure), expected)
    assert deltasam.PerInstanceSAM(model).coverage(closure).exact


def test_it_says_so_once() -> None:
    model, closure = whole(make())
    method = deltasam.PerInstanceSAM(model)
    with pytest.warns(RuntimeWarning, match=r"PerInstanceSAM runs the compiled model as it was written: .* use SAM"):
        method.backward(closure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.backward(closure)


def test_the_stance_is_put_back() -> None:
    model, closure = whole(make())
    method = deltasam.DeltaSAM(model)
    with pytest.warns(RuntimeWarning, match="DeltaSAM runs the compiled model"), torch.compiler.set_stance("default"):
        method.backward(closure)
    closure()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    twin = copy.deepcopy(method)
    assert twin.spec == method.spec


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(5, 64), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear(x))


@pytest.mark.skipif(not shutil.which("g++"), reason="generated code needs a C++ compiler, g++")
@pytest.mark.slow
def test_generated_code_has_the_same_masks_in_every_pass() -> None:
    """It draws them from a stream of its own, which the random state of PyTorch starts."""
    model = Drops()
    compiled, masks = torch.compile(model), []

    def closure() -> Tensor:
        output = compiled(X)
        masks.append((output != 0).detach())
        return output.square().mean(1)

    method = deltasam.DeltaSAM(model, rho=0.3, weights="slopes")
    method.backward(closure)
    first = len(masks)
    method.backward(closure)
    assert first == 4  # one looks whether the closure repeats itself
    assert len(masks) == 7
    assert all(torch.equal(mask, masks[0]) for mask in masks[:first])
    assert all(torch.equal(mask, masks[first]) for mask in masks[first:])
    assert not torch.equal(masks[0], masks[first])
