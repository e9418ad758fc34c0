"""Training that was stopped goes on bit for bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

import forked
import tiny_trainers as tiny
from deltasam.integrations.hf import STATE, Trainer, TrainingArguments
from hidden_product import Hidden

pytestmark = pytest.mark.xdist_group("resume")

SPECS = [*tiny.SPECS, "per_instance_sam:rho=0.1,unsupported=skip", "sam:rho=0.1@warmup=3@decay=0.2"]
UNCOVERED = ["delta_sam:rho=0.1", "per_instance_sam:rho=0.1,unsupported=skip"]
"""On a model with a weight that is not covered, these find out at the first step what later steps rely on."""


class Opaque(tiny.Classifier):
    """One weight is used where it cannot be seen."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.strange = nn.Parameter(torch.ones(tiny.LABELS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **kwargs: Any) -> Any:
        logits = Hidden.apply(super().forward(input_ids, attention_mask, labels).logits, self.strange)
        losses = F.cross_entropy(logits, labels, reduction="sum")
        return SequenceClassifierOutput(loss=losses / kwargs["num_items_in_batch"], logits=logits)


class Stop(transformers.TrainerCallback):
    """Ends training after a step, or kills the process."""

    def __init__(self, step: int, *, kill: bool = False) -> None:
        self.step, self.kill = step, kill

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            control.should_training_stop = True


def trainer(folder: Path, spec: str, kind: type = tiny.Classifier, *callbacks: Any, **options: Any) -> Trainer:
    model = tiny.model(kind, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.1)
    plain = {
        "optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 6, "save_strategy": "steps", "save_steps": 2,
        "train_sampling_strategy": "random", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
    }  # fmt: skip
    args = TrainingArguments(**tiny.settings(folder, spec, **{**plain, **options}))
    return Trainer(model, args, train_dataset=tiny.rows(), callbacks=list(callbacks))


def state(trained: Trainer) -> tuple[list[Tensor], list[dict[str, float]]]:
    """Weights and moments, and what was logged."""
    moments = trained.optimizer.state_dict()["state"]
    tensors = [p.detach() for p in trained.model.parameters()]
    tensors += [value for index in sorted(moments) for value in moments[index].values()]
    logged = [{k: v for k, v in entry.items() if "runtime" not in k} for entry in trained.state.log_history[:6]]
    return tensors, logged


def assert_same(a: Trainer, b: Trainer) -> None:
    """Bit for bit."""
    (tensors, logged), (wanted, wanted_logged) = state(a), state(b)
    assert logged == wanted_logged
    assert len(tensors) == len(wanted) > len(list(a.model.parameters()))
    assert all(torch.equal(x, y) for x, y in zip(tensors, wanted, strict=True))


def cases() -> list[tuple[str, type]]:
    """Every method on a model that all of them cover, and some on one that they do not."""
    return [*((spec, tiny.Classifier) for spec in SPECS), *((spec, Opaque) for spec in UNCOVERED)]


def folder_of(root: Path, spec: str, kind: type) -> Path:
    return root / f"{kind.__name__}-{spec.replace(':', '-')}"


CASES = [pytest.param(spec, kind, id=f"{kind.__name__}-{spec}") for spec, kind in cases()]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is left of trainings, each of which died with its process after the fifth step."""
    root = tmp_path_factory.mktemp("killed")
    code = f"""
import gc, os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_hf_resume as tests
from pathlib import Path
gc.freeze()
for spec, kind in tests.cases():
    if (child := os.fork()) == 0:
        tests.trainer(tests.folder_of(Path({str(root)!r}), spec, kind), spec, kind, tests.Stop(5, kill=True)).train()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == {int(signal.SIGKILL)}, spec
"""
    run = forked.call(exec, code, {})
    assert run.returncode == 0, run.stderr[-2000:]
    return root


@pytest.mark.parametrize(("spec", "kind"), CASES)
@pytest.mark.filterwarnings("ignore:DeltaSAM estimates slopes")
def test_stopped_or_killed_and_resumed(spec: str, kind: type, tmp_path: Path, killed: Path) -> None:
    unbroken = trainer(tmp_path / "unbroken", spec, kind)
    unbroken.train()
    trainer(tmp_path / "stopped", spec, kind, Stop(3)).train()
    for folder in (tmp_path / "stopped", folder_of(killed, spec, kind)):
        resumed = trainer(folder, spec, kind)
        resumed.train(resume_from_checkpoint=True)
        assert_same(resumed, unbroken)


@pytest.mark.parametrize("spec", UNCOVERED)
@pytest.mark.filterwarnings("ignore:DeltaSAM estimates slopes")
def test_what_was_found_out_is_in_the_checkpoint(spec: str, tmp_path: Path) -> None:
    first = trainer(tmp_path, spec, Opaque, Stop(2))
    first.train()
    saved = torch.load(tmp_path / "checkpoint-2" / STATE, weights_only=True)
    assert saved == {"method": first.method.spec, "state": first.method.state_dict()}
    assert "strange" in str(saved["state"])


def test_another_method_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, "sam:rho=0.1", tiny.Classifier, Stop(2)).train()
    with pytest.raises(
        ValueError, match=r"checkpoint-2 was trained with sam:rho=0.1.*now sam:rho=0.2.*give the same, or"
    ):
        trainer(tmp_path, "sam:rho=0.2").train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-2" / STATE).unlink()
    trainer(tmp_path, "sam:rho=0.2").train(resume_from_checkpoint=True)


def test_a_schedule_does_not_begin_again(tmp_path: Path) -> None:
    trainer(tmp_path, "sam:rho=0.1@every=2", tiny.Classifier, Stop(2)).train()
    (tmp_path / "checkpoint-2" / STATE).unlink()
    with pytest.raises(ValueError, match=r"checkpoint-2 has no method.pt.*use a method that keeps no state"):
        trainer(tmp_path, "sam:rho=0.1@every=2").train(resume_from_checkpoint=True)


def test_a_checkpoint_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk while the state is written leaves no half of it."""
    run = trainer(tmp_path, "sam:rho=0.1@every=2", tiny.Classifier, Stop(2))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Exception, match="No space left"):
        run.train()
    assert not list((tmp_path / "checkpoint-2").glob("*method.pt*"))


def test_damage_is_found(tmp_path: Path) -> None:
    trainer(tmp_path, "sam:rho=0.1@every=2", tiny.Classifier, Stop(2)).train()
    path = tmp_path / "checkpoint-2" / STATE
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(
        ValueError, match=r"checkpoint-2/method.pt is damaged \(.*\); resume from an earlier checkpoint"
    ):
        trainer(tmp_path, "sam:rho=0.1@every=2").train(resume_from_checkpoint=True)
