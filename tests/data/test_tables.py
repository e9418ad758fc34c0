from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

import datasets
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasam.data import load_data
from deltasam.data.tables import read_table

TEXTS = [
    "plain",
    " blanks at both ends ",
    'he said "no", twice',
    "two\nlines",
    "windows\r\nlines",
    "old mac\rlines",
    "tab\tinside",
    "NA",
    "null",
    "None",
    "nan",
    "007",
    "1e5",
    "true",
    "2024-01-01T00:00:00",
    '"quoted"',
    "naïve 東京 🙂",
    "next\u2028line\u0085s",
    "a,b;c",
    "'",
]
FORMATS = ["csv", "tsv", "jsonl", "json", "parquet"]
ZIPPED = [*FORMATS, "csv.gz", "tsv.gz", "jsonl.gz", "json.gz"]


def as_bytes(frame: pd.DataFrame, suffix: str) -> bytes:
    """Write a table by pandas, which the reader does not use."""
    if suffix.endswith(".gz"):
        return gzip.compress(as_bytes(frame, suffix.removesuffix(".gz")))
    if suffix == "parquet":
        buffer = io.BytesIO()
        frame.to_parquet(buffer)
        return buffer.getvalue()
    if suffix in ("csv", "tsv"):
        separator = "," if suffix == "csv" else "\t"
        return frame.to_csv(index=False, sep=separator, quoting=csv.QUOTE_ALL, lineterminator="\n").encode()
    records = frame.to_dict(orient="records")
    if suffix == "json":
        return json.dumps(records, indent=1).encode()
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records).encode()


@pytest.mark.parametrize("suffix", ZIPPED)
def test_every_format_gives_the_text_and_labels_that_were_written(write, examples, suffix):
    labels = ["NA" if row % 3 else "01" for row in range(len(TEXTS))]
    frame = pd.DataFrame({"text": TEXTS, "second": TEXTS[::-1], "label": labels})
    data = load_data(write(f"data.{suffix}", as_bytes(frame, suffix)), text_pair="second")
    assert data.name == f"data.{suffix}"
    assert data.label_names == ("01", "NA")
    assert examples(data) == {
        row: {"text": TEXTS[row], "text_pair": TEXTS[-1 - row], "label": labels[row], "row": row}
        for row in range(len(TEXTS))
    }


def test_equal_data_has_one_fingerprint_in_every_format(write):
    frame = pd.DataFrame({"text": TEXTS, "label": [row % 2 for row in range(len(TEXTS))]})
    loaded = [load_data(write(f"data.{suffix}", as_bytes(frame, suffix))) for suffix in ZIPPED]
    assert len({data.fingerprint for data in loaded}) == 1
    assert loaded[0].label_names == ("0", "1")


anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(anything, anything), min_size=1, max_size=6), suffix=st.sampled_from(ZIPPED))
def test_any_text_survives(rows, suffix):
    frame = pd.DataFrame(rows, columns=["text", "other"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"data.{suffix}"
        path.write_bytes(as_bytes(frame, suffix))
        table = read_table(path)
    assert table.columns == {"text": [row[0] for row in rows], "other": [row[1] for row in rows]}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json"])
def test_a_byte_order_mark_is_not_part_of_the_data(write, suffix):
    frame = pd.DataFrame({"text": ["x", "y"], "label": ["a", "b"]})
    table = read_table(write(f"data.{suffix}", b"\xef\xbb\xbf" + as_bytes(frame, suffix)))
    assert table.columns == {"text": ["x", "y"], "label": ["a", "b"]}


def test_line_numbers_are_those_of_an_editor(write):
    table = read_table(write("a.csv", 'text,label\n"one\ntwo",a\n\nthree,b\n'))
    assert [table.at(row).rpartition(", ")[2] for row in range(2)] == ["line 2", "line 5"]
    table = read_table(write("a.jsonl", '{"text": "one"}\n\n{"text": "two"}\n'))
    assert [table.at(row).rpartition(", ")[2] for row in range(2)] == ["line 1", "line 3"]


def test_a_json_file_may_hold_one_object_a_line(write):
    assert read_table(write("a.json", '{"text": "one"}\n{"text": "two"}\n')).columns == {"text": ["one", "two"]}


def test_an_upper_case_suffix_counts(write, csv_text):
    assert len(load_data(write("DATA.CSV", csv_text)).train) == 16


def test_nothing_is_left_behind_and_a_changed_file_is_read_anew(write, csv_text, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    first = load_data(write("a.csv", csv_text))
    second = load_data(write("a.csv", csv_text.replace("text 0", "text X")))
    texts = {*second.train["text"], *second.evaluation["text"]}
    assert "text X" in texts
    assert "text 0" not in texts
    assert first.fingerprint != second.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_missing_file(complaint, tmp_path):
    assert "no such file" in complaint(tmp_path / "gone.csv")


def test_unreadable_file(write, complaint, csv_text, monkeypatch):
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    path = write("a.csv", csv_text)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "cannot be read (Permission denied); check its permissions" in complaint(path)


def test_unsupported_file_type(write, complaint):
    message = complaint(write("a.xlsx", b"PK"))
    assert "'.xlsx'" in message
    assert ".csv .tsv .jsonl .json .parquet" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", ""),
        ("a.csv", "text,label\n"),
        ("a.tsv", "text\tlabel"),
        ("a.jsonl", "\n"),
        ("a.json", "[]"),
        ("a.csv.gz", gzip.compress(b"", mtime=0)),
        ("a.parquet", as_bytes(pd.DataFrame({"text": [], "label": []}), "parquet")),
    ],
)
def test_no_rows(write, complaint, name, content):
    assert f"{name}: no rows" in complaint(write(name, content))


@pytest.mark.parametrize("damage", [lambda b: b[:-12], lambda b: b[:20] + b"!!!!" + b[24:], lambda _: b"text,label"])
def test_broken_gzip(write, complaint, csv_text, damage):
    path = write("a.csv.gz", damage(gzip.compress(csv_text.encode())))
    assert "a.csv.gz: broken gzip file" in complaint(path)


def test_gzipped_parquet_is_declined(write, complaint):
    assert "gunzip a.parquet.gz" in complaint(write("a.parquet.gz", gzip.compress(b"PAR1")))


@pytest.mark.parametrize("keep", [3, 50, -8])
def test_broken_parquet(write, complaint, keep):
    content = as_bytes(pd.DataFrame({"text": ["a", "b"], "label": [0, 1]}), "parquet")
    assert "a.parquet: broken Parquet file" in complaint(write("a.parquet", content[:keep]))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json"])
def test_not_utf8(write, complaint, suffix):
    message = complaint(write(f"a.{suffix}", b"text\n1234\ncaf\xe9\n"))
    assert f"a.{suffix}, line 3: byte 13 (0xe9) is not UTF-8" in message
    assert "iconv -f" in message


@pytest.mark.parametrize(("row", "fields"), [("x,a,more", 3), ("x", 1)])
def test_ragged_csv(write, complaint, row, fields):
    message = complaint(write("a.csv", f"text,label\ny,b\n{row}\nz,a\n"))
    assert f"a.csv, line 3: {fields} fields where the header has 2" in message


@pytest.mark.parametrize("row", ['"open,a', '"x" y,a'])
def test_wrong_quotation_marks(write, complaint, row):
    message = complaint(write("a.csv", f"text,label\ny,b\n{row}\nz,a\n"))
    assert "a.csv, line 3: " in message
    assert "double the quotation marks" in message


@pytest.mark.parametrize(
    ("content", "line"),
    [('{"text": "x"}\n{"text": \n', 2), ('{"text": "x"}\n{"text": "y", "text": "z"}', 2), ("[1, \n2", 2)],
)
def test_malformed_json(write, complaint, content, line):
    assert f"a.json, line {line}: " in complaint(write("a.json", content))


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", '{"text": "x"}\n["x"]\n'), ("a.json", '[{"a": 1}, 2]')])
def test_json_rows_must_be_objects(write, complaint, name, content):
    message = complaint(write(name, content))
    assert message.endswith("2: not a JSON object; write every row as {column: value, ...}")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_two_columns_of_one_name(write, complaint, name):
    content = "text,label,text\nx,a,y\n".replace(",", "," if name == "a.csv" else "\t")
    assert "more than one column is called 'text'" in complaint(write(name, content))


@pytest.mark.parametrize("quote", ["", '"'])
def test_semicolons_are_named(write, complaint, quote):
    rows = [("text", "label"), ("good, really", "yes"), ("bad", "no")]
    content = "\n".join(";".join(f"{quote}{value}{quote}" for value in row) for row in rows)
    message = complaint(write("a.csv", content))
    assert "a.csv: seems to be separated by ';', not by ','; write it with commas" in message


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_tabs_in_a_csv_are_named(write, complaint, name):
    content = b"text\tlabel\ngood, really\tyes\nbad\tno\n"
    message = complaint(write(name, gzip.compress(content) if name.endswith(".gz") else content))
    assert f"{name}: seems to be separated by tabs, not by ','; name it .tsv instead of .csv" in message


def test_a_semicolon_beside_commas_is_text(write):
    assert list(read_table(write("a.csv", "text;s,label\ngood,yes\n")).columns) == ["text;s", "label"]


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json"])
def test_utf16_is_named(write, complaint, codec, suffix):
    message = complaint(write(f"a.{suffix}", "\ufefftext,label\ngood,yes\n".encode(codec)))
    assert f"a.{suffix}: is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8 a.{suffix}" in message
