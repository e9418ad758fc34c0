"""What ``import deltasam`` brings along."""

from __future__ import annotations

import subprocess
import sys


def test_import_loads_torch_and_nothing_heavier() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import deltasam
new = {m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(sorted(new))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['deltasam']"
