"""One file for each diagnostic; importing this package registers them all."""

from importlib import import_module
from pkgutil import iter_modules

from deltasam.lab.diagnose.diagnostic import Diagnostic

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def diagnostic_names() -> list[str]:
    """Every diagnostic, in the order in which they run."""
    return sorted(Diagnostic.registry, key=lambda name: (Diagnostic.registry[name].order, name))
