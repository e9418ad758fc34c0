"""Every task of GLUE from files and from the hub: the same data, whichever it comes from; and damaged files."""

from __future__ import annotations

import gzip
import json

import datasets
import pytest

from deltasam.errors import UserError
from deltasam.lab.data import glue_tasks, load_data, load_glue
from deltasam.lab.data.glue import find_task
from deltasam.lab.data.sources import hub

REPORTED = {
    "cola": ("matthews",),
    "sst2": ("accuracy",),
    "mrpc": ("f1", "accuracy"),
    "stsb": ("spearman", "pearson"),
    "qqp": ("f1", "accuracy"),
    "mnli": ("accuracy", "accuracy_mismatched"),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}
HUB_NAMES = {
    "cola": ["unacceptable", "acceptable"],
    "sst2": ["negative", "positive"],
    "mrpc": ["not_equivalent", "equivalent"],
    "qqp": ["not_duplicate", "duplicate"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "qnli": ["entailment", "not_entailment"],
    "rte": ["entailment", "not_entailment"],
    "wnli": ["not_entailment", "entailment"],
}


def rows(task: str, split: str) -> list[dict]:
    """Six rows that name the split they are from."""
    columns, classes = find_task(task).layouts[0], len(HUB_NAMES.get(task, ()))
    found = []
    for n in range(6):
        row = {columns.text: f"{split} {n}", "idx": n, columns.label: n % classes if classes else n / 2}
        found.append(row | ({columns.text_pair: f"{split} pair {n}"} if columns.text_pair else {}))
    return found


def packed(records: list[dict]) -> bytes:
    return gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode())


def write_task(write, task: str, name: str | None = None, dev: str = "dev"):
    folder = write(f"glue/{name or task}/train.jsonl.gz", packed(rows(task, "train"))).parent
    write(f"glue/{name or task}/{dev}.jsonl.gz", packed(rows(task, "validation")))
    if task == "mnli":
        write(f"glue/{name or task}/dev_mismatched.jsonl.gz", packed(rows(task, "mismatched")))
    return folder


@pytest.fixture
def on_hub(monkeypatch):
    """The nine tasks where the hub's are, with test rows that have no labels."""

    def split(task: str, name: str, unlabelled: bool = False) -> datasets.Dataset:
        records = rows(task, name)
        if unlabelled:
            records = [row | {"label": -1} for row in records]
        names = HUB_NAMES.get(task)
        features = {key: datasets.Value("string") for key in records[0]} | {"idx": datasets.Value("int32")}
        features["label"] = datasets.ClassLabel(names=names) if names else datasets.Value("float32")
        return datasets.Dataset.from_list(records, datasets.Features(features))

    def load_dataset(name, task):
        assert name == "nyu-mll/glue"
        if task == "mnli":
            found = {
                "validation_matched": split(task, "validation"),
                "validation_mismatched": split(task, "mismatched"),
            }
        else:
            found = {"validation": split(task, "validation")}
        return {"train": split(task, "train"), **found, "test": split(task, "test", unlabelled=True)}

    monkeypatch.setattr(hub, "_hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def contents(data) -> tuple:
    splits = (data.train, data.evaluation, *data.further.values())
    return data.name, data.kind, data.label_names, data.reported, data.fingerprint, [split[:] for split in splits]


def test_the_tasks_in_the_usual_order():
    assert glue_tasks() == tuple(REPORTED)


@pytest.mark.parametrize("task", REPORTED)
def test_files_and_hub_hold_the_same_data(write, on_hub, task):
    write_task(write, task, dev="dev_matched" if task == "mnli" else "dev")
    data = load_glue(task, write("glue/README", "").parent)
    assert data.reported == REPORTED[task]
    assert data.metric == data.reported[0]
    assert data.train["label"][:] == [row["label"] for row in rows(task, "train")]
    assert data.evaluation["text"][:] == [f"validation {n}" for n in range(6)]
    assert [*data.further] == (["mismatched"] if task == "mnli" else [])
    sources = [load_glue(task), load_data(f"glue/{task}"), load_data(f"nyu-mll/glue:{task}")]
    assert [contents(found) for found in sources] == [contents(data)] * 3


def test_both_development_sets_of_mnli(write):
    folder = write_task(write, "mnli")
    data = load_data(folder)
    assert data.further["mismatched"]["text"][0] == "mismatched 0"
    assert data.further["mismatched"]["label"][:] == [0, 1, 2, 0, 1, 2]
    assert data.take(4, seed=0).further["mismatched"][:] == data.further["mismatched"][:]
    assert data.take(6, seed=0).fingerprint == data.fingerprint
    (folder / "dev_mismatched.jsonl.gz").write_bytes(packed(rows("mnli", "other")))
    assert load_data(folder).fingerprint != data.fingerprint
    (folder / "dev_mismatched.jsonl.gz").unlink()
    assert load_data(folder).reported == ("accuracy",)


def test_two_matched_sets(write, complaint):
    folder = write_task(write, "mnli")
    write("glue/mnli/dev_matched.jsonl", "")
    assert "both dev.jsonl.gz and dev_matched.jsonl; keep one" in complaint(folder)


def test_further_rows_are_checked_too(write, complaint):
    folder = write_task(write, "mnli")
    write("glue/mnli/dev_mismatched.jsonl.gz", packed([*rows("mnli", "x"), rows("mnli", "x")[0] | {"label": 3}]))
    assert "dev_mismatched.jsonl.gz, line 7: label '3'" in complaint(folder)


def test_the_hub_has_no_validation_rows(on_hub, monkeypatch):
    whole = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *name: {k: v for k, v in whole(*name).items() if k != "validation"}
    )
    with pytest.raises(UserError, match=r"glue/rte \(validation\): no such split, only train, test"):
        load_glue("rte")


def test_named_columns_go_before_the_task(on_hub):
    data = load_data("glue/rte", text="sentence2")
    assert (data.name, data.has_pairs, data.train["text"][0]) == ("glue/rte", False, "train pair 0")


@pytest.mark.parametrize("name", ["SST-2", "sst_2", "sst2"])
def test_however_the_folder_is_called(write, name):
    folder = write_task(write, "sst2", name)
    data = load_glue("SST-2", folder.parent)
    assert (data.name, len(data.train)) == ("glue/sst2", 6)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "rte",
            "no folder for rte in it, only SST-2, sst2; put rte/train.* and rte/dev.* there, or leave out --data-dir",
        ),
        ("sst2", "both SST-2 and sst2; keep one of them"),
        ("sts", "sts: no task of GLUE; did you mean stsb? There are cola, sst2,"),
    ],
)
def test_a_folder_without_the_task(write, task, message):
    write_task(write, "sst2")
    folder = write_task(write, "sst2", "SST-2")
    with pytest.raises(UserError) as caught:
        load_glue(task, folder.parent)
    assert message in str(caught.value)


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match=r"--data-dir .*gone: cannot be read \(No such file or directory\)"):
        load_glue("rte", tmp_path / "gone")
    with pytest.raises(UserError, match="no folder for rte in it, only no folder"):
        load_glue("rte", tmp_path)


def test_no_such_task_on_the_hub(on_hub, complaint):
    assert "did you mean cola?" in complaint("glue/colla")
    assert "leave out --task regression" in complaint("glue/cola", task="regression")


def changed(number: int, **values: object):
    """Damage: another value in one row; ``None`` takes it out."""

    def change(records: list[dict]) -> bytes:
        records[number] = {k: v for k, v in (records[number] | values).items() if v is not None}
        return packed(records)

    return change


def without(column: str):
    return lambda records: packed([{k: v for k, v in record.items() if k != column} for record in records])


def broken_line(records: list[dict]) -> bytes:
    lines = [json.dumps(record) for record in records]
    lines[2] = lines[2][:-5]
    return gzip.compress("\n".join(lines).encode())


DAMAGE = {
    "truncated": ("rte", lambda records: packed(records)[:-9], "broken gzip file"),
    "not gzip": ("rte", lambda records: b'{"sentence1": "a"}\n', "broken gzip file"),
    "damaged inside": ("rte", lambda r: packed(r)[:30] + b"\xff\xfe" + packed(r)[32:], "broken gzip file"),
    "empty": ("rte", lambda records: gzip.compress(b"\n"), "no rows"),
    "broken line": ("rte", broken_line, ", line 3: not JSON"),
    "an array a line": ("rte", lambda records: gzip.compress(b'["a", "b", 0]\n'), ", line 1: not a JSON object"),
    "not UTF-8": ("rte", lambda r: gzip.compress(b'{"sentence1": "a"}\n{"sentence1": "\xe9"}\n'), ", line 2: byte"),
    "index beyond": ("cola", changed(4, label=2), ", line 5: label '2' in column 'label' is none of 0 unacceptable"),
    "unlabelled": ("qnli", changed(1, label=-1), ", line 2: label '-1'"),
    "unknown name": ("mnli", changed(3, label="neutrall"), ", line 4: label 'neutrall'"),
    "no label": ("sst2", changed(2, label=None), ", line 3: no label in column 'label' (1 row has none)"),
    "NaN score": ("stsb", changed(2, label=float("nan")), ", line 3: no label in column 'label'"),
    "infinite score": ("stsb", changed(2, label=float("inf")), ", line 3: label inf in column 'label' is not a finite"),
    "a word for a score": (
        "stsb",
        changed(2, label="high"),
        ", line 3: label 'high' in column 'label' is not a finite",
    ),
    "empty text": ("mrpc", changed(5, sentence2=" "), ", line 6: no text in column 'sentence2' (1 row is so)"),
    "no text": ("qqp", changed(0, question1=None), ", line 1: no text in column 'question1'"),
    "a number for text": ("wnli", changed(0, sentence1=7), ", line 1: column 'sentence1' holds 7, not text"),
    "missing column": ("qnli", without("question"), "no column 'question'; "),
    "missing label column": ("mnli", without("label"), "no column 'label'; name it with --label"),
    "wrong task": ("rte", lambda records: packed(rows("mnli", "x")), "no column 'sentence1'; "),
}


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files(write, complaint, damage, split):
    task, change, message = DAMAGE[damage]
    folder = write_task(write, task)
    file = folder / f"{split}.jsonl.gz"
    file.write_bytes(change(rows(task, split)))
    found = complaint(folder)
    assert found.startswith(str(file))
    assert message in found


def test_scores_beyond_five_are_scores(write):
    folder = write_task(write, "stsb")
    (folder / "train.jsonl.gz").write_bytes(changed(0, label=7.5)(rows("stsb", "train")))
    assert load_data(folder).train["label"][0] == 7.5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0\tm\tf\t2012\t1\tn\tn\ta\tb", "train.tsv, line 2: 9 fields where the header has 10"),
        (
            "0\tm\tf\t2012\t1\tn\tn\ta\tb\tnan",
            "train.tsv, line 2: label 'nan' in column 'score' is not a finite number",
        ),
        ("0\tm\tf\t2012\t1\tn\tn\ta\t\t5.0", "train.tsv, line 2: no text in column 'sentence2'"),
    ],
)
def test_damaged_official_tables(write, complaint, line, message):
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    good = "1\tm\tf\t2012\t1\tn\tn\tc\td\t0.250\n2\tm\tf\t2012\t1\tn\tn\te\tf\t4\n"
    folder = write("STS-B/train.tsv", header + line + "\n" + good).parent
    write("STS-B/dev.tsv", header + good)
    assert message in complaint(folder)
