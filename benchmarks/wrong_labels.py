"""What ``deltasam reproduce noise`` found, as a table and a picture: does it help where labels are wrong?

    python benchmarks/wrong_labels.py benchmarks/results/noise-small.jsonl --plot docs/assets/wrong_labels.svg

Methods and rivals are paired with plain training by seed. Given are the mean accuracy on rows with right labels, at the
epoch that rows with wrong labels chose and at the last, the mean difference from plain training at the chosen epoch
with its 95 % interval, and its p-value, corrected by Holm for all differences of all rows.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deltasam import Method
from deltasam.lab.compare.statistics.paired import Difference, holm, paired_difference
from deltasam.lab.compare.statistics.run_group import RunGroup
from deltasam.lab.folders.record import read_record
from deltasam.lab.train.results import RunResult
from deltasam.lab.train.variant import short_spec

CHOSEN, LAST, NOISY = "accuracy_selected", "accuracy", "accuracy_selection_selected"
BASELINE = "erm"
METHODS = ("sam", "asam", "delta_sam", "per_instance_sam")
"""The labels of methods that perturb weights; all others, but plain training, are rivals."""

WAYS = {CHOSEN: "at the chosen epoch", LAST: "at the last epoch"}
INK, NIGHT = "#24292f", "#e6edf3"


@dataclass(frozen=True)
class Line:
    """A method in a row of the study.

    Attributes:
        label: Of its column.
        spec: What was chosen for it.
        runs: By seed.
        others: The baseline's runs, by seed.
    """

    label: str
    spec: str
    runs: dict[int, RunResult]
    others: dict[int, RunResult]

    def mean(self, metric: str) -> float:
        """Of a metric over the seeds."""
        return statistics.fmean(run.metrics[metric] for run in self.runs.values())

    def difference(self, metric: str = CHOSEN) -> Difference:
        """From plain training."""
        return difference(self.runs, self.others, metric)

    @property
    def cost(self) -> float:
        """Seconds per step over the baseline's, the median over the seeds."""
        return statistics.median(r.seconds_per_step / self.others[s].seconds_per_step for s, r in self.runs.items())


def difference(ours: dict[int, RunResult], theirs: dict[int, RunResult], metric: str) -> Difference:
    """Of the same seeds, in points."""
    found = paired_difference(*({s: 100 * run.metrics[metric] for s, run in runs.items()} for runs in (ours, theirs)))
    assert found is not None
    return found


def describe(found: Difference) -> str:
    """The mean and its interval."""
    e = found.estimate
    return f"{e.mean:+.1f} [{e.low:.1f}, {e.high:.1f}]"


def lines_of(row: RunGroup) -> list[Line]:
    """All methods of a row, in its order."""
    runs: dict[str, dict[int, RunResult]] = {spec: {} for spec in row.labels}
    for run in row.results:
        runs[run.method][run.seed] = run
    baseline = next(spec for spec, label in row.labels.items() if label == BASELINE)
    return [Line(label, spec, runs[spec], runs[baseline]) for spec, label in row.labels.items()]


def best_rival(lines: Sequence[Line]) -> Line:
    """The rival with the best accuracy on the rows with wrong labels that choose the epoch: nobody sees others."""
    rivals = [line for line in lines if line.label not in (*METHODS, BASELINE)]
    return max(rivals, key=lambda line: line.mean(NOISY))


def table_rows(path: Path) -> Iterator[tuple[str, ...]]:
    """The head of the table, and a line for each method of each row."""
    rows = read_record(path).rows
    yield ("row", "method", "chosen epoch", "last epoch", "NLL, last", "difference", "p", "cost")
    lines = [(row.name, line) for row in rows for line in lines_of(row)]
    compared = [line.difference().p_value for _, line in lines if line.label != BASELINE]
    corrected = iter(holm(compared))
    for name, line in lines:
        judged = ("", "")
        if line.label != BASELINE:
            p = next(corrected)
            judged = (describe(line.difference()), "< 0.001" if p < 0.001 else f"{p:.3f}")
        yield (
            name,
            line.label if line.label in Method.registry else f"{line.label} (rival)",
            f"{100 * line.mean(CHOSEN):.1f}",
            f"{100 * line.mean(LAST):.1f}",
            f"{line.mean('loss'):.2f}",
            *judged,
            f"{line.cost:.2f}",
        )


def against_rivals(path: Path) -> list[str]:
    """For each row a sentence: each method that perturbs weights, against the best rival."""
    found = []
    for row in read_record(path).rows:
        lines = lines_of(row)
        rival = best_rival(lines)
        each = [f"`{x.label}` {describe(difference(x.runs, rival.runs, CHOSEN))}" for x in lines if x.label in METHODS]
        found.append(f"{row.name}, minus {rival.label} (`{short_spec(rival.spec)}`): {'; '.join(each)}.")
    return found


def in_a_line(path: Path) -> str:
    """The first row: what the method that is best by the noisy rows gains over plain training, and the best rival."""
    row = read_record(path).rows[0]
    lines = lines_of(row)
    best = max((line for line in lines if line.label in METHODS), key=lambda line: line.mean(NOISY))
    rival, gain, last = best_rival(lines), best.difference(), best.difference(LAST)
    over = difference(best.runs, rival.runs, CHOSEN)
    words = ("gains", "loses", "differs by no more than noise:"), ("more", "less", "no more than noise")
    word, beside = (
        more if d.estimate.low > 0 else less if d.estimate.high < 0 else noise
        for d, (more, less, noise) in zip((gain, over), words, strict=True)
    )
    return (
        f"**{row.name}:** `{short_spec(best.spec)}` {word} {describe(gain)} points of accuracy over plain training at "
        f"the epoch that noisy rows choose, {describe(last)} at the last epoch ({len(best.runs)} paired seeds, 95 % "
        f"intervals). Over the best rival, {rival.label}: {describe(over)}, {beside}."
    )


def cell_command(path: Path) -> str:
    """A command that does one run of the first row again, beside plain training, with the same numbers.

    The rows that judge are split off the training file as the study does it, so a file of one's own is enough.
    """
    record = read_record(path)
    row = record.rows[0]
    facts, best = record.facts[row.name], next(line for line in lines_of(row) if line.label == "sam")
    run, training, options = facts["row"], facts["training"], facts["row"]["options"]
    names = ("train_layers", "max_length", "epochs", "batch_size", "learning_rate")
    given = " ".join(f"--{name.replace('_', '-')} {training[name]}" for name in names)
    return (
        f"OMP_NUM_THREADS=1 deltasam compare data/glue/{run['data']}/train.jsonl.gz --text sentence \\\n"
        f"  --eval-size {options['evaluation']} --train-size {run['train_size']} --label-noise {run['label_noise']} "
        f"--noisy-selection \\\n  {given} \\\n"
        f"  --methods erm,{short_spec(best.spec)} --seeds {min(best.runs)} --output runs/one"
    )


def cell_result(path: Path) -> str:
    """What that command ends in."""
    lines = {line.label: line for line in lines_of(read_record(path).rows[0])}
    seed = min(lines["sam"].runs)
    each = (f"`{label}` {lines[label].runs[seed].metrics[CHOSEN]:.4f}" for label in (BASELINE, "sam"))
    return f"accuracy_selected: {', '.join(each)}"


def draw(path: Path, file: Path) -> None:
    """Differences from plain training, a panel for each row, readable on light and on dark pages."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    rows = read_record(path).rows
    style = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    with matplotlib.rc_context({**style, "svg.hashsalt": "deltasam", "font.size": 9}):
        figure = Figure(
            figsize=(3.2 + 3.2 * len(rows), 0.9 + 0.36 * (len(lines_of(rows[0])) - 1)), layout="constrained"
        )
        panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
        for axes, row in zip(panels, rows, strict=True):
            lines = [line for line in lines_of(row) if line.label != BASELINE]
            for shift, (metric, name) in zip((-0.13, 0.13), WAYS.items(), strict=True):
                found = [line.difference(metric).estimate for line in lines]
                axes.errorbar(
                    [d.mean for d in found],
                    [number + shift for number in range(len(lines))],
                    xerr=[d.margin for d in found],
                    fmt="o",
                    ms=4.5,
                    capsize=2.5,
                    color={CHOSEN: "#1f77b4", LAST: "#e07b39"}[metric],
                    label=name,
                )
            axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
            axes.set_yticks(range(len(lines)), [line.label for line in lines])
            axes.set_title(row.name, fontsize=10)
            axes.set_xlabel("points of accuracy over plain training")
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].invert_yaxis()
        panels[0].legend(frameon=False, fontsize=8, loc="best")
        figure.savefig(file, transparent=True, metadata={"Date": None})
    theme = f"<style>svg{{color:{INK}}}@media(prefers-color-scheme:dark){{svg{{color:{NIGHT}}}}}</style>"
    text = file.read_text(encoding="utf-8").replace(INK, "currentColor")
    file.write_text(text.replace("<defs>", f"{theme}\n <defs>", 1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="what deltasam reproduce noise wrote: runs.jsonl")
    parser.add_argument("--plot", type=Path, help="SVG file for the picture")
    options = parser.parse_args()
    head, *others = table_rows(options.record)
    shown = Table(title="Points of accuracy; difference from erm at the chosen epoch with 95 % interval")
    for number, name in enumerate(head):
        shown.add_column(name, justify="right" if number > 1 else "left")
    for row in others:
        shown.add_row(*row)
    Console().print(shown)
    for sentence in against_rivals(options.record):
        print(sentence)
    if options.plot:
        draw(options.record, options.plot)


if __name__ == "__main__":
    main()
