"""What a reader can hide on a page: some of its methods, seeds and tasks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Filter:
    """One thing by which rows are told apart.

    Attributes:
        dimension: Its name in rows (``seed``) and elements (``data-seed``).
        plural: Its heading.
        values: All there are, in order of appearance.
    """

    dimension: str
    plural: str
    values: list[str]


def filters(task: str = "task", **values: Iterable[Any]) -> list[Filter]:
    """A filter for each dimension of which there are several values.

    Args:
        task: What a task is called on this page: ``setting``, ``comparison``.
        values: Of each dimension: ``methods``, ``seeds``, ``tasks``.
    """
    titles = {"methods": "methods", "seeds": "seeds", "tasks": f"{task}s"}
    found = [Filter(name[:-1], titles[name], [str(v) for v in dict.fromkeys(given)]) for name, given in values.items()]
    return [filter for filter in found if len(filter.values) > 1]
