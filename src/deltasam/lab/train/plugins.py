"""Methods of one's own: Python files that define some, run in every process that makes methods.

Which files is in an environment variable, so that processes that are started later know it too.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from deltasam.errors import UserError
from deltasam.spec import method_names

VARIABLE = "DELTASAM_PLUGINS"

_loaded: dict[Path, str] = {}
"""The SHA-256 of each file that was run."""


def use_plugins(paths: Sequence[Path]) -> None:
    """Run files that define methods, here and in every process that this one starts.

    Args:
        paths: Python files, each with at least one subclass of ``deltasam.Method`` that has a name.

    Raises:
        UserError: One cannot be read or run, or defines no method.
    """
    known = [*_named(), *(path.absolute() for path in paths)]
    os.environ[VARIABLE] = os.pathsep.join(map(str, dict.fromkeys(known)))
    load_plugins()


def load_plugins() -> None:
    """Run the files that the process which started this one uses, each once.

    Raises:
        UserError: As ``use_plugins``.
    """
    for path in _named():
        if path not in _loaded:
            _loaded[path] = _run(path)


def fingerprints() -> dict[str, str]:
    """What of each file decides the numbers of its methods: ``plugin mine.py`` and the SHA-256 of its contents."""
    return {f"plugin {path.name}": digest for path, digest in _loaded.items()}


def _named() -> list[Path]:
    return [Path(name) for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


def _run(path: Path) -> str:
    before = method_names()
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"--plugin {path}: cannot be read ({error.strerror}); give a Python file") from error
    spec = importlib.util.spec_from_file_location(f"deltasam_plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--plugin {path}: no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # what it defines can be pickled
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        where = next((f", line {f.lineno}" for f in reversed(traceback.extract_tb(error.__traceback__))
                      if f.filename == str(path)), "")  # fmt: skip
        raise UserError(f"--plugin {path}{where}: {type(error).__name__}: {error}; correct it") from error
    if before == method_names():
        raise UserError(
            f"--plugin {path}: defines no method; write class Mine(deltasam.Method, name='mine'), "
            f"as in docs/extend/method.md"
        )
    return digest
