"""What a run keeps of its training examples, against loops written by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from deltasam.diagnostics.examples import read_examples
from deltasam.lab.data import TextData, add_label_noise, load_data
from deltasam.lab.train.batches import shuffled
from deltasam.lab.train.checkpoint import resume_run, save_checkpoint
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.example_records import EXTREMES
from deltasam.lab.train.results import RunResult
from deltasam.lab.train.run import Run, train_run


def finish(run: Run) -> RunResult:
    return train_run(run, on_step=lambda run: None, on_evaluation=lambda run: None)


def test_losses_and_predictions_of_a_loop_written_by_hand(data: TextData, config: TrainConfig) -> None:
    run = Run(data, config, "erm", 5)
    finish(run)

    torch.manual_seed(5)
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    model = AutoModelForSequenceClassification.from_pretrained(config.model, num_labels=2).train()
    torch.manual_seed(5)
    matrices = [p for n, p in model.named_parameters() if "bias" not in n and "LayerNorm" not in n]
    others = [p for n, p in model.named_parameters() if "bias" in n or "LayerNorm" in n]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    per_epoch = math.ceil(len(data.train) / 6)
    total, warm = 2 * per_epoch, round(0.2 * per_epoch)
    losses, predictions = np.full((2, len(data.train)), np.nan), np.full((2, len(data.train)), -1)
    for step in range(total):
        epoch, position = divmod(step, per_epoch)
        rows = shuffled(len(data.train), 5, epoch)[position * 6 : position * 6 + 6]
        batch = tokenizer([data.train["text"][r] for r in rows], padding=True, return_tensors="pt")
        logits = model(**batch).logits
        found = cross_entropy(logits, torch.tensor([data.train["label"][r] for r in rows]), reduction="none")
        losses[epoch, rows], predictions[epoch, rows] = found.detach(), logits.argmax(1)
        found.mean().backward()
        clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (step / warm if step < warm else (total - step) / (total - warm))
        optimizer.step()
        optimizer.zero_grad()

    np.testing.assert_allclose(run.examples.values("loss"), losses, rtol=1e-4)
    assert np.median(np.abs(np.diff(losses, axis=0))) > 3e-3  # else an epoch that was taken for the other could pass
    assert run.examples.values("prediction").tolist() == predictions.tolist()
    assert run.examples.numbers == ["loss"]


@pytest.mark.parametrize("method", ["sam:rho=0.5", "r_drop", "smart"])
def test_later_passes_go_by_unseen(data: TextData, config: TrainConfig, method: str) -> None:
    """The first step's losses are plain training's, whatever the method does with the batch afterwards."""
    plain = Run(data, config, "erm", 0)
    plain.step()
    other = Run(data, config, method, 0)
    other.step()
    rows = plain.rows(0)
    assert torch.equal(other.examples.values("loss")[0, rows], plain.examples.values("loss")[0, rows])
    assert torch.equal(other.examples.values("prediction"), plain.examples.values("prediction"))


@pytest.mark.parametrize("method", ["per_instance_sam:rho=0.1", "per_instance_sam:rho=0.1,unsupported=loop",
                                    "delta_sam:rho=0.1", "rw_sam:rho=0.1,weights=norms"])  # fmt: skip
def test_norms_of_a_step_by_autograd(
    data: TextData, config: TrainConfig, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from two_processes import not_covered

    if "loop" in method:
        monkeypatch.setattr("deltasam.methods.per_instance_sam.PerInstanceSAM._descend_together", not_covered)
    run = Run(data, config, method, 0)
    run.model.eval()  # no dropout, so that an example alone has the gradient it has among others
    parameters, expected = list(run.model.parameters()), {}
    for row in run.rows(0):
        (loss,) = run.closure([row])().loss
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        expected[row] = math.sqrt(sum(float(g.double().square().sum()) for g in gradients if g is not None))
    with pytest.warns(match="one example at a time") if "loop" in method else nullcontext():
        run.step()
    norms = run.examples.mean("norm")
    assert norms[run.rows(0)].tolist() == pytest.approx([expected[row] for row in run.rows(0)], rel=1e-4)
    assert sorted(norms.isfinite().nonzero().flatten().tolist()) == sorted(run.rows(0))
    assert ("weight" in run.examples.numbers) == (not method.startswith("per_instance"))


@pytest.mark.parametrize("method", ["sam", "per_instance_sam:m=2", "delta_sam:weights=slopes"])
def test_no_norms_without_paying_for_them(data: TextData, config: TrainConfig, method: str) -> None:
    run = Run(data, dataclasses.replace(config, epochs=1), method, 0)
    finish(run)
    assert "norm" not in run.examples.numbers


def test_a_step_without_weights_is_no_weight(data: TextData, config: TrainConfig) -> None:
    run = Run(data, config, "delta_sam:rho=0.1@every=2", 0)
    result = finish(run)
    weights, (plain, weighted) = run.examples.values("weight"), (run.rows(1), run.rows(2))
    assert run.steps_per_epoch == 6  # so an example is weighted in every other epoch of its step's
    assert weights[0, plain].isnan().all()
    assert weights[0, weighted].isfinite().all()
    assert run.examples.values("loss").isfinite().all()
    ever = weights.isfinite().any(0)
    assert 0 < int(ever.sum()) < len(ever)
    assert len(result.weights) == int(ever.sum())
    assert {e.weight is None for e in result.ranked("loss")} == {True, False}
    assert all(e.weight is not None for e in result.ranked("weight"))


@pytest.mark.parametrize("method", ["delta_sam:rho=0.1", "per_instance_sam@every=2"])
def test_resumed_in_the_middle_of_an_epoch(data: TextData, config: TrainConfig, tmp_path: Path, method: str) -> None:
    noisy = add_label_noise(data, 0.25, 0)
    whole = Run(noisy, config, method, 0)
    expected = finish(whole)
    broken = Run(noisy, config, method, 0)
    for _ in range(8):
        broken.step()
    save_checkpoint(tmp_path / "checkpoint.pt", broken)
    run = Run(noisy, config, method, 0)
    resume_run(tmp_path / "checkpoint.pt", run)
    found = finish(run)
    assert found.table == expected.table
    assert (found.examples, found.detection, found.weights) == (
        expected.examples, expected.detection, expected.weights
    )  # fmt: skip
    for name in ("loss", "weight", "norm", "prediction"):
        if name in whole.examples.state_dict()["values"]:
            assert torch.equal(run.examples.values(name).nan_to_num(-9), whole.examples.values(name).nan_to_num(-9))


def test_extremes_are_those_of_all_examples(tiny_model: Path, tmp_path: Path) -> None:
    import tiny_bert

    data = load_data(tiny_bert.write_reviews(tmp_path / "many.csv", 160), text="review", label="verdict")
    config = TrainConfig(model=str(tiny_model), epochs=1, batch_size=32, learning_rate=3e-3)
    run = Run(add_label_noise(data, 0.25, 0), config, "delta_sam:rho=0.1", 0)
    result = RunResult.from_json(finish(run).to_json())  # what a page is made from
    assert len(run.examples) == 128 > len(result.examples)
    rows = data.train["row"]
    for by in ("weight", "norm", "loss"):
        order = [rows[i] for i in np.argsort(-run.examples.mean(by).numpy(), kind="stable")]
        ranked = result.ranked(by)
        assert [e.row for e in ranked[:EXTREMES]] == order[:EXTREMES]
        assert [e.row for e in ranked[-EXTREMES:]] == order[-EXTREMES:]
    for e in result.examples:
        index = rows.index(e.row)
        label, clean = (data.label_names[run.data.train[name][index]] for name in ("label", "clean_label"))
        predicted = data.label_names[run.examples.last_prediction()[index]]
        assert (e.text, e.label, e.clean_label) == (data.train["text"][index], label, clean)
        assert (e.prediction, e.correct, e.flipped) == (predicted, predicted == label, label != clean)
        assert e.loss == float(run.examples.mean("loss")[index])
        assert e.visits == 1
    assert {e.flipped for e in result.examples} == {True, False}


def test_without_noise_nothing_is_said_of_it(data: TextData, config: TrainConfig) -> None:
    result = finish(Run(data, config, "sam", 0))
    assert result.detection == {}
    assert result.ranked("weight") == result.ranked("norm") == []
    assert {e.flipped for e in result.examples} == {None}
    assert len(result.ranked("loss")) == 32


def test_scores(reviews: Path, config: TrainConfig, tmp_path: Path) -> None:
    data = add_label_noise(load_data(reviews, text="review", label="score", task="regression"), 0.25, 0)
    result = finish(run := Run(data, config, "erm", 0))
    (tmp_path / "t.csv").write_bytes(result.table.encode())
    table = read_examples(tmp_path / "t.csv")
    assert table["label"].tolist() == pytest.approx(data.train["label"])
    assert table["clean_label"].tolist() == pytest.approx(data.train["clean_label"])
    assert table["prediction"].tolist() == pytest.approx(run.examples.values("prediction")[-1].tolist())
    assert "correct" not in table
    assert {e.correct for e in result.examples} == {None}
    squared = (table["prediction_2"] - table["label"]) ** 2
    assert table["loss_2"].tolist() == pytest.approx(squared.tolist(), rel=1e-4, abs=1e-6)
    assert result.detection.keys() == {"loss"}


def test_results_from_before_there_were_records(data: TextData, config: TrainConfig) -> None:
    old = json.loads(finish(Run(data, config, "delta_sam:rho=0.1", 0)).to_json())
    del old["detection"]
    kept = ("row", "text", "label", "weight")
    old["examples"] = [{name: example[name] for name in kept} for example in old["examples"]]
    read = RunResult.from_json(json.dumps(old))
    assert (read.detection, read.table) == ({}, "")
    assert [e.weight for e in read.ranked("weight")] == [e["weight"] for e in old["examples"]]
    assert read.ranked("loss") == []
    assert {e.flipped for e in read.examples} == {None}


def test_a_checkpoint_from_before_there_were_records(data: TextData, config: TrainConfig, tmp_path: Path) -> None:
    from deltasam.core.tensor_files import read_tensors, write_tensors
    from deltasam.errors import UserError

    run = Run(data, config, "erm", 0)
    run.step()
    save_checkpoint(tmp_path / "c.pt", run)
    saved = read_tensors(tmp_path / "c.pt")
    del saved["state"]["examples"]
    write_tensors(tmp_path / "c.pt", saved)
    with pytest.raises(UserError, match=r"c.pt is of an older version.*; delete .*c.pt to start this run"):
        resume_run(tmp_path / "c.pt", Run(data, config, "erm", 0))
