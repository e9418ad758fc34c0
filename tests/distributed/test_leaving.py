"""Processes that have parted end well."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from distributed.launch import torchrun


@pytest.mark.xdist_group("distributed")
@pytest.mark.skipif(sys.platform != "linux", reason="reads the threads of a process from /proc")
def test_no_thread_is_left() -> None:
    done = torchrun(Path(__file__).with_name("leaving.py"))
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr
