"""Which training examples a method weighted, which had large gradients or losses, and what is the matter with them."""

from deltasam.diagnostics.examples.csv_file import read_examples
from deltasam.diagnostics.examples.detection import Detection, detection
from deltasam.diagnostics.examples.recorder import NUMBERS, ExampleRecorder
from deltasam.lab.compare.inspection import inspect_examples

__all__ = ["NUMBERS", "Detection", "ExampleRecorder", "detection", "inspect_examples", "read_examples"]
