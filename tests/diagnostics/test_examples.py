"""The recorder against lists kept by hand, its file against hostile texts, AUROC against counted pairs."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import deltasam
from deltasam.diagnostics.examples import Detection, ExampleRecorder, detection, read_examples

HOSTILE = [
    "plain", "a,b;c", 'say "hi"', "line\nbreak", "carriage\rreturn", "both\r\n", "", " padded ", "\t", "\ttab", "\r",
    "=1+1", "=cmd|' /C calc'!A0", "+41 79", "-", "- item", "@user hi", "'=quoted", "''-", "'", "'tis", "-1.5", "'-1.5",
    "+1e5", "007", "NA", "nan", "null", "None", "True", "\ud800 half a pair", "\x00", "\x1b[31m", "\u2028", "\ufeff",
]  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def test_every_visit_is_kept() -> None:
    rng = np.random.default_rng(0)
    recorder, kept = ExampleRecorder(7), {i: [] for i in range(7)}
    for step in range(12):
        rows = rng.integers(0, 6, 4)  # with repetition; the last example is never seen
        values = {name: rng.normal(size=4) for name in ("losses", "norms")}
        if step % 3:
            values["weights"] = rng.normal(size=4)
        predictions = torch.as_tensor(rng.integers(0, 3, 4))
        recorder.add(rows, predictions=predictions, **values)
        for place, row in enumerate(rows):
            kept[row].append({n: float(v[place]) for n, v in values.items()} | {"prediction": int(predictions[place])})
    assert recorder.visits.tolist() == [len(visits) for visits in kept.values()]
    for name, key in (("loss", "losses"), ("norm", "norms"), ("weight", "weights")):
        found = recorder.values(name)
        assert found.shape == (max(map(len, kept.values())), 7)
        for row, visits in kept.items():
            expected = [visit.get(key, math.nan) for visit in visits]
            assert found[: len(visits), row].tolist() == pytest.approx(expected, nan_ok=True, rel=1e-12)
            assert found[len(visits) :, row].isnan().all()
            known = [x for x in expected if not math.isnan(x)]
            mean = recorder.mean(name)[row].item()
            assert mean == pytest.approx(np.mean(known) if known else math.nan, nan_ok=True, rel=1e-12)
    assert any("weights" not in visit for visits in kept.values() for visit in visits)
    last = [visits[-1]["prediction"] if visits else -1 for visits in kept.values()]
    assert recorder.last_prediction().tolist() == last
    assert kept[6] == []


def test_state_goes_on() -> None:
    whole, first = ExampleRecorder(3), ExampleRecorder(3)
    for recorder in (whole, first):
        recorder.add([0, 2], losses=[1.0, 2.0])
    second, state = ExampleRecorder(3), first.state_dict()
    second.load_state_dict(state)
    for recorder in (whole, second):
        recorder.add([2, 1], losses=[3.0, 4.0], weights=[0.5, 1.5])
    pd.testing.assert_frame_equal(whole.frame(), second.frame())
    first.add([1], losses=[9.0])
    assert state["visits"].tolist() == [1, 0, 1]
    assert state["values"]["loss"].nan_to_num(-1).tolist() == [[1.0, -1.0, 2.0]]  # it stays what it was
    with pytest.raises(ValueError, match="a state of 3 examples, where there are 4"):
        ExampleRecorder(4).load_state_dict(state)


def test_numbers_are_as_wide_as_they_come() -> None:
    recorder = ExampleRecorder(1)
    recorder.add([0], losses=torch.tensor([1 / 3], dtype=torch.float64), norms=torch.tensor([1 / 3]).bfloat16())
    recorder.add([0], weights=torch.tensor([1 / 3]).half())
    kinds = [recorder.values(name).dtype for name in ("loss", "norm", "weight")]
    assert kinds == [torch.float64, torch.float32, torch.float32]
    whole = ExampleRecorder(2)
    whole.add([], losses=[])
    whole.add([0], losses=[1])  # a whole number is a number, and no class
    assert whole.mean("loss").nan_to_num(-9).tolist() == [1.0, -9.0]


@pytest.mark.parametrize(
    ("rows", "values", "message"),
    [
        ([3], {"losses": [1.0]}, "no example 3; there are 3"),
        ([-1], {"losses": [1.0]}, "no example -1"),
        ([0, 1], {"losses": [1.0]}, r"a loss of shape \[1\] for 2 rows"),
        ([0], {"predictions": torch.zeros(1, 2)}, r"a prediction of shape \[1, 2\] for 1 rows"),
    ],
)
def test_what_does_not_fit_changes_nothing(rows: list[int], values: dict[str, object], message: str) -> None:
    recorder = ExampleRecorder(3)
    with pytest.raises(ValueError, match=message):
        recorder.add(rows, **values)  # type: ignore[arg-type]
    assert recorder.visits.tolist() == [0, 0, 0]
    assert recorder.numbers == []


def test_columns_of_the_table() -> None:
    recorder = ExampleRecorder(3)
    recorder.add([0, 1], losses=[1.0, 3.0], predictions=torch.tensor([1, 0]))
    recorder.add([0], losses=[2.0], predictions=torch.tensor([0]), weights=[0.5])
    given = {"text": ["a", "b", "c"], "label": ["no", "no", "yes"], "clean_label": ["no", "yes", "yes"]}
    frame = recorder.frame(given, classes=("no", "yes"))
    expected = {
        "text": ["a", "b", "c"], "label": ["no", "no", "yes"], "clean_label": ["no", "yes", "yes"],
        "flipped": [False, True, False], "prediction": ["no", "no", None], "correct": [True, True, None],
        "correct_visits": [1, 1, 0], "visits": [2, 1, 0], "mean_weight": [0.5, None, None],
        "mean_loss": [1.5, 3.0, None], "weight_1": [None] * 3, "weight_2": [0.5, None, None],
        "loss_1": [1.0, 3.0, None], "loss_2": [2.0, None, None], "prediction_1": ["yes", "no", None],
        "prediction_2": ["no", None, None],
    }  # fmt: skip
    found = {name: [None if pd.isna(x) else x for x in frame[name]] for name in frame.columns}
    assert list(found) == list(expected)
    assert found == expected
    numbered = recorder.frame({"label": torch.tensor([0, 0, 1])})
    assert numbered["correct"].tolist()[:2] == [True, True]
    assert numbered["prediction"].tolist()[:2] == [0, 0]


@pytest.mark.parametrize(
    ("columns", "classes", "message"),
    [
        ({"text": ["a"]}, (), "'text' has 1 values for 2 examples"),
        ({"visits": [1, 2]}, (), "'visits' is one of the table's own"),
        ({"label": ["no", "so"]}, ("no", "yes"), "the label 'so' is none of the classes no, yes"),
        ({"label": ["no", "yes"]}, (), "the label 'no' is no class; give classes="),
    ],
)
def test_columns_that_do_not_fit(columns: dict[str, list[object]], classes: tuple[str, ...], message: str) -> None:
    recorder = ExampleRecorder(2)
    recorder.add([0, 1], predictions=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=message):
        recorder.frame(columns, classes=classes)


def test_hostile_texts_come_back(tmp_path: Path) -> None:
    n = len(HOSTILE)
    recorder = ExampleRecorder(n)
    recorder.add(range(n), losses=torch.rand(n), norms=torch.rand(n, dtype=torch.float64))
    recorder.add([0], losses=[math.inf])
    columns = {"text": HOSTILE, "label": HOSTILE, "source": HOSTILE, "row": list(range(n))}
    recorder.to_csv(tmp_path / "new/examples.csv", columns)
    found = read_examples(tmp_path / "new/examples.csv")
    for name in ("text", "label", "source"):
        assert found[name].tolist() == HOSTILE
    assert found["row"].tolist() == list(range(n))
    assert found["loss_1"].astype("float32").tolist() == recorder.values("loss")[0].tolist()
    assert found["norm_1"].tolist() == recorder.values("norm")[0].tolist()
    assert found["mean_loss"][0] == math.inf
    assert found["loss_2"].isna().sum() == n - 1
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["examples.csv"]


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    n = len(HOSTILE)
    recorder = ExampleRecorder(n)
    recorder.add(range(n), losses=torch.rand(n) - 2)
    recorder.to_csv(tmp_path / "e.csv", {"text": HOSTILE, "label": HOSTILE})
    with (tmp_path / "e.csv").open(newline="", encoding="utf-8", errors="surrogatepass") as file:
        _, *rows = csv.reader(file)
    cells = [cell for row in rows for cell in row]
    running = [cell for cell in cells if cell.startswith(FORMULA) and not _is_number(cell)]
    assert running == []
    assert "'=1+1" in cells
    assert "plain" in cells
    assert any(cell.startswith("-") for cell in cells)  # a negative number stays one


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def test_labels_that_are_numbers_come_back_as_such(tmp_path: Path) -> None:
    recorder = ExampleRecorder(2)
    recorder.add([0, 1], predictions=torch.tensor([1, 0]))
    recorder.to_csv(tmp_path / "e.csv", {"text": ["1", "2"], "label": [0, 0]})
    found = read_examples(tmp_path / "e.csv")
    assert found["text"].tolist() == ["1", "2"]
    assert found["label"].tolist() == [0, 0]
    assert found["prediction"].tolist() == [1, 0]
    assert found["correct"].tolist() == [False, True]


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\xff\xfe\x00", b'visits\n"1'])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"e.csv is no table of examples: "):
        read_examples(tmp_path / "e.csv")


def pairs_won(numbers: list[float], flipped: list[bool]) -> float:
    wrong, right = ([x for x, f in zip(numbers, flipped, strict=True) if f == side] for side in (True, False))
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in itertools.product(wrong, right)]
    return sum(won) / len(won)


def average_precision(numbers: list[float], flipped: list[bool]) -> float:
    """Over the wrong labels, the share of wrong ones among those that rank as high."""
    shares = [
        np.mean([f for y, f in zip(numbers, flipped, strict=True) if y >= x])
        for x, wrong in zip(numbers, flipped, strict=True)
        if wrong
    ]
    return float(np.mean(shares))


@pytest.mark.parametrize("seed", range(4))
def test_auroc_is_the_share_of_pairs_in_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 12, 40).astype(float)  # with ties
    numbers[:2] = math.inf, -math.inf
    flipped = rng.random(40) < 0.3
    found = detection(numbers, flipped)
    assert found.auroc == pytest.approx(pairs_won(numbers.tolist(), flipped.tolist()), abs=1e-12)
    assert found.average_precision == pytest.approx(average_precision(numbers.tolist(), flipped.tolist()), abs=1e-12)
    opposite = detection(-numbers, flipped)
    assert opposite.auroc == pytest.approx(1 - found.auroc, abs=1e-12)
    missing = detection([*numbers, math.nan, math.nan], [*flipped, True, False])
    assert missing == found


def test_perfect_opposite_and_undefined() -> None:
    assert detection([3.0, 2.0, 1.0], [True, False, False]) == Detection(1.0, 1.0)
    assert detection([1.0, 2.0, 3.0], [True, False, False]).auroc == 0.0
    assert detection([1.0, 1.0, 1.0], [True, False, False]).auroc == 0.5
    for flipped in ([True] * 3, [False] * 3):
        assert detection([1.0, 2.0, 3.0], flipped) == Detection(None, None)
    assert detection([math.nan, 1.0], [True, False]) == Detection(None, None)
    assert detection([], []) == Detection(None, None)
    with pytest.raises(ValueError, match="2 numbers for 3 examples"):
        detection([1.0, 2.0], [True, False, False])


@pytest.mark.parametrize("spec", ["per_instance_sam", "delta_sam:weights=norms", "rw_sam:weights=norms"])
def test_norms_a_method_tells(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor], spec: str) -> None:
    x, y = batch
    model, x = model.double(), x.double()
    expected = deltasam.per_example_grad_norms(model, lambda: losses(model, x, y))
    step = deltasam.make_method(spec, model).backward(lambda: losses(model, x, y))
    torch.testing.assert_close(step.metrics["example_norms"], expected)
    halves = [lambda: losses(model, x[:4], y[:4]) / 2, lambda: losses(model, x[4:], y[4:]) / 2]
    together = deltasam.make_method(spec, model).backward(halves)
    torch.testing.assert_close(together.metrics["example_norms"], expected / 2)


def test_a_metric_that_only_some_micro_batches_have() -> None:
    one = {"ascent_norm": torch.tensor(1.0)}
    more = one | {"example_norms": torch.ones(2)}
    steps = [deltasam.Step(torch.tensor(1.0), more), deltasam.Step(torch.tensor(2.0), dict(one))]
    together = deltasam.Step.together(steps)
    assert together.metrics.keys() == {"ascent_norm", "loss"}
    assert together.loss == 3


def losses(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(x), y, reduction="none")
