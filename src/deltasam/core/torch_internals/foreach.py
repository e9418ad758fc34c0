"""Operations on many tensors at a time, in as few launches as PyTorch can make of them.

- `torch._foreach_abs`, `_foreach_norm` (2.6): of each tensor.
- `_foreach_add`, `_foreach_add_`, `_foreach_sub` (2.6): with the tensors of another list, or a number.
- `_foreach_mul`, `_foreach_mul_`, `_foreach_div` (2.6): likewise.
- `_foreach_copy_` (2.6): weights to and from their copies.

Without one of them: AttributeError at import. `torch.optim` is built on them; in the place of any, a loop over the
tensors does the same, more slowly.
"""

from __future__ import annotations

import torch

abs_of = torch._foreach_abs
norm = torch._foreach_norm
add, add_, sub = torch._foreach_add, torch._foreach_add_, torch._foreach_sub
mul, mul_, div = torch._foreach_mul, torch._foreach_mul_, torch._foreach_div
copy_ = torch._foreach_copy_
