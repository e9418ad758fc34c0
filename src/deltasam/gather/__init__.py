"""From output folders to comparisons: what ``compare``, ``train`` and ``reproduce`` left, finished or not."""

from deltasam.gather.comparison import Gathered
from deltasam.gather.folders import Found, gather

__all__ = ["Found", "Gathered", "gather"]
