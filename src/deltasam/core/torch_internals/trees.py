"""Nested structures of tensors.

- `torch.utils._pytree` (2.6): a function of all tensors in what a trainer passes on; and what a module is given and
  returns, apart and together again. Without it: ImportError.
"""

from __future__ import annotations

from torch.utils._pytree import tree_flatten as tree_flatten
from torch.utils._pytree import tree_map as tree_map
from torch.utils._pytree import tree_unflatten as tree_unflatten
