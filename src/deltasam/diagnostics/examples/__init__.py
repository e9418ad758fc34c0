"""Which training examples a method weighted, which had large gradients or losses, and what is the matter with them."""

from importlib import import_module
from typing import Any

from deltasam.diagnostics.examples.csv_file import read_examples
from deltasam.diagnostics.examples.detection import Detection, detection
from deltasam.diagnostics.examples.recorder import NUMBERS, ExampleRecorder

__all__ = ["NUMBERS", "Detection", "ExampleRecorder", "detection", "inspect_examples", "read_examples"]


def __getattr__(name: str) -> Any:
    # It reads output folders, which only the lab knows; the library below the lab works without it.
    if name == "inspect_examples":
        return import_module("deltasam.lab.folders.examples").inspect_examples
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
