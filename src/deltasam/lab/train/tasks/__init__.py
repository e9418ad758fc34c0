"""The tasks: one file for each kind of data; importing this package registers them all."""

from importlib import import_module
from pkgutil import iter_modules

from deltasam.lab.train.tasks.task import Task, make_task

__all__ = ["Task", "make_task"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
