"""Measure a run's final model with its weights rounded, pruned and with noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltasam.diagnostics.after import after_training
from deltasam.lab.data.dataset import SELECTED
from deltasam.lab.train.random_state import deterministic_algorithms

if TYPE_CHECKING:
    from deltasam.lab.train.run import Run

AS_TRAINED = "as trained"


def measure_after(run: Run) -> dict[str, dict[str, float]]:
    """The main metric and ``loss`` on the evaluation rows, by the change of the weights (``after_training``).

    Of the model as training left it, also where another epoch was chosen. The noise is the same for all methods of a
    seed, so that differences are paired here too.
    """
    names = (run.data.metric.removesuffix(SELECTED), "loss")

    def evaluate() -> dict[str, float]:
        found = run.task.evaluate()
        return {name: found[name] for name in names}

    with run.task.all_layers(), deterministic_algorithms():
        changes = after_training(run.model, evaluate, seed=run.seed)
    levels = {level.name: level.metrics for change in changes for level in change.levels}
    return {AS_TRAINED: changes[0].before, **levels}
