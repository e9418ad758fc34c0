"""Sharpness-aware minimization as a replacement for ``loss.backward()``.

    method = deltasam.SAM(model, rho=0.05)
    for batch in loader:
        method.backward(lambda: model(**batch))     # fills .grad exactly as loss.backward() would
        optimizer.step()
        optimizer.zero_grad()

A *method* fills ``.grad``. Optimizer, scheduler, gradient clipping and trainer stay as they are.
"""

from deltasam.core import vectors as weight_space
from deltasam.core.closure import Output
from deltasam.core.passes import in_later_pass
from deltasam.core.runtime import Runtime
from deltasam.method import Method, Step, hyperparameters
from deltasam.methods import (
    ASAM,
    ERM,
    R3F,
    RWSAM,
    SAM,
    SMART,
    DeltaSAM,
    FreeLB,
    FriendlySAM,
    PerInstanceSAM,
    RDrop,
)
from deltasam.per_example.norms import per_example_grad_norms
from deltasam.per_example.recorder import NotCoveredError
from deltasam.scheduled import Scheduled
from deltasam.schedules import Schedule
from deltasam.spec import make_method, method_names, split_specs

__version__ = "0.2.0"

__all__ = [
    "ASAM",
    "ERM",
    "R3F",
    "RWSAM",
    "SAM",
    "SMART",
    "DeltaSAM",
    "FreeLB",
    "FriendlySAM",
    "Method",
    "NotCoveredError",
    "Output",
    "PerInstanceSAM",
    "RDrop",
    "Runtime",
    "Schedule",
    "Scheduled",
    "Step",
    "hyperparameters",
    "in_later_pass",
    "make_method",
    "method_names",
    "per_example_grad_norms",
    "split_specs",
    "weight_space",
]
