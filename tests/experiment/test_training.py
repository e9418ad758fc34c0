"""One run: deterministic, paired, and equal to a loop written by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from deltasam.errors import UserError
from deltasam.lab.compare.statistics.compare import compare_runs
from deltasam.lab.data import TextData, load_data
from deltasam.lab.train.batches import check_length, shuffled
from deltasam.lab.train.config import TrainConfig
from deltasam.lab.train.results import RunResult
from deltasam.lab.train.run import Run, train_run


def finish(run: Run) -> RunResult:
    return train_run(run, on_step=lambda run: None, on_evaluation=lambda run: None)


def numbers(result: RunResult) -> list[object]:
    """Everything but times and memory, as text: equal only where every bit is, NaN included."""
    steps = [repr(dataclasses.replace(s, seconds=0.0)) for s in result.steps]
    return [steps, repr(result.evaluations), repr(result.examples), result.weights, repr(result.metrics)]


@pytest.mark.parametrize("method", ["sam", "delta_sam", "per_instance_sam"])
def test_same_seed_gives_the_same_bits(data: TextData, config: TrainConfig, method: str) -> None:
    one, two, other = (finish(Run(data, config, method, seed)) for seed in (1, 1, 2))
    assert numbers(one) == numbers(two)
    assert numbers(one) != numbers(other)


def test_methods_are_paired(data: TextData, config: TrainConfig) -> None:
    erm, neutral, sam = (finish(Run(data, config, m, 0)) for m in ("erm", "sam:rho=0", "sam:rho=0.5"))
    assert [s.loss for s in erm.steps] == [s.loss for s in neutral.steps]
    assert erm.metrics == neutral.metrics
    assert sam.steps[0].loss == erm.steps[0].loss  # the same head, batch and dropout masks
    assert sam.steps[-1].loss != erm.steps[-1].loss


def test_equals_a_loop_written_by_hand(data: TextData, config: TrainConfig) -> None:
    result = finish(Run(data, config, "erm", 5))

    torch.manual_seed(5)
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    model = AutoModelForSequenceClassification.from_pretrained(config.model, num_labels=2).train()
    torch.manual_seed(5)
    plain = [p for n, p in model.named_parameters() if "bias" in n or "LayerNorm" in n]
    decayed = [p for n, p in model.named_parameters() if "bias" not in n and "LayerNorm" not in n]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}], lr=config.learning_rate
    )
    losses, total = [], 2 * math.ceil(len(data.train) / 6)
    for step in range(total):
        epoch, position = divmod(step, total // 2)
        rows = shuffled(len(data.train), 5, epoch)[position * 6 : position * 6 + 6]
        batch = tokenizer([data.train["text"][r] for r in rows], padding=True, return_tensors="pt")
        loss = model(**batch, labels=torch.tensor([data.train["label"][r] for r in rows])).loss
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        warm = round(0.1 * total)
        factor = step / warm if step < warm else (total - step) / (total - warm)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    np.testing.assert_allclose([s.loss for s in result.steps], losses, rtol=1e-4)
    batch = tokenizer(list(data.evaluation["text"]), padding=True, return_tensors="pt")
    with torch.no_grad():
        measured = model.eval()(**batch, labels=torch.tensor(list(data.evaluation["label"]))).loss
    assert result.metrics["loss"] == pytest.approx(measured.item(), rel=1e-4)


def test_only_matrices_decay(data: TextData, config: TrainConfig) -> None:
    run = Run(data, dataclasses.replace(config, weight_decay=0.3), "erm", 0)
    decay = {id(p): group["weight_decay"] for group in run.optimizer.param_groups for p in group["params"]}
    for name, parameter in run.model.named_parameters():
        assert decay.pop(id(parameter)) == (0.0 if "bias" in name or "LayerNorm" in name else 0.3), name
    assert decay == {}


def test_every_epoch_visits_every_example_in_another_order() -> None:
    orders = [shuffled(50, 3, epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert orders[1] == shuffled(50, 3, 1)


def test_weights_are_the_mean_over_visits(data: TextData, config: TrainConfig) -> None:
    run = Run(data, config, "delta_sam:rho=0.1", 0)
    seen: dict[int, list[float]] = {}
    backward = run.method.backward

    def spy(closure, runtime):  # type: ignore[no-untyped-def]
        epoch, position = divmod(len(run.steps), run.steps_per_epoch)
        rows = shuffled(len(data.train), 0, epoch)[position * 6 : position * 6 + 6]
        step = backward(closure, runtime=runtime)
        for row, weight in zip(rows, step.metrics["weights"].tolist(), strict=True):
            seen.setdefault(row, []).append(weight)
        return step

    run.method.backward = spy  # type: ignore[method-assign]
    result = finish(run)
    expected = [np.mean(seen[row]) for row in range(len(data.train))]
    np.testing.assert_allclose(result.weights, expected, rtol=1e-6)
    heaviest, lightest = int(np.argmax(expected)), int(np.argmin(expected))
    assert result.examples[0].text == data.train["text"][heaviest]
    assert result.examples[-1].text == data.train["text"][lightest]
    assert result.examples[0].row == data.train["row"][heaviest]
    assert len(result.examples) == len(data.train) == 32  # 20 + 20 would show some twice
    assert finish(Run(data, config, "erm", 0)).weights == []


def test_regression(reviews: Path, config: TrainConfig) -> None:
    data = load_data(reviews, text="review", label="score", task="regression")
    run = Run(data, dataclasses.replace(config, epochs=4), "sam", 0)
    result = finish(run)
    assert run.model.config.problem_type == "regression"
    assert run.model.config.num_labels == 1
    assert result.steps[-1].loss < result.steps[0].loss
    assert {"loss", "pearson", "spearman"} == result.metrics.keys()


def test_bf16_rounds(data: TextData, config: TrainConfig) -> None:
    full, half = (finish(Run(data, dataclasses.replace(config, precision=p), "sam", 0)) for p in ("fp32", "bf16"))
    assert full.steps[0].loss != half.steps[0].loss
    assert full.steps[0].loss == pytest.approx(half.steps[0].loss, rel=0.05)


def test_divergence_is_recorded_not_hidden(data: TextData, config: TrainConfig) -> None:
    run = Run(data, dataclasses.replace(config, learning_rate=1e30), "sam", 0)
    result = finish(run)
    assert run.diverged
    assert len(result.steps) < run.total_steps
    assert all(math.isnan(value) for value in result.metrics.values())
    assert run.best is None
    fine = finish(Run(data, config, "erm", 0))
    summary = {m.method: m for m in compare_runs([fine, RunResult.from_json(result.to_json())]).begun}
    assert summary[run.method.spec].diverged == (0,)


def test_patience_stops_early_and_keeps_the_first_best(data: TextData, config: TrainConfig) -> None:
    run = Run(data, dataclasses.replace(config, epochs=9, patience=2, learning_rate=1e-12), "erm", 0)
    saved = []
    train_run(run, on_step=lambda run: None, on_evaluation=lambda run: saved.append(run.best is run.evaluations[-1]))
    assert saved == [True, False, False]  # nothing is learnt: three equal accuracies
    assert run.finished
    assert not run.diverged


def test_label_names_are_in_the_model(data: TextData, config: TrainConfig) -> None:
    assert Run(data, config, "erm", 0).model.config.id2label == {0: "no", 1: "yes"}


def test_pairs_are_read_as_pairs(tmp_path: Path, config: TrainConfig) -> None:
    rows = "\n".join(f"the film {i},was good {i},{i % 2}" for i in range(20))
    (tmp_path / "pairs.csv").write_text("a,b,label\n" + rows, encoding="utf-8")
    run = Run(load_data(tmp_path / "pairs.csv", text="a", text_pair="b", label="label"), config, "erm", 0)
    inputs, _ = run.task.train_batches.batch([0, 1])
    assert set(inputs["token_type_ids"].unique().tolist()) == {0, 1}
    row = run.data.train[0]
    first_before_second = run.task.tokenizer(row["text"], row["text_pair"])["input_ids"]
    assert inputs["input_ids"][0][: len(first_before_second)].tolist() == first_before_second


def test_every_evaluation_split_is_measured(tmp_path: Path, config: TrainConfig) -> None:
    for name, rows in {"train": 12, "dev_matched": 9, "dev_mismatched": 7}.items():  # other shares of the classes
        lines = [{"premise": f"{name} {n}", "hypothesis": "good", "label": n % 3} for n in range(rows)]
        path = tmp_path / "mnli" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    data = load_data(tmp_path / "mnli")
    both = finish(Run(data, config, "sam", 0))
    swapped = finish(
        Run(dataclasses.replace(data, evaluation=data.further["mismatched"], further={}), config, "sam", 0)
    )
    assert both.reported == ("accuracy", "accuracy_mismatched")
    assert {f"{name}_mismatched": value for name, value in swapped.metrics.items()}.items() <= both.metrics.items()
    assert len(both.metrics) == 2 * len(swapped.metrics)
    assert both.metrics["loss"] != both.metrics["loss_mismatched"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("epochs", 0, "--epochs 0: must be 1 or more"),
        ("batch_size", -1, "--batch-size -1"),
        ("learning_rate", math.nan, "--learning-rate nan"),
        ("warmup", 1.5, "--warmup 1.5"),
        ("precision", "fp8", "fp32 or bf16"),
    ],
)
def test_impossible_options(option: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(**{option: value})  # type: ignore[arg-type]


def test_text_longer_than_the_model_reads(data: TextData, config: TrainConfig) -> None:
    with pytest.raises(UserError, match="--max-length 500: the model reads at most 128 tokens"):
        Run(data, dataclasses.replace(config, max_length=500), "erm", 0)
    check_length(SimpleNamespace(config=SimpleNamespace(max_position_embeddings=-1)), 500)  # type: ignore[arg-type]


def test_a_batch_the_method_cannot_take(data: TextData, config: TrainConfig) -> None:
    run = Run(data, config, "per_instance_sam:m=4", 0)
    with pytest.raises(UserError, match=r"per_instance_sam:.*: m=4 must divide"):
        finish(run)


def test_memory_is_the_peak_of_this_run() -> None:
    from deltasam.diagnostics.peak_memory import PeakMemory

    block = torch.ones(64 * 2**20 // 4)  # 64 MiB, touched
    before = PeakMemory("cpu").mib()
    if before is None:
        pytest.skip("the system does not tell the peak of the resident set")
    memory = PeakMemory("cpu")
    more = torch.ones(64 * 2**20 // 4)
    del more
    peak = memory.mib()
    assert peak is not None
    assert 50 < peak - before < 100
    del block
    assert PeakMemory("cpu").mib() < peak - 50  # type: ignore[operator]


def test_evaluated_when_due(data: TextData, config: TrainConfig) -> None:
    config = dataclasses.replace(config, epochs=5)
    counts = {}
    for every in (0, 1, 2):
        result = finish(Run(data, dataclasses.replace(config, evaluate_every=every), "erm", 0))
        counts[every] = [round(e.epoch) for e in result.evaluations]
    assert counts == {0: [5], 1: [1, 2, 3, 4, 5], 2: [2, 4, 5]}


def test_the_first_layers_only(data: TextData, config: TrainConfig) -> None:
    whole = Run(data, config, "erm", 0).model
    one = Run(data, dataclasses.replace(config, layers=1), "erm", 0).model
    assert one.config.num_hidden_layers == 1 < whole.config.num_hidden_layers
    kept = one.state_dict()
    there = {n: p for n, p in whole.state_dict().items() if n in kept and not n.startswith("classifier")}
    assert len(there) < len(whole.state_dict()) - 2
    assert all(torch.equal(p, kept[n]) for n, p in there.items())
    with pytest.raises(UserError, match=r"--layers 9: the model has 2; give that or less"):
        Run(data, dataclasses.replace(config, layers=9), "erm", 0)


def test_rows_with_wrong_labels_choose_the_epoch(data: TextData, config: TrainConfig) -> None:
    from deltasam.lab.data.setting import Setting

    chosen = Setting(len(data.train), 0.2, noisy_selection=True).data_for(data, 3)
    run = Run(chosen, dataclasses.replace(config, epochs=4), "erm", 3)
    result = finish(run)
    assert result.metric == "accuracy_selected"
    assert result.reported == ("accuracy_selected", "accuracy")
    by_selection = [e.metrics["accuracy_selection"] for e in result.evaluations]
    best = by_selection.index(max(by_selection))
    assert run.best is result.evaluations[best]
    for name in ("accuracy", "loss", "ece", "accuracy_selection"):
        assert result.metrics[f"{name}_selected"] == result.evaluations[best].metrics[name]
    so_far = [result.evaluations[by_selection.index(max(by_selection[: n + 1]))] for n in range(4)]
    assert [e.metrics["loss_selected"] for e in result.evaluations] == [e.metrics["loss"] for e in so_far]
    assert RunResult.from_json(result.to_json()).setting is None


def test_the_squares_of_the_last_layer(data: TextData, config: TrainConfig) -> None:
    """The loss is that without them, and a factor times the squares of the last layer's weights and inputs."""
    plain, ours = (Run(data, dataclasses.replace(config, last_layer_l2=x), "erm", 0) for x in (0.0, 0.25))
    seen = []
    ours.model.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(1)
    expected = plain.task.output([0, 1, 2]).loss
    torch.manual_seed(1)
    found = ours.task.output([0, 1, 2]).loss
    squares = ours.model.classifier.weight.square().sum() + seen[-1].square().sum(1)
    torch.testing.assert_close(found, expected + 0.25 * squares)
    assert squares.requires_grad
    assert ours.evaluate().metrics["loss"] == pytest.approx(plain.evaluate().metrics["loss"])


def test_smoothing_is_for_classes(reviews: Path, config: TrainConfig) -> None:
    scores = load_data(reviews, text="review", label="score", task="regression")
    with pytest.raises(UserError, match="--label-smoothing has no meaning for it"):
        Run(scores, dataclasses.replace(config, label_smoothing=0.1), "erm", 0)
