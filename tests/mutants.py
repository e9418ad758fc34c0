"""Break the package in one place, and run tests on it in a process of their own.

That process is forked from one that has imported the heavy libraries. On its path, before the package, stand links to
every file of the package but the broken one, compiled ones too: the processes that the tests start find them as well.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from _pytest.mark import KeywordMatcher
from _pytest.mark.expression import Expression

import forked

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "src" / "deltasam"
SUFFIXES = (".py", ".jinja", ".js")
SECONDS = 300  # of one process: a mutant may never come to an end

OPTIONS = ["-x", "-q", "--assert=plain", "--tb=native", "-p", "no:cacheprovider"]


@dataclass
class Outcome:
    """What became of some tests; as a plugin of pytest it notes it.

    Attributes:
        code: pytest's exit code: 0 if all passed, 1 if some failed, others if they could not be run.
        failed: The items that failed.
        output: What pytest printed.
    """

    code: int = -1
    failed: list[str] = field(default_factory=list)
    output: str = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


@dataclass
class Selection:
    """Which items of a file are run, and in which order.

    Attributes:
        contracts: As ``-k`` takes them.
        first_only: One item of each.
        method: Those of a method come first.
    """

    contracts: Iterable[str]
    first_only: bool = False
    method: str = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        chosen: dict[str, pytest.Item] = {}
        keywords = [(item, KeywordMatcher.from_item(item)) for item in items]
        for contract in self.contracts:
            expression = Expression.compile(contract)
            found = [item for item, words in keywords if expression.evaluate(words)]
            if not found:
                raise pytest.UsageError(f"no test is called {contract!r}")
            chosen |= {item.nodeid: item for item in found[: 1 if self.first_only else None]}
        items[:] = sorted(chosen.values(), key=lambda item: self.method not in item.name)


def locate(place: str, snippet: str) -> Path:
    """The file that has a snippet, relative to the package: the one where it was last seen, or another if it moved.

    Raises:
        LookupError: The snippet is nowhere, or more than once.
    """
    files = [path for path in sorted(PACKAGE.rglob("*")) if path.suffix in SUFFIXES]
    found = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8").count(snippet) for path in files}
    found = {name: count for name, count in found.items() if count}
    if place in found:
        found = {place: found[place]}
    if sum(found.values()) == 1:
        return Path(*found)
    where = ", ".join(f"{count} times in {name}" for name, count in found.items()) or "nowhere in the package"
    raise LookupError(f"the text to break is {where} (it was in {place}); update it, or give more of it: {snippet!r}")


def broken(place: str, old: str, new: str, folder: Path) -> Path:
    """The package with one text in place of another, in a folder of its own."""
    name = locate(place, old)
    text = (PACKAGE / name).read_text(encoding="utf-8").replace(old, new)
    if name.suffix == ".py":
        compile(text, str(name), "exec")  # or its error would be that of every test
    here, real = folder / "deltasam", PACKAGE
    for part in name.parts:
        (here / "__pycache__").mkdir(parents=True)
        compiled = f"{part.removesuffix('.py')}.*.pyc"
        for path in (*real.iterdir(), *real.glob("__pycache__/*.pyc")):
            if path.name not in (part, "__pycache__") and not path.match(compiled):
                (here / path.relative_to(real)).symlink_to(path)
        here, real = here / part, real / part
    here.write_text(text, encoding="utf-8")
    return folder


def in_a_fork(file: str, selection: Selection, scratch: Path, package: Path | None = None) -> Outcome:
    """Run some tests of a file.

    Args:
        file: In the folder of tests.
        selection: Of its items.
        scratch: A folder for what is written.
        package: The folder that has the broken package; None: the package as it is.
    """
    with ProcessPoolExecutor(1, mp_context=forked.CONTEXT) as pool:
        return pool.submit(_run, file, selection, scratch, package).result()


def _run(file: str, selection: Selection, scratch: Path, package: Path | None) -> Outcome:
    signal.alarm(SECONDS)
    sys.dont_write_bytecode = False  # the package and the tests are compiled once, not for every mutant
    gc.freeze()  # what the heavy libraries hold need not be gone through again and again
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if package is not None:
        sys.path.insert(0, str(package))
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    outcome, path = Outcome(), scratch / "output"
    with path.open("w", encoding="utf-8") as output, contextlib.redirect_stdout(output):
        options = [*OPTIONS, f"--basetemp={scratch / 'tests'}", f"--rootdir={TESTS.parent}", str(TESTS / file)]
        outcome.code = int(pytest.main(options, plugins=[outcome, selection]))
    outcome.output = path.read_text(encoding="utf-8")
    found = Path(sys.modules["deltasam"].__file__ or "")
    if not found.is_relative_to(package or PACKAGE):
        raise RuntimeError(f"what was tested is {found}")
    return outcome
