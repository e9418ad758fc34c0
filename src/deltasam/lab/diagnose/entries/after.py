"""What the model is worth rounded to a few bits, pruned, and with noise on its weights."""

from __future__ import annotations

from collections.abc import Mapping

from deltasam.diagnostics import AfterChange, after_training, plot_after
from deltasam.lab.diagnose.diagnostic import Diagnostic, Number, Plot
from deltasam.lab.diagnose.subject import Subject

Results = tuple[AfterChange, ...]


class AfterDiagnostic(Diagnostic[Results], name="after"):
    """Accuracy and NLL after each change of the weights."""

    title = "After training: rounded, pruned, and with noise on the weights"
    order = 50

    def measure(self, *subjects: Subject) -> Results:
        """On all rows: a loss of accuracy is often that of a few of them."""
        (subject,) = subjects
        return after_training(subject.model, subject.metrics, seed=subject.settings.seed)

    def numbers(self, result: Results) -> dict[str, Number]:
        """Each metric as trained, and after each change."""
        found = {f"{metric}, as trained": Number(value) for metric, value in result[0].before.items()}
        for level in (level for change in result for level in change.levels):
            note = "± standard error over the draws of noise" if level.errors else ""
            for metric, value in level.metrics.items():
                found[f"{metric}, {level.name}"] = Number(value, level.errors.get(metric), note)
        return found

    def answer(self, result: Results) -> str:
        """The first metric after the largest amount of each change."""
        metric, last = next(iter(result[0].before)), [change.levels[-1] for change in result]
        told = ", ".join(f"{level.metrics[metric]:.3g} ({level.name})" for level in last)
        return f"Its {metric} of {result[0].before[metric]:.3g} becomes {told}."

    def reading(self, result: Results) -> str:
        """That of each change."""
        return " ".join(change.reading for change in result)

    def plots(self, results: Mapping[str, Results]) -> list[Plot]:
        """The first metric over the amount of each change."""
        by_change = zip(*results.values(), strict=True)
        return [_plot(dict(zip(results, changes, strict=True))) for changes in by_change]


def _plot(results: Mapping[str, AfterChange]) -> Plot:
    first = next(iter(results.values()))
    metric = next(iter(first.before))
    return Plot(f"after-{first.change}", f"{metric} after {first.change}", lambda ax: plot_after(results, metric, ax))
