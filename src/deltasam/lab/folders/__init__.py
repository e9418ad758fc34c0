"""From output folders to comparisons: what ``compare``, ``train`` and ``reproduce`` left, finished or not."""

from deltasam.lab.folders.comparison import Gathered
from deltasam.lab.folders.gather import Found, gather

__all__ = ["Found", "Gathered", "gather"]
