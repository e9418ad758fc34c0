"""Text with labels from a file, a GLUE folder, the hub or the demonstration package, in one shape."""

from __future__ import annotations

from deltasam.data.dataset import TextData
from deltasam.data.glue import glue_tasks
from deltasam.data.load import load_data, load_glue
from deltasam.data.noise import add_label_noise
from deltasam.data.split import take

__all__ = ["TextData", "add_label_noise", "glue_tasks", "load_data", "load_glue", "take"]
