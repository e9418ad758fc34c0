"""Proof that the contracts bite: the code is broken on purpose, and the contract tests must turn red.

Each mutation is a copy of the package with one line changed. All of them run in one other process, which imports
the heavy libraries once and the broken package anew each time.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("mutations")  # one worker does them all: see --dist loadgroup in the Makefile

PACKAGE = Path(__file__).parents[1] / "src" / "deltasam"

# What is broken: the file, the line, what it becomes, and the contract that must turn red.
MUTATIONS: dict[str, tuple[str, str, str, str]] = {
    "weights are not restored": (
        "guards.py",
        "        torch._foreach_copy_(weights, saved)  #",
        "        pass  #",
        "leaves_the_model",
    ),
    "weights are restored by subtraction": (
        "guards.py",
        "        torch._foreach_copy_(weights, saved)  #",
        "        weight_space.add(weights, [v for _, v in pairs], -factor)  #",
        "leaves_the_model",
    ),
    "weights are restored only when nothing fails": (
        "guards.py",
        "    finally:\n        torch._foreach_copy_(weights, saved)",
        "    except ZeroDivisionError:\n        raise\n    else:\n        torch._foreach_copy_(weights, saved)",
        "after_an_exception",
    ),
    "later passes draw new dropout masks": (
        "passes.py",
        "                self._start.restore()\n",
        "                pass\n",
        "replay_the_masks",
    ),
    "kept masks leave the random state behind": (
        "dropout_masks.py",
        "                torch.set_rng_state(mask.random_state)\n",
        "",
        "replay_the_masks",
    ),
    "kept masks are in the wrong order": (
        "dropout_masks.py",
        "self._rest = iter(masks)",
        "self._rest = iter(masks[::-1])",
        "equals_the_reference",
    ),
    "the random state is left at the start": (
        "passes.py",
        "                self._end.restore()\n",
        "                self._start.restore()\n",
        "advances_by_one_pass",
    ),
    "later passes advance BatchNorm": (
        "passes.py",
        "                self._buffers.restore()\n",
        "                pass\n",
        "leaves_the_model",
    ),
    "an error leaves BatchNorm advanced": (
        "passes.py",
        "        self._buffers_before.restore()\n",
        "",
        "after_an_exception",
    ),
    "an error leaves the random state advanced": (
        "passes.py",
        "        self._start.restore()\n        self._buffers_before",
        "        self._buffers_before",
        "after_an_exception",
    ),
    "python's random state is forgotten": (
        "guards.py",
        "            (random.setstate, (random.getstate(),)),\n",
        "",
        "replay_the_masks",
    ),
    "numpy's random state is forgotten": (
        "guards.py",
        'if "numpy" in sys.modules',
        'if "no such module" in sys.modules',
        "replay_the_masks",
    ),
    "a constant is added to the norm": (
        "weight_space.py",
        "radius / value if",
        "radius / (value + 1e-3) if",
        "scales_with_the_loss",
    ),
    "an infinite gradient moves the weights": (
        "weight_space.py",
        "if value > 0 else",
        "if value != 0 else",
        "infinite",
    ),
    "a zero gradient divides by zero": (
        "weight_space.py",
        "if value > 0 else 0.0",
        "if value >= 0 else 0.0",
        "zero_gradient",
    ),
    "the first gradient lands in .grad too": (
        "runtime.py",
        "        gradients = torch",
        "        loss.backward(retain_graph=True)\n        gradients = torch",
        "neutral_equals_erm",
    ),
    "the perturbation points downhill": (
        "passes.py",
        "weight_space.length_to(rho, norm)",
        "-weight_space.length_to(rho, norm)",
        "equals_the_reference",
    ),
    "the norm is of one layer only": (
        "weight_space.py",
        "for t in vector if t is not None and t.numel()]",
        "for t in vector if t is not None and t.numel()][:1]",
        "equals_the_reference",
    ),
    "ASAM scales by T once": (
        "methods/asam.py",
        "else g * t for g, t in zip(scaled, units",
        "else g for g, t in zip(scaled, units",
        "equals_the_reference",
    ),
    "ASAM scales biases": ("methods/asam.py", 'if "weight" in name}', "}", "equals_the_reference"),
    "delta-SAM weights are not used": (
        "methods/delta_sam.py",
        "(weights * losses).mean()",
        "losses.mean()",
        "equals_the_reference",
    ),
    "delta-SAM divides by nothing": (
        "methods/delta_sam.py",
        "slope.clamp(min=SMALLEST_SLOPE * slope.mean())",
        "slope.mean()",
        "equals_the_reference",
    ),
    "delta-SAM looks on one side twice": (
        "methods/delta_sam.py",
        "passes.at(noise, -self.sigma)",
        "passes.at(noise, self.sigma)",
        "equals_the_reference",
    ),
    "per-instance groups share a perturbation": (
        "methods/per_instance_sam.py",
        "losses[group].mean()",
        "losses.mean()",
        "equals_the_reference",
    ),
    "per-instance layers see no shift": (
        "per_example/shift.py",
        "return y + call.rule.shift(layer, call.rule.rows(new, len(factors)), x, cb).view(call.b.shape)",
        "return y.expand(call.b.shape)",
        "equals_the_reference",
    ),
    "per-instance norms leave out biases": (
        "per_example/rules.py",
        "            total += b_nTO.sum(1).square().sum(1)\n",
        "            pass\n",
        "equals_the_reference",
    ),
    "per-instance mean is over groups": (
        "methods/per_instance_sam.py",
        "perturbed.sum() / len(losses)",
        "perturbed.mean()",
        "neutral_equals_erm",
    ),
    "hyper-parameters are lost in the spec": (
        "spec.py",
        "{getattr(method, k)!r}",
        "{hyperparameters(type(method))[k]!r}",
        "spec_round_trip",
    ),
    "copies carry the scratch memory": ("guards.py", "    def __reduce__(self)", "    def no_reduce(self)", "copies"),
}

RUNNER = """
import json, os, sys
import pytest, torch, transformers, peft
transformers.BertForSequenceClassification, transformers.GPT2LMHeadModel
tests, copies = sys.argv[1], json.loads(sys.argv[2])
found = sys.path[:]
for name, (folder, contracts) in copies.items():
    for module in [m for m in sys.modules if {"deltasam", "cases", "tests", "test_contracts"} & set(m.split("."))]:
        del sys.modules[module]
    sys.path[:] = [folder, *found]
    sys.stdout.flush()
    devnull, keep = os.open(os.devnull, os.O_WRONLY), os.dup(1)
    os.dup2(devnull, 1)
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", contracts, tests])
    os.dup2(keep, 1)
    import deltasam
    if not deltasam.__file__.startswith(folder):
        raise SystemExit(f"{name}: the copy was not the one tested, but {deltasam.__file__}")
    print("RESULT", json.dumps([name, int(code)]), flush=True)
"""


def _copy(factory: pytest.TempPathFactory) -> Path:
    folder = factory.mktemp("copy")
    shutil.copytree(PACKAGE, folder / "deltasam", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The exit code of the contract tests for every mutation, and for an unchanged copy."""
    copies = {"unchanged": (str(_copy(tmp_path_factory)), " or ".join({m[3] for m in MUTATIONS.values()}))}
    for name, (file, old, new, contract) in MUTATIONS.items():
        path = (folder := _copy(tmp_path_factory)) / "deltasam" / file
        source = path.read_text()
        if source.count(old) != 1:
            raise LookupError(f"{name}: the line to break is {source.count(old)} times in {file}; update this test")
        path.write_text(source.replace(old, new))
        copies[name] = (str(folder), contract)
    tests = Path(__file__).with_name("test_contracts.py")
    command = [sys.executable, "-c", RUNNER, str(tests), json.dumps(copies)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tests.parents[1], check=False)
    results = [json.loads(line[7:]) for line in run.stdout.splitlines() if line.startswith("RESULT ")]
    if run.returncode:
        raise RuntimeError(run.stdout[-2000:] + run.stderr[-2000:])
    return dict(results)


def test_the_code_as_it_is_passes(outcomes: dict[str, int]) -> None:
    assert outcomes["unchanged"] == 0


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_mutation_is_caught(outcomes: dict[str, int], name: str) -> None:
    assert outcomes[name] == 1, "the contract tests passed on broken code"
