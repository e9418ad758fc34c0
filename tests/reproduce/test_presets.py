"""The files that say what a table consists of."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from deltasam.errors import UserError
from deltasam.lab.reproduce.preset import load_preset, preset_text, scales
from deltasam.lab.reproduce.sources import TABLES
from deltasam.lab.train.variant import full_spec

PRESETS = [(table, scale) for table in TABLES for scale in scales()]


@pytest.mark.parametrize(("table", "scale"), PRESETS, ids="-".join)
def test_every_preset_can_be_used(table: str, scale: str) -> None:
    preset = load_preset(table, scale)
    assert preset.table == table
    assert preset.rows
    for row in preset.rows:
        assert preset.config(row).epochs >= 1
    specs = [spec for candidates in preset.methods.values() for spec in candidates]
    assert specs == [full_spec(spec) for spec in specs]
    assert len(set(specs)) == len(specs)
    assert not set(preset.seeds) & set(preset.search.seeds)  # what is chosen with is not what is reported


def test_the_scales() -> None:
    assert scales() == ["paper", "small"]


def test_the_text_of_a_preset_is_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(preset_text("glue", "small"), encoding="utf-8")
    assert load_preset("glue", str(path)) == load_preset("glue", "small")


def test_rows_can_be_left_out() -> None:
    preset = load_preset("glue", "small")
    assert [row.name for row in preset.only(["STS-B", "SST-2"]).rows] == ["SST-2", "STS-B"]
    with pytest.raises(UserError, match="--row: there is no 'QQP'; there are: SST-2; SST-2, 30 % label noise; MRPC"):
        preset.only(["QQP"])
    with pytest.raises(UserError, match="RTE takes its hyper-parameters from SST-2, which is not there; add it"):
        preset.only(["RTE"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {"sam": ["sam"]}}, "the baseline erm is missing"),
        ({"methods": {"erm": ["erm"], "x": ["sma:rho=1"]}}, "unknown method 'sma'"),
        ({"training": {"lr": 1}}, "there is no option lr"),
        ({"training": {"epochs": 0}}, "--epochs 0: must be 1 or more"),
        ({"rows": [{"name": "a", "data": "cola"}, {"name": "a", "data": "rte"}]}, "rows: a is there twice"),
        ({"rows": [{"name": "a", "dta": "cola"}]}, "unexpected keyword argument 'dta'.*--show prints a preset"),
        (
            {"rows": [{"name": "a", "data": "cola", "chosen_on": "b"}, {"name": "b", "data": "rte", "chosen_on": "a"}]},
            "a takes its choice from b, which has none of its own",
        ),
        ({"seedz": [1]}, "unexpected keyword argument 'seedz'"),
        ({"table": "squad"}, "table: squad is none of glue, sts, summarization"),
        ({"table": "sts"}, "it is for sts; deltasam reproduce sts"),
    ],
)
def test_what_is_wrong_is_said(content: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**copy.deepcopy(content), **change}), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_preset("glue", str(path))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--scale none\.yaml: No such file.*give paper, small, or a YAML file"):
        load_preset("glue", "none.yaml")
    with pytest.raises(UserError, match="squad: no table; give glue, sts, summarization, noise"):
        load_preset("squad", "small")
    (tmp_path / "odd.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(UserError, match="no YAML"):
        load_preset("glue", str(tmp_path / "odd.yaml"))
    (tmp_path / "list.yaml").write_text("- 1", encoding="utf-8")
    with pytest.raises(UserError, match="--show prints a preset"):
        load_preset("glue", str(tmp_path / "list.yaml"))
