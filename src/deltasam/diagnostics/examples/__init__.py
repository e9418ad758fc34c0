"""Which training examples a method weighted, which had large gradients or losses, and what is the matter with them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from deltasam.diagnostics.examples.csv_file import read_examples
from deltasam.diagnostics.examples.detection import Detection, detection
from deltasam.diagnostics.examples.recorder import NUMBERS, ExampleRecorder

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["NUMBERS", "Detection", "ExampleRecorder", "detection", "inspect_examples", "read_examples"]


def inspect_examples(
    folder: str | Path, *, by: str | None = None, method: str | None = None, seed: int | None = None
) -> pd.DataFrame:
    """Every training example of every run in a folder: one row per run and example.

    First which run it is: ``method`` (the short spec), ``seed``, ``train_size``, ``label_noise``. Then the columns of
    ``ExampleRecorder.frame`` (``docs/how-to/inspect_examples.md``), as far as a run has them.

    Args:
        folder: The output of ``deltasam train`` or ``compare``, or the folder ``final`` of a row of ``reproduce``.
        by: ``weight``, ``norm`` or ``loss``: the examples of each run by this mean, largest first, without those that
            have none. None: all of them, in the order of the data.
        method: Only runs of this method: its name, or its spec.
        seed: Only runs with this seed.

    Raises:
        UserError: There are no such runs, none with a table of examples, or none with such a mean.
    """
    # By name: output folders are the lab's, which stands above, and nothing else here needs it.
    lab = import_module("deltasam.lab.folders.examples")
    found: pd.DataFrame = lab.inspect_examples(folder, by=by, method=method, seed=seed)
    return found
