"""What is published: a source archive, and a wheel made from it, that work away from the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import deltasam

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.xdist_group("package")  # one build for all


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build", reason="needs the library 'build'")
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation nothing is downloaded: setuptools is here. The wheel is built from the source archive.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (wheel,) = built.glob("*.whl")
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=installed, env=environment, check=False
    )


def test_the_wheel_holds_the_whole_package_and_nothing_else(installed: Path) -> None:
    package = ROOT / "src/deltasam"
    there = {p.relative_to(package) for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {p.relative_to(installed / "deltasam") for p in (installed / "deltasam").rglob("*") if p.is_file()} == there
    assert {p.name for p in installed.iterdir()} == {"deltasam", f"deltasam-{deltasam.__version__}.dist-info"}


def test_the_wheel_works(installed: Path) -> None:
    where = run(installed, "-c", "import deltasam; print(deltasam.__version__, deltasam.__file__)")
    assert where.stdout.split() == [deltasam.__version__, str(installed / "deltasam/__init__.py")]
    shown = run(installed, "-m", "deltasam", "methods", "sam")
    assert shown.returncode == 0, shown.stderr
    assert "rho" in shown.stdout


def test_only_torch_is_needed(installed: Path) -> None:
    metadata = next(installed.glob("*.dist-info/METADATA")).read_text()
    assert [r for r in re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE) if "extra ==" not in r] == [
        "torch>=2.6"
    ]


def test_the_source_archive_holds_what_the_tests_and_the_site_need(built: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {Path(*Path(n).parts[1:]) for n in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout: what belongs to the project cannot be listed")
    own = {Path(n) for n in tracked.stdout.split("\n") if n and not n.startswith((".ci", ".git"))}
    assert own - names == set()


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == deltasam.__version__
    released = f"## {citation['version']} ({citation['date-released']})"
    assert released in (ROOT / "CHANGELOG.md").read_text()


def test_every_extra_is_documented() -> None:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    page = (ROOT / "docs/install.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == set(extras)
