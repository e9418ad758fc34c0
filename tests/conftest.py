from __future__ import annotations

import gc
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny_bert
from deltasam import Method


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "Python file with a method of one's own and its reference: run the contracts on it alone."
    parser.addoption("--method-file", action="append", type=Path, default=[], metavar="FILE", help=text)


def pytest_configure(config: pytest.Config) -> None:
    if files := config.getoption("method_file"):
        from deltasam.lab.train.plugins import use_plugins

        known = set(Method.registry)
        use_plugins(files)
        config.stash[OWN_METHODS] = set(Method.registry) - known


@pytest.hookimpl(tryfirst=True)  # before -m looks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        # Those that share processes or a browser. What else is slow says so.
        if item.get_closest_marker("xdist_group") or "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    if OWN_METHODS in config.stash:
        wanted = [item for item in items if _method_of(item) in config.stash[OWN_METHODS]]
        config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
        items[:] = wanted


def _method_of(item: pytest.Item) -> str:
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return str(parameters.get("name", "")).partition(":")[0]


OWN_METHODS = pytest.StashKey[set[str]]()


@pytest.fixture(autouse=True, scope="session")
def _one_thread_per_worker() -> None:
    # The models are tiny: more threads only fight each other, and the workers run side by side anyway.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _libraries_are_no_garbage() -> None:
    # Every run looks for garbage before it measures memory, and what the libraries hold is a lot to go through.
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def model() -> nn.Module:
    """A small classifier; ``classifier.losses`` gives its losses on ``batch``."""
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 6), torch.randint(0, 3, (8,))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert.save_tiny_bert(tmp_path_factory.mktemp("model") / "tiny_bert")


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert.write_reviews(tmp_path_factory.mktemp("data") / "reviews.csv")


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("needs chromium or google-chrome on the PATH")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
