"""Plugins: Python files with methods, data sources, tasks, diagnostics or charts, run in every process that needs them.

Their paths are in an environment variable, so that processes that are started later load them too.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from deltasam.errors import UserError

VARIABLE = "DELTASAM_PLUGINS"

_loaded: dict[Path, str] = {}
"""The SHA-256 of each file that was run."""


def use_plugins(paths: Sequence[Path]) -> None:
    """Run files that add to the registries, here and in every process that this one starts.

    Args:
        paths: Python files, each with at least one method, data source, task, diagnostic or chart.

    Raises:
        UserError: One cannot be read or run, or adds nothing.
    """
    known = [*_named(), *(path.absolute() for path in paths)]
    os.environ[VARIABLE] = os.pathsep.join(map(str, dict.fromkeys(known)))
    load_plugins()


def load_plugins() -> None:
    """Run the plugins of the parent process, each once.

    Raises:
        UserError: As for ``use_plugins``.
    """
    for path in _named():
        if path not in _loaded:
            _loaded[path] = _run(path)


def fingerprints() -> dict[str, str]:
    """The SHA-256 of each plugin's contents, part of an experiment's identity, by name: ``plugin mine.py``."""
    return {f"plugin {path.name}": digest for path, digest in _loaded.items()}


def _named() -> list[Path]:
    return [Path(name) for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


def _run(path: Path) -> str:
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"--plugin {path}: cannot be read ({error.strerror}); give a Python file") from error
    spec = importlib.util.spec_from_file_location(f"deltasam_plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--plugin {path}: no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # makes its classes picklable
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        where = next((f", line {f.lineno}" for f in reversed(traceback.extract_tb(error.__traceback__))
                      if f.filename == str(path)), "")  # fmt: skip
        raise UserError(f"--plugin {path}{where}: {type(error).__name__}: {error}; correct it") from error
    if not _adds(module):
        raise UserError(
            f"--plugin {path}: defines no method; write class Mine(deltasam.Method, name='mine'), "
            f"as in docs/extend/method.md (nor does it add a data source, a task, a diagnostic or a chart)"
        )
    return digest


def _adds(module: ModuleType) -> bool:
    """Whether one of the module's own classes or functions is in a registry."""
    own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    if any(entry is c or type(entry) is c for c in own for entry in getattr(c, "registry", {}).values()):
        return True
    # These two are heavy: they are loaded only if the plugin has a task or a chart.
    tasks, figures = map(sys.modules.get, ("deltasam.lab.train.tasks.task", "deltasam.lab.report.figures"))
    if tasks is not None and any(c in tasks.make_task.registry.values() for c in own):
        return True
    return figures is not None and any(make.__module__ == module.__name__ for make in figures.MAKERS)
