"""What happens without a library."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

LIBRARIES = {
    "accelerate": ("accelerate", "accelerate"),
    "hf": ("transformers", "hf"),
    "sentence_transformers": ("sentence_transformers", "sentence-transformers"),
    "trl": ("trl", "trl"),
}


def output_of(code: str) -> list[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_error_names_the_extra() -> None:
    lines = output_of(f"""
import importlib, sys
for module, (library, _) in {LIBRARIES}.items():
    sys.modules[library] = None
    try:
        importlib.import_module("deltasam.integrations." + module)
    except ModuleNotFoundError as error:
        print(error.name, error, sep=" | ")
    del sys.modules[library]
""")
    assert lines == [
        f"{library} | deltasam.integrations.{module} needs the library {library!r}, which is not installed; "
        f"pip install 'deltasam[{extra}]'"
        for module, (library, extra) in LIBRARIES.items()
    ]


def test_accelerate_needs_no_transformers() -> None:
    lines = output_of("""
import sys
sys.modules.update(transformers=None, datasets=None)
import deltasam.integrations.accelerate as accelerate
print(accelerate.AccelerateRuntime.__name__)
""")
    assert lines == ["AccelerateRuntime"]
