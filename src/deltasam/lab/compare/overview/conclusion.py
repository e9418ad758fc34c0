"""What a table of experiments can and cannot show, in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from deltasam.lab.compare.overview.overview import Cell, Column, Overview
from deltasam.lab.compare.overview.ranking import RELIABLE_ROWS
from deltasam.lab.compare.statistics import formatting as rounding
from deltasam.lab.compare.statistics.paired import LEVEL

JUDGED = ("better", "worse", "noise")


def conclusion(overview: Overview) -> str:
    """What the table can and cannot show, in plain sentences: the answer, then the details."""
    return f"{answer(overview)} {details(overview)}".strip()


def answer(overview: Overview) -> str:
    """Which methods differ from the baseline on which tasks, and on the average.

    A method counts as better or worse only where the paired t-test says so after Holm's correction for all
    comparisons of the table.
    """
    if len(overview.methods) == 1:
        return f"Only {overview.baseline} was run: there is nothing to compare it with."
    return " ".join([*_on_tasks(overview), *_on_average(overview)])


def details(overview: Overview) -> str:
    """What the answer rests on: the tests, how little they can see, and what diverged or is missing."""
    parts = (_tests, _unjudged, _by_rank, _diverged, _incomplete)
    return " ".join(sentence for part in parts for sentence in part(overview))


def _on_tasks(overview: Overview) -> list[str]:
    """Which methods differ from the baseline on which tasks."""
    if not any(cell.verdict in JUDGED for _, cell in overview.cells):
        return [_nothing_judged(overview)]
    found = [sentence for word in ("better", "worse") if (sentence := _decided(overview, word))]
    if found:
        several = len(_tasks_by_method(overview, "better")) > 1
        best = ["Which of them is best was not tested."] if several else []
        return [*found, *best]
    unjudged = any(cell.verdict == "unknown" for _, cell in overview.cells)
    return [
        f"No method {'that can be judged ' if unjudged else ''}differs from {overview.baseline} on "
        f"{_any_task(overview)} by more than noise "
        f"over {_seeds(c for _, c in overview.cells if c.verdict == 'noise')}."
    ]


def _decided(overview: Overview, word: str) -> str | None:
    tasks = _tasks_by_method(overview, word)
    total = len(overview.rows)
    each = [
        f"{method} on {len(names)} of {_tasks(overview, total)} ({'; '.join(names)})" for method, names in tasks.items()
    ]
    return f"{word.capitalize()} than {overview.baseline}: {', '.join(each)}." if each else None


def _tasks_by_method(overview: Overview, verdict: str) -> dict[str, list[str]]:
    tasks: dict[str, list[str]] = {}
    for row, cell in overview.cells:
        if cell.verdict == verdict:
            tasks.setdefault(cell.method, []).append(row.name)
    return tasks


def _nothing_judged(overview: Overview) -> str:
    if not any(cell.summary for _, cell in overview.cells):
        return "No run is finished yet."
    if all(len(cell.planned) < 2 for _, cell in overview.cells):
        return "One seed says nothing about noise, so nothing can be concluded: run at least 3 seeds, better 5."
    return (
        "Nothing can be concluded yet: no method has all its runs and something to judge noise by on any "
        f"{overview.unit}."
    )


def _on_average(overview: Overview) -> list[str]:
    """Averages that differ from the baseline's, with their intervals."""
    over = f"On the average over {_tasks(overview, len(overview.whole_rows))}"
    sentences = []
    for word in ("better", "worse"):
        each = [_with_interval(c) for c in overview.columns if c.verdict == word]
        sentences += [f"{over}, {word} than {overview.baseline}: {'; '.join(each)}."] if each else []
    if not sentences and any(c.verdict == "noise" for c in overview.columns):
        sentences.append(f"{over} no method differs from {overview.baseline} by more than noise.")
    return sentences


def _with_interval(column: Column) -> str:
    parts = rounding.signed_interval(column.difference.estimate) if column.difference else ()
    return " ".join([column.method, *filter(None, parts)])


def _by_rank(overview: Overview) -> list[str]:
    """Who ranks above or below the baseline over the tasks, if the ranks differ at all."""
    ranking, baseline = overview.ranking, overview.baseline
    if ranking.p_value is None:
        return []
    test = f"Friedman {rounding.p_value(ranking.p_value)} over {_tasks(overview, len(ranking.ranks))}{_rough(overview)}"
    if ranking.p_value > LEVEL:
        return [f"The mean ranks do not differ by more than chance ({test})."]
    gaps = {method: ranking.gap(method, baseline) for method in overview.methods}
    groups = {word: [m for m, gap in gaps.items() if sign * gap > 0] for word, sign in (("above", 1), ("below", -1))}
    each = [f"{_names(methods)} {word} {baseline}" for word, methods in groups.items() if methods]
    if not each:
        return [f"The mean ranks differ ({test}), but none from {baseline}'s by Nemenyi's critical difference."]
    return [f"By mean rank, beyond Nemenyi's critical difference: {'; '.join(each)} ({test})."]


def _rough(overview: Overview) -> str:
    return ", a rough test with so few" if len(overview.ranking.ranks) <= RELIABLE_ROWS else ""


def _tests(overview: Overview) -> list[str]:
    """The tests, and how small a difference they could have seen: without it, noise reads like equality."""
    if overview.smallest is None:
        return []
    times = f", corrected for all {overview.comparisons} comparisons (Holm)" if overview.comparisons > 1 else ""
    if overview.smallest > max(_range(row.metrics[0]) for row in overview.rows):
        seen = "no difference could have been told from noise"
    else:
        seen = f"a difference had to exceed about {rounding.plain(overview.smallest, 2)} to be told from noise"
    return [f"Tested by paired t-tests{times}: on one {overview.unit} {seen}."]


def _range(metric: str) -> float:
    """How far apart two values of a metric can be; infinite where that is not known."""
    if metric in ("accuracy", "f1") or metric.startswith("rouge"):
        return 1.0
    return 2.0 if metric in ("matthews", "pearson", "spearman") else math.inf


def _unjudged(overview: Overview) -> list[str]:
    """Cells beside judged ones that have nothing to judge noise by: else they would pass for within noise."""
    if not any(cell.verdict in JUDGED for _, cell in overview.cells):
        return []
    each = [f"{method} on {'; '.join(names)}" for method, names in _tasks_by_method(overview, "unknown").items()]
    why = "one seed in common, or exactly the same difference with each"
    return [f"Not judged ({why}): {', '.join(each)}."] if each else []


def _diverged(overview: Overview) -> list[str]:
    found = [
        f"{cell.method} on {row.name} ({len(cell.summary.diverged)} of {len(cell.summary.seeds)} runs)"
        for row, cell in overview.cells
        if cell.summary and cell.summary.diverged
    ]
    return [f"Diverged: {', '.join(found)}; such a method is never called better and ranks last."] if found else []


def _incomplete(overview: Overview) -> list[str]:
    """What is missing, and what is not said because of it."""
    sentences = []
    if overview.running:
        sentences.append(
            f"Not finished: {overview.missing_runs} of {overview.planned_runs} runs are missing, so nothing is tested "
            f"over all {overview.unit}s yet, nor where runs are missing."
        )
    absent = _tasks_by_method(overview, "absent")
    if absent:
        each = [f"{method} on {_tasks(overview, len(names))}" for method, names in absent.items()]
        left_out = f"; ranks and averages leave these {overview.unit}s out" if overview.columns else ""
        sentences.append(f"Not part of the table: {', '.join(each)}{left_out}.")
    return sentences


def _any_task(overview: Overview) -> str:
    """Where nothing was found: nothing is said of rows that are not judged."""
    judged = list(dict.fromkeys(row.name for row, cell in overview.cells if cell.verdict in JUDGED))
    if len(judged) == 1:
        return judged[0]
    so_far = "" if len(judged) == len(overview.rows) else " that are judged"
    return f"any of the {len(judged)} {overview.unit}s{so_far}"


def _tasks(overview: Overview, count: int) -> str:
    return f"1 {overview.unit}" if count == 1 else f"{count} {overview.unit}s"


def _seeds(cells: Iterable[Cell]) -> str:
    counts = sorted({c.summary.difference.estimate.count for c in cells if c.summary and c.summary.difference})
    return f"{'-'.join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))} seeds"


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
