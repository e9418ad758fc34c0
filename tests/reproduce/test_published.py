"""The published results are whole, and the documentation shows what they show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import deltasam
import tables
from deltasam.diagnostics.fidelity import default_methods
from deltasam.lab.compare.statistics.compare import compare
from deltasam.lab.folders.record import read_record

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "benchmarks/results").glob("*.jsonl"))


@pytest.fixture(scope="module")
def pages() -> dict[Path, str]:
    return tables.pages()


def test_all_are_on_a_page(pages: dict[Path, str]) -> None:
    texts = [path.read_text(encoding="utf-8") for path in pages]
    shown = {found["name"] for text in texts for found in tables.MARKS.finditer(text)}
    assert shown == {path.stem for path in FILES} | set(tables.TABLES)
    assert shown >= {"glue-small", "sts-small", "summarization-small"}


def test_the_pages_show_what_they_show(pages: dict[Path, str]) -> None:
    for path, text in pages.items():
        assert text == path.read_text(encoding="utf-8"), f"{path.name}; run: python benchmarks/tables.py"


def test_every_method_is_among_the_choices() -> None:
    rows = tables.choose().splitlines()[2:]
    assert {row.split("`")[1].partition(":")[0] for row in rows} == set(deltasam.method_names())
    measured = {entry["method"].partition(":")[0] for entry in tables.fidelities()} - {"floor"}
    assert measured == {*default_methods(), "per_instance_sam"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_run_is_there(path: Path) -> None:
    table = compare(read_record(path).rows)
    assert table.missing_runs == 0
    assert all(len(cell.planned) >= 3 for _, cell in table.cells)


@pytest.mark.parametrize("path", sorted(p for p in (ROOT / "benchmarks/results").rglob("*") if p.is_file()), ids=str)
def test_no_folder_is_told(path: Path) -> None:
    assert not re.search(r'["\s]/\w|[A-Z]:\\', path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_versions_and_machine_are_told(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        content = json.loads(line)
        if content["kind"] == "row":
            assert {"torch", "transformers", "deltasam", "data_sha256"} <= content["provenance"].keys()
            assert {"processor", "cores", "system"} <= content["machine"].keys()
