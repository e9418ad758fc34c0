"""``deltasam diagnose``: numbers, pictures and a page; what cannot be measured is said; hostile text stays text."""

from __future__ import annotations

import csv
import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from command_line import Cli
from deltasam.diagnostics.fidelity import rho_of
from deltasam.lab.data import load_data
from deltasam.lab.diagnose import Diagnostic, NotMeasuredError, Settings, Subject, diagnostic_names
from deltasam.lab.diagnose.drawing import legends

HOSTILE = ["<script>window.hacked=1</script>", '=HYPERLINK("http://x","y")', "</td><img src=x onerror=window.hacked=1>"]
COLUMNS = ["--text", "review", "--label", "verdict"]
METHODS = ["--methods", "erm,sam"]
EXAMPLES = ["--examples", "8", "--batch-size", "4"]


def train(cli: Cli, model: Path, data: Path, out: Path, *more: str) -> Path:
    arguments = ["--epochs", "1", "--batch-size", "8", "--learning-rate", "0.003", "--method", "erm"]
    done = cli("train", "--data", data, "--model", model, *arguments, "--output", out, *more)
    assert done.exit_code == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def module_cli() -> Cli:
    from typer.testing import CliRunner

    from deltasam.cli.app import app

    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reviews whose texts and labels would like to be something else."""
    path = tmp_path_factory.mktemp("hostile") / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "verdict", "score"])
        for i in range(40):
            label = "<b>good</b>" if i % 2 else "=bad()"
            writer.writerow([f"{HOSTILE[i % 3]} {'good' if i % 2 else 'bad'} {i}", label, i / 40])
    return path


@pytest.fixture(scope="module")
def checkpoints(
    module_cli: Cli, tiny_model: Path, hostile: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    folder = tmp_path_factory.mktemp("checkpoints" * 8)  # longer than a legend has room for
    first = train(module_cli, tiny_model, hostile, folder / "first", *COLUMNS)
    return [first, train(module_cli, tiny_model, hostile, folder / "$se^cond$", *COLUMNS, "--seed", "1")]


@pytest.fixture(scope="module")
def diagnosed(
    module_cli: Cli, checkpoints: list[Path], hostile: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("out") / "diagnosis"
    done = module_cli("diagnose", *checkpoints, "--data", hostile, *COLUMNS, *METHODS, *EXAMPLES, "--output", out)
    assert done.exit_code == 0, (done.stderr, done.exception)
    return out, done


def test_every_diagnostic_is_measured(diagnosed: tuple[Path, Any], checkpoints: list[Path]) -> None:
    out, _ = diagnosed
    record = json.loads((out / "diagnosis.json").read_text())
    assert list(record["diagnostics"]) == diagnostic_names()
    for name, found in record["diagnostics"].items():
        assert found["not_measured"] == {}, name
        assert found["failed"] == {}, name
        assert found["numbers"], name
        assert all(found["readings"].values()), name
    first, second = map(str, checkpoints)
    assert list(record["diagnostics"]["sharpness"]["results"]) == [first, second]
    worst = record["diagnostics"]["sharpness"]["results"][first]["worst"]
    assert [(s["m"], s["examples"]) for s in worst] == [(1, 4), (None, 4)]  # half of 8, which is one batch
    assert list(record["diagnostics"]["path"]["results"]) == [f"{first} to {second}"]
    assert {p.name for p in out.iterdir() if p.suffix != ".png"} == {
        "config.yaml", "diagnosis.html", "diagnosis.json", "examples.csv",
    }  # fmt: skip
    changes = ("after-rounding", "after-pruning", "after-noise")
    for picture in ("sharpness", "norms", "examples", "hessian", "calibration", *changes, "slice", "path"):
        assert (out / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    for picture in ("plane", "fidelity", "cost"):
        assert {p.name for p in out.glob(f"{picture}-*.png")} == {f"{picture}-1.png", f"{picture}-2.png"}
    used = yaml.safe_load((out / "config.yaml").read_text())
    assert used["diagnostics"] == diagnostic_names()
    assert len(set(used["provenance"]["weights_sha256"].values())) == 2


def test_the_numbers_are_those_of_the_model(
    diagnosed: tuple[Path, Any], checkpoints: list[Path], hostile: Path
) -> None:
    """Loss, prediction and gradient norm of each row, by transformers alone."""
    out, _ = diagnosed
    with (out / "examples.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["checkpoint"] for row in rows] == [str(c) for c in checkpoints for _ in range(8)]
    with hostile.open(newline="", encoding="utf-8") as file:
        source = list(csv.DictReader(file))
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints[0]).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[0])
    norms = []
    for row in rows[:8]:
        original = source[int(row["row"])]
        assert row["text"].removeprefix("'") == original["review"]
        assert row["label"].removeprefix("'") == original["verdict"]
        inputs = tokenizer(original["review"], return_tensors="pt")
        label = torch.tensor([model.config.label2id[original["verdict"]]])
        found = model(**inputs, labels=label)
        model.zero_grad()
        found.loss.backward()
        norms.append(float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()))
        assert float(row["loss"]) == pytest.approx(found.loss.item(), rel=1e-4)
        assert float(row["norm"]) == pytest.approx(norms[-1], rel=1e-3)
        assert row["prediction"].removeprefix("'") == model.config.id2label[int(found.logits.argmax())]
    assert norms == sorted(norms, reverse=True)
    record = json.loads((out / "diagnosis.json").read_text())["diagnostics"]
    losses = [float(row["loss"]) for row in rows[:8]]
    assert sorted(record["examples"]["results"][str(checkpoints[0])]["losses"]) == pytest.approx(
        sorted(losses), rel=1e-4
    )
    assert record["calibration"]["results"][str(checkpoints[0])]["nll"] == pytest.approx(sum(losses) / 8, rel=1e-4)


def test_after_training_the_numbers_are_those_of_the_changed_model(
    diagnosed: tuple[Path, Any], checkpoints: list[Path]
) -> None:
    """Accuracy and NLL with the second checkpoint's matrices rounded to 3 bits, by transformers alone."""
    out, _ = diagnosed
    found = json.loads((out / "diagnosis.json").read_text())["diagnostics"]["after"]
    assert list(found["numbers"]) == [
        f"{metric}, {change}"
        for change in (
            "as trained", "8 bits", "4 bits", "3 bits", "30 % pruned", "50 % pruned", "60 % pruned", "noise 0.1",
            "noise 0.2",
        )
        for metric in ("accuracy", "NLL")
    ]  # fmt: skip
    which = str(checkpoints[1])
    model = AutoModelForSequenceClassification.from_pretrained(which).eval()
    tokenizer = AutoTokenizer.from_pretrained(which)
    with (out / "examples.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["checkpoint"] == which]

    def measured() -> list[float]:
        texts = [row["text"].removeprefix("'") for row in rows]
        labels = torch.tensor([model.config.label2id[row["label"].removeprefix("'")] for row in rows])
        logits = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
        right = (logits.argmax(1) == labels).double().mean()
        return [float(right), float(torch.nn.functional.cross_entropy(logits, labels))]

    with torch.no_grad():
        before = measured()
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embeddings" not in name:
                for row in weight:
                    scale = row.abs().max() / 3
                    row.copy_(torch.round(row / scale) * scale)
        after = measured()
    assert before[1] != pytest.approx(after[1], rel=1e-4)
    for change, values in (("as trained", before), ("3 bits", after)):
        shown = [found["numbers"][f"{metric}, {change}"][which]["value"] for metric in ("accuracy", "NLL")]
        assert shown == pytest.approx(values, rel=1e-4)
    noise = found["numbers"]["NLL, noise 0.2"][which]
    assert noise["error"] > 0
    assert "standard error over the draws of noise" in noise["note"]
    assert found["readings"][which].count(" as trained, ") == 6


def test_hostile_text_stays_text(diagnosed: tuple[Path, Any]) -> None:
    out, _ = diagnosed
    page = (out / "diagnosis.html").read_text()
    assert "<script" not in page
    assert "onerror=window" not in re.sub(r"&lt;.*?&gt;", "", page)
    assert "&lt;script&gt;window.hacked=1" in page
    assert "<b>good</b>" not in page
    assert "&lt;b&gt;good&lt;/b&gt;" in page
    with (out / "examples.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert not [v for row in rows for k, v in row.items() if k in ("text", "label", "prediction") and v[0] in "=+-@"]
    assert {row["label"] for row in rows} == {"'=bad()", "<b>good</b>"}


def test_the_page_is_whole(diagnosed: tuple[Path, Any]) -> None:
    out, _ = diagnosed
    page = (out / "diagnosis.html").read_text()
    pictures = re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^"]+)"', page)
    assert len(pictures) == len(list(out.glob("*.png")))
    assert any(alt.endswith("/$se^cond$") for alt in pictures)
    assert not any("\\" in alt for alt in pictures)
    assert all(pictures)
    assert page.count("<source media") == len(pictures)
    assert not re.findall(r'(?:src|href|srcset)="(?!data:|#)', page)
    assert "script-src" not in page
    for name in diagnostic_names():
        assert f'<section class="diagnostic" id="{name}"' in page
    assert "2 checkpoints measured on 8 evaluation rows of reviews.csv: 10 of 10 diagnostics." in page


def test_every_method_is_at_rho_unless_its_spec_gives_another(
    cli: Cli, checkpoints: list[Path], hostile: Path, tmp_path: Path
) -> None:
    """The exact method is exact at --rho, and the page says at which radius each was taken."""
    given = [checkpoints[0], "--data", hostile, *COLUMNS, *EXAMPLES, "--only", "fidelity,cost", "--rho", "0.1"]
    done = cli("diagnose", *given, "--methods", "erm,per_instance_sam,sam", "--output", tmp_path / "one")
    assert done.exit_code == 0, done.stderr
    record = json.loads((tmp_path / "one/diagnosis.json").read_text())
    assert [spec.partition(",")[0] for spec in record["facts"]["methods"]] == [
        "erm", "per_instance_sam:rho=0.1", "sam:rho=0.1",
    ]  # fmt: skip
    (results,) = record["diagnostics"]["fidelity"]["results"].values()
    erm, exact, sam = (result["mean"] for result in results)
    assert erm["error"] == pytest.approx(1)
    assert exact["error"] == pytest.approx(0, abs=1e-3)
    assert sam["distance"] == pytest.approx(1, rel=1e-3)
    page = text_of(tmp_path / "one/diagnosis.html")
    nearest = "per_instance_sam:rho=0.1 comes nearest to one perturbation of length 0.1 per example (error 0.00,"
    assert nearest in page
    assert "rho is 0.1 in the exact perturbations and in every method that has one. A close" in page
    assert "time of per_instance_sam:rho=0.1 over plain" in page

    mixed = "per_instance_sam:rho=0.005,sam:rho=0.02,sam"  # defaults: still said, since --rho is another
    done = cli("diagnose", *given, "--methods", mixed, "--output", tmp_path / "two")
    assert done.exit_code == 0, done.stderr
    page = text_of(tmp_path / "two/diagnosis.html")
    assert "every method that has one, but for per_instance_sam:rho=0.005, sam:rho=0.02: part of their error" in page
    assert "error of per_instance_sam:rho=0.005" in page


def test_without_methods_all_are_at_rho(cli: Cli, checkpoints: list[Path], hostile: Path, tmp_path: Path) -> None:
    given = [checkpoints[0], "--data", hostile, *COLUMNS, *EXAMPLES, "--only", "fidelity,cost", "--rho", "0.1"]
    done = cli("diagnose", *given, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    record = json.loads((tmp_path / "out/diagnosis.json").read_text())["diagnostics"]
    (fidelities,), (costs,) = (record[name]["results"].values() for name in ("fidelity", "cost"))
    specs = [result["method"] for result in (*fidelities, *costs["methods"])]
    assert {rho_of(spec) for spec in specs} == {0.1, None}
    assert {spec.partition(":")[0] for spec in specs if rho_of(spec) is None} >= {"erm"}


def text_of(page: Path) -> str:
    """The words of a page."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", page.read_text())).split())


def test_the_terminal_shows_numbers_and_readings(diagnosed: tuple[Path, Any], checkpoints: list[Path]) -> None:
    out, done = diagnosed
    shown = " ".join(done.stdout.split())
    record = json.loads((out / "diagnosis.json").read_text())["diagnostics"]
    for name in diagnostic_names():
        assert f"{name}: " in shown
    barrier = record["path"]["numbers"]["barrier on the line"]
    assert f"{next(iter(barrier.values()))['value']:.3g}" in shown
    assert "no reliable sign" in shown
    assert "measuring" in done.stderr


def test_the_same_again(cli: Cli, checkpoints: list[Path], hostile: Path, tmp_path: Path) -> None:
    left = ["fidelity", "cost", "plane", "hessian"]
    command = ["diagnose", checkpoints[0], "--data", hostile, *COLUMNS, *EXAMPLES, "--skip", ",".join(left)]
    found = []
    for name in ("one", "two"):
        done = cli(*command, "--output", tmp_path / name)
        assert done.exit_code == 0, done.stderr
        record = json.loads((tmp_path / name / "diagnosis.json").read_text())
        assert record["diagnostics"]["path"]["not_measured"] == {
            str(checkpoints[0]): "there is one checkpoint; give two for the line between them"
        }
        found.append({name: d["results"] for name, d in record["diagnostics"].items()})
    assert found[0] == found[1]
    assert list(found[0]) == [n for n in diagnostic_names() if n not in left]
    assert "path: does not apply: there is one checkpoint; give two" in done.stdout
    page = (tmp_path / "one/diagnosis.html").read_text()
    assert '<p class="reading">Does not apply: there is one checkpoint; give two for the line between them.</p>' in page
    assert 'class="missing"' not in page  # which is red
    assert "One checkpoint measured on 8 evaluation rows of reviews.csv: 5 of 5 diagnostics." in page
    again = cli(*command, "--seed", "1", "--output", tmp_path / "one")
    assert again.exit_code == 2
    assert "seed=0, now given 1; choose another --output" in again.stderr


def test_scores(cli: Cli, tiny_model: Path, hostile: Path, tmp_path: Path) -> None:
    """Calibration has no meaning for them: that is said, and everything else is measured."""
    scores = ["--text", "review", "--label", "score", "--task", "regression"]
    model = train(cli, tiny_model, hostile, tmp_path / "model", *scores)
    only = ["--only", "calibration,examples,after,slice", "--split", "training"]
    done = cli("diagnose", model, "--data", hostile, *scores, *EXAMPLES, *only, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    record = json.loads((tmp_path / "out/diagnosis.json").read_text())["diagnostics"]
    assert "no probability" in record["calibration"]["not_measured"][str(model)]
    assert record["examples"]["results"]
    assert record["slice"]["results"]
    (number,) = record["after"]["numbers"]["MSE, as trained"].values()
    assert number["value"] == pytest.approx(torch.tensor(record["examples"]["results"][str(model)]["losses"]).mean())
    assert "Not measured: <bdi>" in (tmp_path / "out/diagnosis.html").read_text()
    assert "8 training rows" in (tmp_path / "out/diagnosis.html").read_text()
    wrong = cli("diagnose", model, "--data", hostile, *COLUMNS, "--output", tmp_path / "other")
    assert wrong.exit_code == 2
    assert "predicts a score, the data has the classes '<b>good</b>', '=bad()'; give --task regression" in wrong.stderr


def test_a_diagnostic_of_ones_own(
    cli: Cli, checkpoints: list[Path], hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One class is enough; what it refuses is kept with the reason, what fails in it with the traceback."""
    monkeypatch.setattr(Diagnostic, "registry", dict(Diagnostic.registry))

    class Refusing(Diagnostic[Any], name="refusing"):
        title = "Refuses"

        def measure(self, *subjects: Subject) -> Any:
            raise ValueError("the loss is not finite")

        def numbers(self, result: Any) -> Any: ...
        def answer(self, result: Any) -> Any: ...
        def plots(self, results: Any) -> Any: ...

    class Nothing(Refusing, name="nothing"):
        def groups(self, subjects: Any) -> Any:
            raise NotMeasuredError("there is nothing")

    class Failing(Refusing, name="failing"):
        def measure(self, *subjects: Subject) -> Any:
            raise RuntimeError("derivative for <b>thing</b> is not implemented")

    given = [checkpoints[0], "--data", hostile, *COLUMNS, *EXAMPLES]
    done = cli("diagnose", *given, "--only", "refusing,nothing", "--output", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    record = json.loads((tmp_path / "out/diagnosis.json").read_text())["diagnostics"]
    assert record["refusing"]["not_measured"] == {str(checkpoints[0]): "the loss is not finite"}
    assert record["nothing"]["not_measured"] == {str(checkpoints[0]): "there is nothing"}
    assert "0 of 1 diagnostic." in (tmp_path / "out/diagnosis.html").read_text()

    failed = cli("diagnose", *given, "--only", "failing,calibration", "--output", tmp_path / "failed")
    assert failed.exit_code == 1
    assert f"failed: failing ({checkpoints[0]})\nTraceback" in failed.stderr
    record = json.loads((tmp_path / "failed/diagnosis.json").read_text())["diagnostics"]
    assert record["failing"]["failed"][str(checkpoints[0])].endswith("<b>thing</b> is not implemented\n")
    assert record["calibration"]["failed"] == {}
    assert record["calibration"]["results"]
    page = (tmp_path / "failed/diagnosis.html").read_text()
    assert "RuntimeError: derivative for &lt;b&gt;thing&lt;/b&gt; is not implemented" in page
    assert "1 of 2 diagnostics" in page


def test_what_is_found_is_kept_when_interrupted(
    cli: Cli, checkpoints: list[Path], hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: object, *subjects: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(Diagnostic.registry["slice"]), "measure", interrupted)
    only = ["--only", "calibration,slice"]
    done = cli("diagnose", checkpoints[0], "--data", hostile, *COLUMNS, *EXAMPLES, *only, "--output", tmp_path / "out")
    assert done.exit_code == 130
    assert f"stopped; what was measured so far is in {tmp_path / 'out'}" in done.stderr
    assert list(json.loads((tmp_path / "out/diagnosis.json").read_text())["diagnostics"]) == ["calibration"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.yaml", "diagnosis.json", "examples.csv", "calibration.png",
    }  # fmt: skip


def test_classes_are_matched_by_name(checkpoints: list[Path], tmp_path: Path) -> None:
    """Data that has them in another order, or fewer of them, has the same losses."""
    with (tmp_path / "some.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([[f"good film {i}", "<b>good</b>"] for i in range(10)])
        writer.writerows([[f"bad film {i}", "=bad()"] for i in range(10)])
    data = load_data(tmp_path / "some.csv")
    subject = Subject(str(checkpoints[0]), data, Settings(examples=4))
    turned = Subject(str(checkpoints[0]), _turned(data), Settings(examples=4))
    assert subject.labels.tolist() == turned.labels.tolist()
    assert [text["label"] for text in turned.texts()] == [text["label"] for text in subject.texts()]
    assert set(subject.labels.tolist()) <= {0, 1}
    assert torch.equal(subject.losses, turned.losses)


def _turned(data: Any) -> Any:
    import dataclasses

    names = data.label_names[::-1]
    rows = data.evaluation.map(lambda row: {"label": 1 - row["label"]})
    return dataclasses.replace(data, evaluation=rows, label_names=names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--only", "sharpnes"], "--only sharpnes: no such diagnostic; there are sharpness, examples, hessian"),
        (["--only", "sharpnes"], "did you mean 'sharpness'?"),
        (["--skip", "nothing"], "--skip nothing: no such diagnostic"),
        (["--only", "hessian", "--skip", "hessian"], "leave no diagnostic"),
        (["--only", "hessian,hessian"], "--only: hessian is there twice"),
        (["--only", ","], "--only: give at least one"),
        (["--split", "test"], "--split test: must be one of evaluation, training"),
        (["--rho", "0"], "--rho 0.0: must be a finite number above 0"),
        (["--methods", "samm"], "did you mean 'sam'"),
        (["--methods", "sam,sam:rho=0.02"], "--methods: sam:rho=0.02,share=micro-batch is there twice"),
        (["--methods", "sam@every=2"], "--methods sam@every=2: the radius of a schedule changes from step to step"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--max-length", "1000"], "--max-length 1000: the model reads at most 128 tokens"),
        (["--data", "missing.csv"], "missing.csv"),
        (["--output", "/dev/full"], "cannot write --output /dev/full"),
        (["--label", "score"], "for scores give --task regression"),
        (["--label", "score", "--task", "regression"], "predicts '<b>good</b>', '=bad()', the data has scores"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(
    cli: Cli, checkpoints: list[Path], hostile: Path, tmp_path: Path, change: list[str], message: str
) -> None:
    done = cli("diagnose", checkpoints[0], "--data", hostile, *COLUMNS, "--output", tmp_path / "out", *change)
    assert_refused(done, message)
    assert not (tmp_path / "out").exists()


def test_bad_checkpoints(
    cli: Cli, checkpoints: list[Path], tiny_model: Path, hostile: Path, reviews: Path, tmp_path: Path
) -> None:
    given = ["--data", hostile, *COLUMNS, "--output", tmp_path / "out"]
    assert_refused(cli("diagnose", "./no/such/folder", *given), "CHECKPOINT ./no/such/folder:")
    assert_refused(cli("diagnose", tmp_path, *given), "the folder holds no config.json")
    assert_refused(cli("diagnose", tiny_model, *given), "not a trained classifier, classifier.bias, classifier.weight")
    assert_refused(cli("diagnose", checkpoints[0], checkpoints[0], *given), "is there twice")
    other = cli("diagnose", checkpoints[0], *given, "--data", reviews)
    assert_refused(other, "was trained for '<b>good</b>', '=bad()', and the data has 'no', 'yes'")
    assert not (tmp_path / "out").exists()


def assert_refused(done: Any, message: str) -> None:
    assert done.exit_code == 2, (done.exit_code, done.exception)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert "Traceback" not in done.stderr


def test_long_names_stay_apart_in_a_legend() -> None:
    assert legends(["out"]) == ["out"]
    assert legends(["a" * 40 + "end", "$"]) == ["…" + "a" * 28 + "end", r"\$"]
    assert legends(["a" + "x" * 40, "b" + "x" * 40]) == ["1: …" + "x" * 31, "2: …" + "x" * 31]
