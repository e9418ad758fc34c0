"""Exact gradient norms of every example, without the gradients."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import Tensor, nn

from deltasam.core.passes import Closure, Passes
from deltasam.core.restore import WeightStore
from deltasam.core.runtime import Runtime
from deltasam.per_example.check_history import Checked
from deltasam.per_example.engine import Engine

# What is known of a model, as long as there is the model.
_CHECKED: WeakKeyDictionary[nn.Module, Checked] = WeakKeyDictionary()


def per_example_grad_norms(
    model: nn.Module, closure: Closure, *, m: int = 1, check: bool = True, runtime: Runtime | None = None
) -> Tensor:
    """Euclidean norm of every example's gradient over all trainable parameters [n].

    One forward and one backward to the layers' outputs; no gradient of a parameter is formed, ``.grad`` is left alone.
    The random state and the buffers are put back, so that a training step after it sees the same dropout masks.

    Args:
        model: The model.
        closure: Runs one forward pass and returns one loss per example [n], or a scalar loss, of which the norms
            are then the shares of the examples.
        m: Examples per group: norms of the summed gradients of m consecutive examples [n / m].
        check: Check the pass against plain PyTorch, as the methods do: in calls 1, 10, 100, ... for a model, and
            whenever it does something new. Without, nothing tells where examples interact or a use is hidden.
        runtime: How a loss becomes gradients; plain PyTorch unless given.

    Raises:
        NotCoveredError: The norms cannot be computed exactly; names the parameters.
        ValueError: m does not divide the number of examples.
    """
    checked = _CHECKED.setdefault(model, Checked()) if check else None
    engine = Engine(model, check=check, checked=checked)
    return engine.dry_run(Passes(model, closure, runtime or Runtime(), WeightStore()), m).norms()
