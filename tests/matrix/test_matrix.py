"""Every method in every stack does what its equation says, or refuses, as ``docs/support.md`` tells."""

from __future__ import annotations

import itertools

import pytest

from deltasam import reference
from matrix import stacks, table, task, two_processes
from matrix.stacks import STACKS


@pytest.fixture(scope="module")
def page() -> dict[str, dict[str, str]]:
    return table.written()


@pytest.mark.parametrize("spec", task.SPECS)
@pytest.mark.parametrize("stack", STACKS)
def test_in_one_process(stack: str, spec: str, page: dict[str, dict[str, str]]) -> None:
    cell = table.cell_in_this_process(stack, spec)
    assert table.verdict(stack, cell) == page[stack][spec], cell


@pytest.mark.xdist_group("distributed")
def test_in_two_processes(page: dict[str, dict[str, str]]) -> None:
    cells = table.cells_in_two_processes()
    found = {stack: {spec: table.verdict(stack, cell) for spec, cell in row.items()} for stack, row in cells.items()}
    assert found == {stack: page[stack] for stack in two_processes.STACKS}, cells


def test_the_page_shows_every_cell(page: dict[str, dict[str, str]]) -> None:
    assert list(page) == [*STACKS, *two_processes.STACKS]
    for row in page.values():
        assert list(row) == task.SPECS
        assert set(row.values()) <= {table.EXACT, table.REFUSED, table.WARNED}


@pytest.fixture(scope="module")
def by_hand() -> dict[str, reference.Weights]:
    return {spec: task.by_hand(spec, stacks.HALVES) for spec in task.SPECS}


def test_another_method_would_be_seen(by_hand: dict[str, reference.Weights]) -> None:
    """Trained by any other method, the weights are farther off than a stack may be; even one that rounds, from ERM."""
    start = task.make_model()
    exact, rounding = 5e-3, 0.05
    for spec, other in itertools.combinations(task.SPECS, 2):
        limit = rounding if spec == "erm" else exact
        assert task.error(by_hand[other], by_hand[spec], start) > limit, (spec, other)
    for made in stacks.STACKS.values():
        assert made.tolerance < rounding
    assert sum(made.tolerance < exact for made in stacks.STACKS.values()) >= len(stacks.STACKS) - 2
