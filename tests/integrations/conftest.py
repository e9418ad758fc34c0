from __future__ import annotations

import gc

import pytest


@pytest.fixture(autouse=True, scope="module")
def _what_is_imported_is_not_garbage() -> None:
    # Every train() collects garbage, which takes longer than these trainings while it looks through all libraries.
    gc.freeze()
