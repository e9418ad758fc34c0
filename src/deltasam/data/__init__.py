"""Text with labels from a file, a GLUE folder, the hub or the demonstration package, in one shape."""

from __future__ import annotations

from deltasam.data.dataset import TextData
from deltasam.data.load import load_data
from deltasam.data.split import take

__all__ = ["TextData", "load_data", "take"]
