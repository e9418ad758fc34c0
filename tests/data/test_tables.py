from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
import threading
import zipfile
from pathlib import Path

import datasets
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltasam.errors import UserError
from deltasam.lab.data import load_data
from deltasam.lab.data.tables import read_table

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
    ids=["empty", "header", "header without end", "jsonl", "json", "gzip", "parquet"],
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


LONG = "clause " * 30_000


@pytest.mark.parametrize("suffix", ZIPPED)
def test_texts_of_any_length(write, suffix):
    frame = pd.DataFrame({"text": ["short", LONG, LONG + '"quoted, too"'], "label": ["a", "b", "a"]})
    before = csv.field_size_limit()
    assert read_table(write(f"data.{suffix}", as_bytes(frame, suffix))).columns["text"] == frame["text"].tolist()
    assert csv.field_size_limit() == before


def test_the_limit_of_the_process_is_restored_after_an_error_and_between_threads(write, csv_text):
    before = csv.field_size_limit()
    broken, whole = write("a.csv", 'text,label\n"open,a\n'), write("b.csv", csv_text + f"{LONG},a\n")
    with pytest.raises(UserError):
        read_table(broken)
    assert csv.field_size_limit() == before
    found = []
    threads = [threading.Thread(target=lambda: found.append(len(read_table(whole).places))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [21] * 8
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("line", "delimiter"), [("sep=;", ";"), ('"sep=;"', ";"), ("SEP=|", "|"), ("sep=,", ","), ("sep=\t", "\t")]
)
def test_a_sep_line_is_obeyed(write, line, delimiter, mark):
    content = f"{mark}{line}\r\ntext,label\r\nno,a\r\n".replace(",label", f"{delimiter}label").replace(
        "no,", f"no{delimiter}"
    )
    table = read_table(write("a.csv", content))
    assert table.columns == {"text": ["no"], "label": ["a"]}
    assert table.at(0).endswith("line 3")


def test_a_sep_line_that_is_wrong(write, complaint, csv_text):
    assert "its first line, sep=;, says that ';' separates the fields" in complaint(
        write("a.csv", "sep=;\n" + csv_text)
    )


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json"])
def test_every_line_end(write, suffix, end):
    frame = pd.DataFrame({"text": ["x", "y"], "label": ["a", "b"]})
    content = as_bytes(frame, suffix).decode().replace("\n", end)
    assert read_table(write(f"a.{suffix}", content)).columns == {"text": ["x", "y"], "label": ["a", "b"]}


ROWS = [{"text": f"text\u2028{row}", "label": row % 2} for row in range(4)]
COLUMNS = {"text": [row["text"] for row in ROWS], "label": [0, 1, 0, 1]}


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize(
    ("content", "places"),
    [
        (json.dumps(ROWS), [1, 2, 3, 4]),
        (json.dumps(ROWS, indent=2), [1, 2, 3, 4]),
        ("\n".join(json.dumps(row, indent=2) for row in ROWS), [1, 5, 9, 13]),
        ("\n\n".join(json.dumps(row).replace('", ', '",\n') for row in ROWS), [1, 4, 7, 10]),
        (" ".join(map(json.dumps, ROWS)), [1, 1, 1, 1]),
    ],
    ids=["list", "printed list", "printed objects", "broken lines", "one line"],
)
def test_json_in_every_form(write, suffix, content, places):
    table = read_table(write(f"a.{suffix}", content))
    assert table.columns == COLUMNS
    assert [int(table.at(row).split()[-1]) for row in range(4)] == places


def test_an_error_in_printed_json_is_where_it_is(write, complaint):
    printed = "\n".join(json.dumps(row, indent=2) for row in ROWS)
    broken = printed.replace('20282",', '20282",,')
    assert "a.jsonl, line 10: not JSON" in complaint(write("a.jsonl", broken))
    assert "a.jsonl, line 1: not JSON" in complaint(write("a.jsonl", '{"text": "x",, "label": 1}\n'))


@pytest.mark.parametrize("content", [{"data": ROWS}, {"version": "1", "data": ROWS}, COLUMNS, {"text": {"0": "a"}}])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_table_in_one_object(write, complaint, content, indent):
    message = complaint(write("a.json", json.dumps(content, indent=indent)))
    assert f"one JSON object that holds {', '.join(content)}, not rows; write a list of rows" in message


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, "x")
    return buffer.getvalue()


PARQUET = as_bytes(pd.DataFrame({"text": ["a"]}), "parquet")
OTHERS = [
    (
        archive("[Content_Types].xml", "xl/workbook.xml"),
        "an Excel workbook (.xlsx); in the spreadsheet program save it",
    ),
    (archive("mimetype", "content.xml"), "an OpenDocument spreadsheet (.ods); in the spreadsheet program save it"),
    (archive("a.csv"), "a ZIP archive; unpack it"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512), "an old Excel workbook (.xls)"),
    (b"<!DOCTYPE html><html>", "HTML or XML"),
    (b"\xef\xbb\xbf <?xml version='1.0'?>", "HTML or XML"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
]


@pytest.mark.parametrize("suffix", [*FORMATS, "csv.gz"])
@pytest.mark.parametrize(("content", "kind"), OTHERS, ids=[kind.split(";")[0] for _, kind in OTHERS])
def test_a_file_with_a_wrong_suffix_is_named(write, complaint, suffix, content, kind):
    content = gzip.compress(content) if suffix.endswith(".gz") else content
    plain = suffix.removesuffix(".gz")
    assert f"a.{suffix}: not a .{plain} file, but {kind}" in complaint(write(f"a.{suffix}", content))


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (json.dumps(ROWS), "JSON; name it .jsonl"),
        (json.dumps(ROWS[0]), "JSON"),
        (PARQUET, "a Parquet file; name it .parquet"),
        (gzip.compress(b"text", mtime=0), "compressed by gzip; name it ."),
    ],
    ids=["JSON array", "JSON object", "Parquet", "gzip"],
)
def test_other_tables_in_a_csv_are_named(write, complaint, suffix, content, kind):
    assert f"a.{suffix}: not a .{suffix} file, but {kind}" in complaint(write(f"a.{suffix}", content))


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_named(write, complaint, codec):
    message = complaint(write("a.csv", "text,label\ngood,yes\n".encode(codec)))
    assert (
        f"a.csv: is UTF-16, not UTF-8; convert it: iconv -f {codec.upper().replace('-LE', 'LE').replace('-BE', 'BE')} "
        in message
    )


@pytest.mark.parametrize("row", ['a, "b"', 'a, "b, c"', 'a, "b\nc"', 'a,  "b ""c"""'])
def test_a_blank_before_a_quotation_mark_is_named(write, complaint, row):
    message = complaint(write("a.csv", f"label,text\nx,y\n{row}\n"))
    assert "a.csv, line 3: " in message or "a.csv, line 4: " in message
    assert "a blank between ',' and a quotation mark" in message
    assert "skipinitialspace=True" in message


@pytest.mark.parametrize("text", [' "b"', ' "b" c', ' "b', 'a "b"'])
def test_blanks_and_quotation_marks_that_are_quoted_themselves(write, text):
    content = as_bytes(pd.DataFrame({"label": ["a"], "text": [text]}), "csv")
    assert read_table(write("a.csv", content)).columns["text"] == [text]
