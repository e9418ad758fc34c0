"""A small part of the adversary: the whole of it is run by hand, before a release (benchmarks/adversary)."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import deltasam
from adversary import methods, oracle, programs, sweep
from adversary.judge import SPECS, Truth
from deltasam.per_example import outer_products as outer

FAILURES = ("wrong", "crashed")
PER_INSTANCE = SPECS[0]


@pytest.fixture(autouse=True)
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(outer, "SMALL", outer.SMALL)  # the adversary sets it as it likes
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("seed", range(40))
def test_a_random_program_is_exact_or_refused(seed: int) -> None:
    source = programs.source(programs.plan(seed))
    # State that a forward keeps in Python attributes is the user's: only methods of single examples look for it.
    keeps_state = "self.last" in source or "self.count" in source
    of_batches = () if keeps_state else (SPECS[-1],)
    found = programs.judge(source, (PER_INSTANCE, "per_example_grad_norms", *of_batches))
    assert not {spec: outcome for spec, outcome in found.items() if outcome.kind in FAILURES}


@pytest.mark.parametrize(
    "name", ["bert BertForSequenceClassification", "llama LlamaModel", "t5 T5EncoderModel", "vit ViTModel"]
)
def test_a_model_class_is_exact(name: str) -> None:
    found = sweep.judge(*name.split(), dropout=False)
    assert {outcome.kind for outcome in found.values()} == {"exact"}


@pytest.mark.parametrize("seed", range(33))
def test_a_method_follows_its_equation(seed: int) -> None:
    spec, outcome = methods.judge(seed)
    assert outcome.kind == "exact", (spec, outcome)


def test_every_method_has_an_equation() -> None:
    assert set(deltasam.method_names()) <= {*methods.HYPERPARAMETERS, "erm"}


def test_the_oracle_shares_nothing_with_the_library() -> None:
    tree = ast.parse(Path(oracle.__file__).read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {str(name).partition(".")[0] for name in modules} <= {*sys.stdlib_module_names, "torch"}


def test_a_seed_is_one_program() -> None:
    assert programs.source(programs.plan(7)) == programs.source(programs.plan(7))
    assert len({programs.source(programs.plan(seed)) for seed in range(50)}) == 50


def test_a_wrong_radius_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    make = deltasam.make_method

    def broken(spec: str, model: torch.nn.Module) -> deltasam.Method:
        method = make(spec, model)
        method.rho *= 1 + 1e-6  # type: ignore[attr-defined]
        return method

    monkeypatch.setattr(deltasam, "make_method", broken)
    found = programs.judge(PLAIN, (PER_INSTANCE, SPECS[-1]))
    assert [outcome.kind for outcome in found.values()] == ["wrong", "wrong"]


def test_a_batch_that_mixes_examples_is_never_called_exact() -> None:
    mixed = PLAIN.replace("self.layer(x)", "self.layer(x - x.mean(0))")
    assert programs.judge(PLAIN, (PER_INSTANCE,))[PER_INSTANCE].kind == "exact"
    (case, *_) = programs.cases(mixed)
    alone = Truth(case).answer(PER_INSTANCE)
    assert alone.gradient.keys() == {"layer.weight", "layer.bias"}
    centred = PLAIN.replace("self.layer(x)", "self.layer(x) - self.layer(x).mean(0)")
    assert programs.judge(centred, (PER_INSTANCE,))[PER_INSTANCE].kind == "refused"


PLAIN = """
import torch, torch.nn.functional as F
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, task=0):
        return torch.tanh(self.layer(x)), 0.0

def batch(n, seed, **_):
    g = torch.Generator().manual_seed(seed)
    return dict(x=torch.randn(n, 4, generator=g), y=torch.arange(n) % 3)

def losses(model, x, y, task):
    return F.cross_entropy(model(x)[0], y, reduction="none")

LOSS, SCALAR = "cross entropy", False
STEPS = [dict(n=4, train=True, frozen=0, task=0, seed=0), dict(n=4, train=True, frozen=0, task=0, seed=1)]
torch.manual_seed(0)
model = Model()
"""
