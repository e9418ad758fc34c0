"""``deltasam demo``: a comparison with bundled options."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import yaml

import deltasam.cli.demo
from command_line import Cli
from deltasam.lab.folders.files import read_results

OPTIONS = yaml.safe_load((resources.files("deltasam.cli") / "demo.yaml").read_text(encoding="utf-8"))


def test_is_a_comparison_with_its_options(
    cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small model and little work in place of its own."""
    small = {
        **OPTIONS,
        "model": str(tiny_model),
        "train_size": 12,
        "epochs": 1,
        "seeds": [0],
        "methods": ["erm", "sam"],
    }
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(small), encoding="utf-8")
    monkeypatch.setattr(deltasam.cli.demo, "files", lambda _: tmp_path)
    done = cli("demo", "--output", tmp_path / "out", "--workers", "1")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.startswith("deltasam compare --config ")
    results = read_results(tmp_path / "out")
    assert [(r.method.partition(":")[0], r.setting.label_noise) for r in results if r.setting] == [
        ("erm", 0.3), ("sam", 0.3), ("erm", 0.0), ("sam", 0.0)
    ]  # fmt: skip
    assert {r.metric for r in results} == {"accuracy_selected"}
    assert done.stdout.count("At the last epoch, accuracy minus erm's: sam") == 2
    assert "</html>" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_its_options_are_options_of_compare(cli: Cli, tmp_path: Path) -> None:
    path = resources.files("deltasam.cli") / "demo.yaml"
    refused = cli("compare", "--config", str(path), "--methods", "nothing", "--output", tmp_path / "out")
    assert refused.exit_code == 2
    assert "unknown method 'nothing'" in refused.stderr  # every option before that was taken
    assert len(OPTIONS["seeds"]) >= 4
    assert 0 in OPTIONS["label_noise"]
