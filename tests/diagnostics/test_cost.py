"""What a call costs: passes counted by hand, parts that add up, time that is where it was spent."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
from deltasam.diagnostics import cost, fidelity, plot_cost, plot_fidelity


class Slow(torch.autograd.Function):
    """The identity; its backward sleeps."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        time.sleep(0.03)
        return g


def closures_of(model: nn.Module, sizes: tuple[int, ...] = (8, 4)) -> list[Callable[[], Tensor]]:
    data = [(torch.randn(n, 6), torch.arange(n) % 3) for n in sizes]
    return [lambda x=x, y=y: F.cross_entropy(model(x), y, reduction="none") for x, y in data]


def test_passes_are_counted(model: nn.Module) -> None:
    specs = "erm,sam,per_instance_sam,delta_sam:weights=slopes"
    found = cost(model, closures_of(model)[:1], specs, rounds=2)
    assert [m.method for m in found.methods] == [deltasam.make_method(s, model).spec for s in specs.split(",")]
    assert [(m.forwards, m.backwards) for m in found.methods] == [(1, 1), (2, 2), (2, 2), (3, 2)]
    assert all(len(m.ratios) == 2 for m in found.methods)


def test_every_registered_method_is_costed_or_refused(model: nn.Module) -> None:
    found = cost(model, closures_of(model)[:1], rounds=1)
    names = {spec.partition(":")[0] for spec in (*(m.method for m in found.methods), *found.refused)}
    assert names == set(deltasam.method_names())
    assert "freelb" in {spec.partition(":")[0] for spec in found.refused}  # there are no token embeddings
    assert all(found.refused.values())


def test_time_is_where_it_was_spent(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sleeps in the forward, in the backward and between the passes."""
    (plain,) = closures_of(model)[:1]

    def closure() -> Tensor:
        time.sleep(0.02)
        return Slow.apply(plain())

    descend = deltasam.core.passes.Passes.descend

    def slow(self: object, *args: object, **kwargs: object) -> object:
        time.sleep(0.05)
        return descend(self, *args, **kwargs)

    monkeypatch.setattr(deltasam.core.passes.Passes, "descend", slow)
    found = cost(model, [closure], "sam", rounds=3)
    (sam,) = found.methods
    # A loaded machine sleeps longer, never shorter.
    assert found.plain_forward >= 0.02
    assert found.plain_backward >= 0.03
    assert min(sam.forward / 0.04, sam.backward / 0.06, sam.rest / 0.05) >= 0.99
    assert sam.forward + sam.backward + sam.rest == pytest.approx(sam.seconds)
    assert sam.ratio > 1.5
    assert "medians over 3 calls" in found.reading


def test_memory_of_a_large_call_is_seen() -> None:
    """Two calls that differ by 256 MB at their peak."""
    model = nn.Linear(4, 3)
    x, y = torch.randn(4, 4), torch.arange(4) % 3

    def peak(elements: int) -> float | None:
        def closure() -> Tensor:
            torch.ones(elements).sum()
            return F.cross_entropy(model(x), y, reduction="none")

        return cost(model, [closure], "erm", rounds=1).methods[0].peak_memory_mib

    small, large = peak(1), peak(1 << 26)
    if small is None or large is None:
        pytest.skip("the system does not tell the peak")
    assert large - small == pytest.approx(256, abs=32)


def test_leaves_nothing() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    gradients = [p.grad for p in model.parameters()]
    closures = closures_of(model)
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    calls: list[None] = []

    def failing() -> Tensor:
        calls.append(None)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return closures[0]()

    cost(model, closures, "erm,sam", rounds=1)
    with pytest.raises(KeyboardInterrupt):
        cost(model, [failing], "erm,sam", rounds=1)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))


def test_bad_arguments(model: nn.Module) -> None:
    for change, message in (
        ({"rounds": 0}, r"cost\(rounds=0\)"),
        ({"closures": []}, "0 closures"),
        ({"methods": "samm"}, "did you mean 'sam'"),
        ({"methods": "freelb"}, "no method works here"),
        ({"methods": "sam@every=2"}, "sam@every=2'.*has a schedule"),
    ):
        with pytest.raises(ValueError, match=message):
            cost(**{"model": model, "closures": closures_of(model), "methods": "erm", **change})


def test_plots_show_the_numbers(model: nn.Module) -> None:
    found = cost(model, closures_of(model)[:1], "erm,sam:rho=0.1", rounds=1)
    ax = plot_cost(found)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["erm", "sam:rho=0.1"]
    widths = [[bar.get_width() for bar in bars] for bars in ax.containers]
    assert [sum(w) for w in zip(*widths, strict=True)] == pytest.approx([1000 * m.seconds for m in found.methods])
    assert [t.get_text() for t in ax.texts] == [f"{m.ratio:.2f}x" for m in found.methods]

    results = fidelity(model, closures_of(model), "erm,sam,asam:rho=0.1")
    ax = plot_fidelity(results)
    errors, cosines, _ = ax.containers
    assert errors.lines[0].get_xdata() == pytest.approx([r.mean.error for r in results])
    assert len(cosines.lines[0].get_xdata()) == 2  # undefined for plain training
    assert [t.get_text() for t in ax.get_yticklabels()] == ["erm", "sam:rho=0.02", "asam:rho=0.1"]


def test_methods_share_the_memory_for_a_copy_of_the_weights(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each would be in the peaks of all that come after it."""
    stores, kept = [], []

    class Watched(deltasam.core.restore.WeightStore):
        def __init__(self) -> None:
            super().__init__()
            stores.append(weakref.ref(self))

    def start(self: object, device: str) -> None:
        kept.append(sum(store() is not None and bool(store()._saved) for store in stores))

    monkeypatch.setattr(deltasam.method, "WeightStore", Watched)
    monkeypatch.setattr("deltasam.diagnostics.peak_memory.PeakMemory.__init__", start)
    monkeypatch.setattr("deltasam.diagnostics.peak_memory.PeakMemory.mib", lambda _: None)
    cost(model, closures_of(model)[:1], "sam,asam,sam:rho=0.1,erm", rounds=1)
    assert kept == [1, 1, 1, 0]  # its own
