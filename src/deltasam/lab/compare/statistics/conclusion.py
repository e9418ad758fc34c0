"""What a comparison can and cannot show, in words."""

from __future__ import annotations

from deltasam.lab.compare.statistics import formatting as rounding
from deltasam.lab.compare.statistics.comparison import Comparison, MethodSummary
from deltasam.lab.compare.statistics.paired import LEVEL, Difference


def conclusion(comparison: Comparison, *, unfinished: bool = False) -> str:
    """What the comparison can and cannot show, in a few plain sentences.

    A method counts as better or worse only where the paired t-test after Holm's correction says so;
    everything else is called what it is: within noise, not known, or diverged.

    Args:
        comparison: Of the finished runs.
        unfinished: Whether there are runs to come.
    """
    if not comparison.others and unfinished:
        return f"Only {comparison.baseline} has finished runs so far: there is nothing to compare it with yet."
    if not comparison.others:
        return f"Only {comparison.baseline} was run: there is nothing to compare it with."
    groups: dict[str, list[MethodSummary]] = {}
    for m in comparison.others:
        groups.setdefault(m.verdict, []).append(m)
    sentences = [_decided(comparison, groups[word], word) for word in ("better", "worse") if word in groups]
    if "noise" in groups:
        sentences += [_within_noise(comparison, groups["noise"]), _outlook(groups["noise"])]
    if "unknown" in groups:
        sentences.append(_unknown(comparison, groups["unknown"]))
    sentences += [_diverged(comparison, m) for m in comparison.methods if m.diverged]
    return " ".join(sentences)


def _decided(comparison: Comparison, methods: list[MethodSummary], word: str) -> str:
    """Differences with intervals, then what they rest on: the fewest seeds and the largest p-value."""
    differences = _differences(methods)
    each = "; ".join(f"{name} {' '.join(rounding.signed_interval(d.estimate))}" for name, d in differences)
    seeds = min(difference.estimate.count for _, difference in differences)
    p = rounding.p_value(max(difference.holm or 0.0 for _, difference in differences))
    sentence = (
        f"{word.capitalize()} than {comparison.baseline} in {comparison.metric}: {each} "
        f"(paired difference and its 95 % interval, {seeds} seeds, Holm-corrected {p})."
    )
    if word == "better" and len(methods) > 1:
        sentence += " Which of them is best was not tested."
    return sentence


def _within_noise(comparison: Comparison, methods: list[MethodSummary]) -> str:
    counts = [difference.estimate.count for _, difference in _differences(methods)]
    seeds = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    everyone = len(methods) == len(comparison.others) > 1
    verb = "does" if len(methods) == 1 else "do"
    who = "No method differs" if everyone else f"{_names(methods)} {verb} not differ"
    what = f"from {comparison.baseline} in {comparison.metric} by more than noise"
    return f"{who} {what} over {seeds} seeds{_correction(methods)}."


def _correction(methods: list[MethodSummary]) -> str:
    """Named where it decides: an interval without 0 that is still no finding needs an explanation."""
    decides = any((difference.p_value or 1) <= LEVEL for _, difference in _differences(methods))
    return ", once corrected for comparing several methods" if decides else ""


def _outlook(methods: list[MethodSummary]) -> str:
    """How many seeds the clearest of the undecided differences would take, if it is real."""
    needed = [(d.seeds_needed, name, d) for name, d in _differences(methods) if d.seeds_needed]
    if not needed:
        return "Differences this small would take very many seeds to tell from none."
    seeds, name, difference = min(needed, key=lambda entry: entry[0])
    mean, _ = rounding.signed_interval(difference.estimate)
    return f"If the {mean} observed for {name} is real, very roughly {seeds} seeds would be needed to show it."


def _unknown(comparison: Comparison, methods: list[MethodSummary]) -> str:
    against = f"{_names(methods)} against {comparison.baseline}"
    counts = {difference.estimate.count for _, difference in _differences(methods)}
    if counts == {1}:
        return (
            "One seed says nothing about noise, so nothing can be concluded about "
            f"{against}: run at least 3 seeds, better 5."
        )
    return (
        f"Nothing can be concluded about {against}: too few finished seeds in common, "
        "or exactly the same difference in each. Run more seeds."
    )


def _diverged(comparison: Comparison, m: MethodSummary) -> str:
    runs = f"{m.method} diverged (no finite {comparison.metric} or loss) in {len(m.diverged)} of {len(m.seeds)} runs"
    if m.method == comparison.baseline:
        return f"{runs}; comparisons with it leave these seeds out."
    return f"{runs}, so the others do not count as evidence." if len(m.diverged) < len(m.seeds) else f"{runs}."


def _differences(methods: list[MethodSummary]) -> list[tuple[str, Difference]]:
    return [(m.method, m.difference) for m in methods if m.difference]


def _names(methods: list[MethodSummary]) -> str:
    names = [m.method for m in methods]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
