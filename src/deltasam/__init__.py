"""Sharpness-aware minimization as a replacement for ``loss.backward()``.

    method = deltasam.SAM(model, rho=0.05)
    for batch in loader:
        method.backward(lambda: model(**batch))     # fills .grad exactly as loss.backward() would
        optimizer.step()
        optimizer.zero_grad()

A *method* fills ``.grad``. Optimizer, scheduler, gradient clipping and trainer stay as they are.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import resolve_name
from typing import TYPE_CHECKING

__version__ = "0.2.0"

# Names are resolved when they are used (PEP 562): `deltasam --help` must not wait for PyTorch. Methods need no line
# here; they are found in deltasam.methods by the names of their classes.
_PUBLIC = {
    "Method": "deltasam.method:Method",
    "NotCoveredError": "deltasam.per_example.recorder:NotCoveredError",
    "Output": "deltasam.core.closure:Output",
    "Runtime": "deltasam.core.runtime:Runtime",
    "Schedule": "deltasam.schedules:Schedule",
    "Scheduled": "deltasam.scheduled:Scheduled",
    "Step": "deltasam.method:Step",
    "hyperparameters": "deltasam.method:hyperparameters",
    "in_later_pass": "deltasam.core.passes:in_later_pass",
    "make_method": "deltasam.spec:make_method",
    "method_names": "deltasam.spec:method_names",
    "per_example_grad_norms": "deltasam.per_example.norms:per_example_grad_norms",
    "split_specs": "deltasam.spec:split_specs",
    "weight_space": "deltasam.core.vectors",
}

if TYPE_CHECKING:  # the same names, and the methods, for type checkers and editors; a test keeps them complete
    from deltasam.core import vectors as weight_space
    from deltasam.core.closure import Output
    from deltasam.core.passes import in_later_pass
    from deltasam.core.runtime import Runtime
    from deltasam.method import Method, Step, hyperparameters
    from deltasam.methods.ae_sam import AESAM
    from deltasam.methods.asam import ASAM
    from deltasam.methods.delta_sam import DeltaSAM
    from deltasam.methods.erm import ERM
    from deltasam.methods.friendly_sam import FriendlySAM
    from deltasam.methods.functional_sam import FunctionalSAM
    from deltasam.methods.gsam import GSAM
    from deltasam.methods.looksam import LookSAM
    from deltasam.methods.one_pass.flat_lora import FlatLoRA
    from deltasam.methods.one_pass.momentum_sam import MomentumSAM
    from deltasam.methods.one_pass.random_sam import RandomSAM
    from deltasam.methods.one_pass.s2_sam import S2SAM
    from deltasam.methods.per_instance_functional_sam import PerInstanceFunctionalSAM
    from deltasam.methods.per_instance_sam import PerInstanceSAM
    from deltasam.methods.preconditioned_functional_sam import PreconditionedFunctionalSAM
    from deltasam.methods.preconditioned_sam import PreconditionedSAM
    from deltasam.methods.regularizers.freelb import FreeLB
    from deltasam.methods.regularizers.r3f import R3F
    from deltasam.methods.regularizers.r_drop import RDrop
    from deltasam.methods.regularizers.smart import SMART
    from deltasam.methods.rw_sam import RWSAM
    from deltasam.methods.sam import SAM
    from deltasam.methods.vasso import VaSSO
    from deltasam.methods.wsam import WSAM
    from deltasam.per_example.norms import per_example_grad_norms
    from deltasam.per_example.recorder import NotCoveredError
    from deltasam.scheduled import Scheduled
    from deltasam.schedules import Schedule
    from deltasam.spec import make_method, method_names, split_specs

    __all__ = [
        "AESAM",
        "ASAM",
        "ERM",
        "GSAM",
        "R3F",
        "RWSAM",
        "S2SAM",
        "SAM",
        "SMART",
        "WSAM",
        "DeltaSAM",
        "FlatLoRA",
        "FreeLB",
        "FriendlySAM",
        "FunctionalSAM",
        "LookSAM",
        "Method",
        "MomentumSAM",
        "NotCoveredError",
        "Output",
        "PerInstanceFunctionalSAM",
        "PerInstanceSAM",
        "PreconditionedFunctionalSAM",
        "PreconditionedSAM",
        "RDrop",
        "RandomSAM",
        "Runtime",
        "Schedule",
        "Scheduled",
        "Step",
        "VaSSO",
        "hyperparameters",
        "in_later_pass",
        "make_method",
        "method_names",
        "per_example_grad_norms",
        "split_specs",
        "weight_space",
    ]
else:

    def __getattr__(name: str) -> object:
        """Resolve a public name at its first use."""
        if name == "__all__":
            return sorted({**_PUBLIC, **_methods()})
        if name.startswith("_"):  # what inspect, doctest and others ask of any module
            raise AttributeError(f"module 'deltasam' has no attribute {name!r}")
        methods = _methods()  # first: whoever gets Method finds all methods in its registry
        value = resolve_name(_PUBLIC[name]) if name in _PUBLIC else methods.get(name)
        if value is None:
            raise AttributeError(f"module 'deltasam' has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """The public names, and what every module has."""
        return sorted({*globals(), *__getattr__("__all__")})


def _methods() -> dict[str, type[Method]]:
    """The methods of this package by the names of their classes."""
    package = import_module("deltasam.methods").__name__
    registered = import_module("deltasam.method").Method.registry.values()
    return {cls.__name__: cls for cls in registered if cls.__module__.startswith(package)}
