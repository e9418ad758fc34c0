"""What happens without a library, and that none is needed by the others."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIBRARIES = {
    "accelerate": ("accelerate", "accelerate"),
    "hf": ("transformers", "hf"),
    "sentence_transformers": ("sentence_transformers", "sentence-transformers"),
    "trl": ("trl", "trl"),
}


@pytest.mark.parametrize("module", LIBRARIES)
def test_the_error_names_the_extra(module: str) -> None:
    library, extra = LIBRARIES[module]
    code = f"""
import sys
sys.modules[{library!r}] = None
try:
    import deltasam.integrations.{module}
except ModuleNotFoundError as error:
    print(error.name, "|", error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    name, _, message = run.stdout.strip().partition(" | ")
    assert name == library
    assert message == (
        f"deltasam.integrations.{module} needs the library {library!r}, which is not installed; "
        f"pip install 'deltasam[{extra}]'"
    )


def test_accelerate_alone_is_enough_for_accelerate() -> None:
    code = """
import sys
sys.modules.update(transformers=None, datasets=None)
import deltasam.integrations.accelerate
"""
    subprocess.run([sys.executable, "-c", code], check=True)
