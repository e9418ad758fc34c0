"""Nested structures of tensors.

- `torch.utils._pytree` (2.6): a function of all tensors in what a trainer passes on. Without it: ImportError.
"""

from __future__ import annotations

from torch.utils._pytree import tree_map as tree_map
