"""What a table can and cannot show, in words.

A method counts as better or worse only where the paired t-test says so after Holm's correction for all differences of
the table; everything else is called what it is: within noise, not known, or diverged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from deltasam.lab.compare.statistics import formatting
from deltasam.lab.compare.statistics.formatting import difference_text, listed
from deltasam.lab.compare.statistics.paired import LEVEL, Difference
from deltasam.lab.compare.statistics.ranking import RELIABLE_ROWS
from deltasam.lab.compare.statistics.table import Cell, Row, Table

JUDGED = ("better", "worse", "noise")
BEST_NOT_TESTED = "Which of them is best was not tested."
ONE_SEED = "One seed says nothing about noise, so nothing can be concluded"
MORE_SEEDS = "run at least 3 seeds, better 5."


# One row: every difference with its numbers.


def row_conclusion(row: Row) -> str:
    """What one comparison can and cannot show, in a few plain sentences."""
    if not row.others and any(cell.missing for cell in row.cells):
        return f"Only {row.baseline} has finished runs so far: there is nothing to compare it with yet."
    if not row.others:
        return _only(row.baseline)
    groups: dict[str, list[Cell]] = {}
    for cell in row.others:
        groups.setdefault(cell.judgement, []).append(cell)
    sentences = [_decided_in(row, groups[word], word) for word in ("better", "worse") if word in groups]
    if "noise" in groups:
        sentences += [_within_noise(row, groups["noise"]), _outlook(groups["noise"])]
    if "unknown" in groups:
        sentences.append(_unknown(row, groups["unknown"]))
    sentences += [_diverged_in(row, cell) for cell in row.begun if cell.diverged]
    return " ".join(sentences)


def _only(baseline: str) -> str:
    return f"Only {baseline} was run: there is nothing to compare it with."


def _decided_in(row: Row, cells: Sequence[Cell], word: str) -> str:
    """Differences with intervals, then what they rest on: the fewest seeds and the largest p-value."""
    differences = _differences(cells)
    each = "; ".join(f"{cell.method} {difference_text(cell.difference)}" for cell in cells)
    seeds = min(difference.estimate.count for difference in differences)
    p = formatting.p_value(max(difference.holm or 0.0 for difference in differences))
    sentence = (
        f"{word.capitalize()} than {row.baseline} in {row.metric}: {each} "
        f"(paired difference and its 95 % interval, {seeds} seeds, Holm-corrected {p})."
    )
    return f"{sentence} {BEST_NOT_TESTED}" if word == "better" and len(cells) > 1 else sentence


def _within_noise(row: Row, cells: Sequence[Cell]) -> str:
    differences = _differences(cells)
    counts = [difference.estimate.count for difference in differences]
    seeds = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    everyone = len(cells) == len(row.others) > 1
    verb = "does" if len(cells) == 1 else "do"
    who = "No method differs" if everyone else f"{_methods(cells)} {verb} not differ"
    # An interval without 0 that is still no finding needs an explanation.
    decides = any((difference.p_value or 1) <= LEVEL for difference in differences)
    correction = ", once corrected for comparing several methods" if decides else ""
    return f"{who} from {row.baseline} in {row.metric} by more than noise over {seeds} seeds{correction}."


def _outlook(cells: Sequence[Cell]) -> str:
    """How many seeds the clearest of the undecided differences would take, if it is real."""
    needed = [(d.seeds_needed, cell.method, d) for cell in cells if (d := cell.difference) and d.seeds_needed]
    if not needed:
        return "Differences this small would take very many seeds to tell from none."
    seeds, name, difference = min(needed, key=lambda entry: entry[0])
    mean, _ = formatting.signed_interval(difference.estimate)
    return f"If the {mean} observed for {name} is real, very roughly {seeds} seeds would be needed to show it."


def _unknown(row: Row, cells: Sequence[Cell]) -> str:
    against = f"{_methods(cells)} against {row.baseline}"
    if {difference.estimate.count for difference in _differences(cells)} == {1}:
        return f"{ONE_SEED} about {against}: {MORE_SEEDS}"
    return (
        f"Nothing can be concluded about {against}: too few finished seeds in common, "
        "or exactly the same difference in each. Run more seeds."
    )


def _diverged_in(row: Row, cell: Cell) -> str:
    lost, there = len(cell.diverged), len(cell.seeds)
    runs = f"{cell.method} diverged (no finite {row.metric} or loss) in {lost} of {there} runs"
    if cell.is_baseline:
        return f"{runs}; comparisons with it leave these seeds out."
    return f"{runs}, so the others do not count as evidence." if lost < there else f"{runs}."


def _differences(cells: Iterable[Cell]) -> list[Difference]:
    return [cell.difference for cell in cells if cell.difference]


def _methods(cells: Iterable[Cell]) -> str:
    return listed([cell.method for cell in cells])


# Several rows: where each method differs, then what that rests on.


def conclusion(table: Table) -> str:
    """What a table of tasks can and cannot show, in plain sentences: the answer, then the details."""
    return f"{answer(table)} {details(table)}".strip()


def answer(table: Table) -> str:
    """Which methods differ from the baseline in which rows, and on the average."""
    if len(table.methods) == 1:
        return _only(table.baseline)
    return " ".join([*_on_tasks(table), *_on_average(table)])


def details(table: Table) -> str:
    """What the answer rests on: the tests, how little they can see, and what diverged or is missing."""
    parts = (_tests, _unjudged, _by_rank, _diverged, _incomplete)
    return " ".join(sentence for part in parts for sentence in part(table))


def _on_tasks(table: Table) -> list[str]:
    """Which methods differ from the baseline on which tasks."""
    if not _judged_rows(table):
        return [_nothing_judged(table)]
    found = [sentence for word in ("better", "worse") if (sentence := _decided(table, word))]
    if found:
        return [*found, *([BEST_NOT_TESTED] if len(_rows_by_method(table, "better")) > 1 else [])]
    unjudged = any(cell.verdict == "unknown" for _, cell in table.cells)
    counts = sorted({d.estimate.count for d in _differences(c for _, c in table.cells if c.verdict == "noise")})
    return [
        f"No method {'that can be judged ' if unjudged else ''}differs from {table.baseline} on "
        f"{_any_task(table)} by more than noise over "
        f"{'-'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seeds."
    ]


def _decided(table: Table, word: str) -> str | None:
    total = _count(table, len(table.rows))
    each = [f"{m} on {len(rows)} of {total} ({'; '.join(rows)})" for m, rows in _rows_by_method(table, word).items()]
    return f"{word.capitalize()} than {table.baseline}: {', '.join(each)}." if each else None


def _rows_by_method(table: Table, verdict: str) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for row, cell in table.cells:
        if cell.verdict == verdict:
            rows.setdefault(cell.method, []).append(row.name)
    return rows


def _judged_rows(table: Table) -> list[str]:
    return list(dict.fromkeys(row.name for row, cell in table.cells if cell.verdict in JUDGED))


def _nothing_judged(table: Table) -> str:
    if not any(cell.values for _, cell in table.cells):
        return "No run is finished yet."
    if all(len(cell.planned) < 2 for _, cell in table.cells):
        return f"{ONE_SEED}: {MORE_SEEDS}"
    return (
        f"Nothing can be concluded yet: no method has all its runs and something to judge noise by on any {table.unit}."
    )


def _on_average(table: Table) -> list[str]:
    """Averages that differ from the baseline's, with their intervals."""
    over = f"On the average over {_count(table, len(table.whole_rows))}"
    sentences = []
    for word in ("better", "worse"):
        each = [f"{c.method} {difference_text(c.difference)}" for c in table.columns if c.verdict == word]
        sentences += [f"{over}, {word} than {table.baseline}: {'; '.join(each)}."] if each else []
    if not sentences and any(column.verdict == "noise" for column in table.columns):
        sentences.append(f"{over} no method differs from {table.baseline} by more than noise.")
    return sentences


def _by_rank(table: Table) -> list[str]:
    """Who ranks above or below the baseline over the tasks, if the ranks differ at all."""
    ranking, baseline = table.ranking, table.baseline
    if ranking.p_value is None:
        return []
    rough = ", a rough test with so few" if len(ranking.ranks) <= RELIABLE_ROWS else ""
    test = f"Friedman {formatting.p_value(ranking.p_value)} over {_count(table, len(ranking.ranks))}{rough}"
    if ranking.p_value > LEVEL:
        return [f"The mean ranks do not differ by more than chance ({test})."]
    gaps = {method: ranking.gap(method, baseline) for method in table.methods}
    groups = {word: [m for m, gap in gaps.items() if sign * gap > 0] for word, sign in (("above", 1), ("below", -1))}
    each = [f"{listed(methods)} {word} {baseline}" for word, methods in groups.items() if methods]
    if not each:
        return [f"The mean ranks differ ({test}), but none from {baseline}'s by Nemenyi's critical difference."]
    return [f"By mean rank, beyond Nemenyi's critical difference: {'; '.join(each)} ({test})."]


def _tests(table: Table) -> list[str]:
    """The tests, and how small a difference they could have seen: without it, noise reads like equality."""
    if table.smallest is None:
        return []
    times = f", corrected for all {table.comparisons} comparisons (Holm)" if table.comparisons > 1 else ""
    if table.smallest > max(_range(row.metric) for row in table.rows):
        seen = "no difference could have been told from noise"
    else:
        smallest = formatting.format_number(table.smallest, 2)
        seen = f"a difference had to exceed about {smallest} to be told from noise"
    return [f"Tested by paired t-tests{times}: on one {table.unit} {seen}."]


def _range(metric: str) -> float:
    """How far apart two values of a metric can be; infinite where that is not known."""
    if metric in ("accuracy", "f1") or metric.startswith("rouge"):
        return 1.0
    return 2.0 if metric in ("matthews", "pearson", "spearman") else math.inf


def _unjudged(table: Table) -> list[str]:
    """Cells beside judged ones that have nothing to judge noise by: else they would pass for within noise."""
    if not _judged_rows(table):
        return []
    each = [f"{method} on {'; '.join(rows)}" for method, rows in _rows_by_method(table, "unknown").items()]
    why = "one seed in common, or exactly the same difference with each"
    return [f"Not judged ({why}): {', '.join(each)}."] if each else []


def _diverged(table: Table) -> list[str]:
    each = [
        f"{cell.method} on {row.name} ({len(cell.diverged)} of {len(cell.seeds)} runs)"
        for row, cell in table.cells
        if cell.diverged
    ]
    return [f"Diverged: {', '.join(each)}; such a method is never called better and ranks last."] if each else []


def _incomplete(table: Table) -> list[str]:
    """What is missing, and what is not said because of it."""
    sentences = []
    if table.running:
        sentences.append(
            f"Not finished: {table.missing_runs} of {table.planned_runs} runs are missing, so nothing is tested "
            f"over all {table.unit}s yet, nor where runs are missing."
        )
    absent = _rows_by_method(table, "absent")
    if absent:
        each = [f"{method} on {_count(table, len(rows))}" for method, rows in absent.items()]
        left_out = f"; ranks and averages leave these {table.unit}s out" if table.columns else ""
        sentences.append(f"Not part of the table: {', '.join(each)}{left_out}.")
    return sentences


def _any_task(table: Table) -> str:
    """Where nothing was found: nothing is said of rows that are not judged."""
    judged = _judged_rows(table)
    if len(judged) == 1:
        return judged[0]
    so_far = "" if len(judged) == len(table.rows) else " that are judged"
    return f"any of the {len(judged)} {table.unit}s{so_far}"


def _count(table: Table, rows: int) -> str:
    return f"1 {table.unit}" if rows == 1 else f"{rows} {table.unit}s"
