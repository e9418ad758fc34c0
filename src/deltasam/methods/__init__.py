"""One method per file. Importing this package imports every file in it, and so registers every method."""

from importlib import import_module
from pkgutil import walk_packages

for _module in walk_packages(__path__, f"{__name__}."):
    import_module(_module.name)
