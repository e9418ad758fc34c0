"""``pytest tests/test_contracts.py --method-file mine.py``: the contracts on a method of one's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import forked

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs/extend/method.md").read_text(encoding="utf-8")
MINE = next(re.finditer(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))[1]


def contracts(folder: Path, code: str, which: str) -> str:
    (folder / "mine.py").write_text(code, encoding="utf-8")
    options = ["-q", "-p", "no:cacheprovider", "-k", which, "--method-file", str(folder / "mine.py")]
    # In a process of its own: the method stays in the registry.
    run = forked.call(pytest.main, [*options, str(TESTS / "test_contracts.py")], PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    return run.stdout


def changed(old: str, new: str) -> str:
    assert old in MINE
    return MINE.replace(old, new)


def test_the_documented_method_keeps_them(tmp_path: Path) -> None:
    said = contracts(tmp_path, MINE, "mlp")
    passed = re.search(r"^(\d+) passed, \d+ deselected", said, re.MULTILINE)
    assert passed, said
    assert int(passed[1]) > 15


@pytest.mark.parametrize(
    ("old", "new", "contract"),
    [
        ("passes.descend(both, self.rho)", "passes.descend(both, self.rho / 2)", "test_equals_the_reference"),
        ("weight_space.plus(ascent, further)", "weight_space.plus(further, further)", "test_an_infinite_ascent"),
    ],
)
def test_a_wrong_one_does_not(tmp_path: Path, old: str, new: str, contract: str) -> None:
    said = contracts(tmp_path, changed(old, new), f"{contract} and mlp")
    assert re.search(rf"^FAILED .*{contract}.*two_step_sam", said, re.MULTILINE), said
    assert " passed" not in said


# Half the plain gradient, that of the first pass, and half the gradient at the adversarial weights.
PENALIZED = """
import deltasam
from deltasam import reference
from deltasam.core.closure import loss_of


class Penalized(deltasam.Method, name="penalized"):
    neutral = {"rho": 0.0}

    def __init__(self, model, *, rho: float = 0.05):
        super().__init__(model)
        self.rho = rho

    def fill(self, passes):
        loss = loss_of(passes.first())
        plain = passes.grad(loss)
        norm = deltasam.weight_space.norm(plain)
        with passes.at(list(plain), deltasam.weight_space.length_to(self.rho, norm)) as point:
            perturbed = passes.backward(loss_of(point.output) / 2) * 2
            far = point.radius()
        for p, g in zip(passes.params, plain):
            if g is not None:
                p.grad.add_(g / 2)
        metrics = {"perturbed_loss": perturbed, "ascent_norm": norm, "radius_ratio": far / self.rho}
        return deltasam.Step(loss.detach(), metrics)


def penalized(losses, w, *, rho):
    g = reference.erm(losses, w)
    there = reference.erm(losses, reference.moved(w, g, reference.step(rho, g)))
    return {name: (v + there[name]) / 2 for name, v in g.items()}
"""
INFINITE = "test_an_infinite_ascent and mlp"


def test_one_that_adds_the_first_gradient_may_show_the_infinity(tmp_path: Path) -> None:
    said = contracts(tmp_path, PENALIZED, f"({INFINITE}) or test_metrics or test_zero_gradient or equals_the_reference")
    assert re.search(r"^\d+ passed, \d+ deselected", said, re.MULTILINE), said


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (PENALIZED.replace("at(list(plain)", "at([g if g is None else g.nan_to_num(1, 1, 1) for g in plain]").replace(
            "length_to(self.rho, norm)", "length_to(self.rho, norm.new_ones(()))"),
         "expected every pass at the weights as they are, and passes [2] were at others"),
        (PENALIZED.replace('"radius_ratio": far / self.rho', ""), "a method with a rho reports 'radius_ratio'"),
        (changed(
            "return deltasam.Step(loss.detach(), passes.descend(both, self.rho))",
            "metrics = passes.descend(both, self.rho)\n"
            "        for p in (p for p in passes.params if p.grad is not None):\n"
            "            p.grad.mul_(metrics['ascent_norm'] / metrics['ascent_norm'])\n"
            "        return deltasam.Step(loss.detach(), metrics)"),
         "expected the finite gradient of a later pass in .grad"),
    ],
    ids=["moved", "no metric", "not its own"],
)  # fmt: skip
def test_what_is_expected_of_an_infinite_ascent_is_said(tmp_path: Path, code: str, message: str) -> None:
    said = contracts(tmp_path, code, INFINITE)
    assert re.search(r"^FAILED .*test_an_infinite_ascent", said, re.MULTILINE), said
    assert message in said
    assert "assert False" not in said


def test_one_without_a_reference_is_told_to_write_it(tmp_path: Path) -> None:
    said = contracts(tmp_path, changed("def two_step_sam(", "def another("), "mlp")
    assert "there is no function two_step_sam(losses, w, ...) beside the class TwoStepSAM" in said
