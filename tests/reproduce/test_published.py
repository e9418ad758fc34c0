"""The published results are whole, and the documentation shows what they show."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from deltasam.experiment.overview import survey
from deltasam.reproduce import read_record

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "benchmarks/results").glob("*.jsonl"))


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks/tables.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_are_on_the_page(tables: ModuleType) -> None:
    shown = {found["name"] for found in tables.MARKS.finditer(tables.PAGE.read_text(encoding="utf-8"))}
    assert shown == {path.stem for path in FILES} >= {"glue-small", "sts-small", "summarization-small"}


def test_the_page_shows_what_they_show(tables: ModuleType) -> None:
    assert tables.page() == tables.PAGE.read_text(encoding="utf-8"), "run: python benchmarks/tables.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_run_is_there(path: Path) -> None:
    overview = survey(read_record(path).rows)
    assert overview.missing_runs == 0
    assert all(len(cell.planned) >= 3 for _, cell in overview.cells)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_versions_and_machine_are_told_and_no_folder_is(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        assert not re.search(r'"/|[A-Z]:\\', line)
        content = json.loads(line)
        if content["kind"] == "row":
            assert {"torch", "transformers", "deltasam", "data_sha256"} <= content["provenance"].keys()
            assert {"processor", "cores", "system"} <= content["machine"].keys()
