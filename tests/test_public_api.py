"""Nothing that users rely on changes unnoticed."""

from __future__ import annotations

import difflib

import pytest

from public_api import SNAPSHOT, describe


def test_the_public_interface_is_the_one_written_down() -> None:
    for library in ("accelerate", "lightning", "sentence_transformers", "transformers", "trl", "typer"):
        pytest.importorskip(library, reason="the snapshot holds the integrations and the command line")
    changes = difflib.unified_diff(SNAPSHOT.read_text(encoding="utf-8").splitlines(), describe().splitlines(), n=0)
    assert not list(changes), (
        "the public interface changed; if it is meant to, write it down (PYTHONPATH=tests python -m public_api), tell "
        "CHANGELOG.md, and see in CONTRIBUTING.md which version number it takes"
    )
