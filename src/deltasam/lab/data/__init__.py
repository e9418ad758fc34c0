"""Text with labels from a file, a GLUE folder, the hub or the demonstration package, in one format."""

from __future__ import annotations

from deltasam.lab.data.dataset import TextData
from deltasam.lab.data.glue import glue_tasks
from deltasam.lab.data.load import load_data, load_glue
from deltasam.lab.data.noise import add_label_noise

__all__ = ["TextData", "add_label_noise", "glue_tasks", "load_data", "load_glue"]
