"""Write the tables of ``benchmarks/results`` into the documentation, each between its two marks.

``python benchmarks/tables.py`` after a new file was put there; a test holds the pages to the files.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import radius_of_m
from cost import LOOP, PEER, ratio
from deltasam.diagnostics import at_radius
from deltasam.diagnostics.floor import FLOOR
from deltasam.lab.compare.statistics.compare import compare
from deltasam.lab.compare.statistics.conclusion import conclusion
from deltasam.lab.compare.text_tables import markdown_table
from deltasam.lab.folders.record import read_record
from deltasam.spec import full_spec, short_spec
from norms import OPACUS, PLAIN
from overhead import COMPILED, WRITTEN
from weights import EXAMPLES, RHOS, SHIPPED, table_rows
from wrong_labels import against_rivals, cell_command, cell_result, in_a_line
from wrong_labels import table_rows as wrong_labels_rows

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "benchmarks/results", ROOT / "docs"
MARKS = re.compile(r"(<!-- table (?P<name>[\w-]+) -->\n).*?(<!-- end of table -->\n)", re.DOTALL)
WRONG_LABELS = RESULTS / "noise-small.jsonl"
RHO = 0.02  # the radius of `deltasam fidelity`, unless another is given
MODELS = {"minilm": "MiniLM-L6 (6 layers, width 384)", "wide": "4 layers of BERT-base's width"}


def record_table(name: str) -> str:
    """What the file of a table shows: the conclusion, the numbers, and the hyper-parameters that were chosen."""
    record = read_record(RESULTS / f"{name}.jsonl")
    found = compare(record.rows)
    rows = {row.name: ", ".join(f"`{short_spec(spec)}`" for spec in row.labels) for row in record.rows}
    together = {specs: [row for row, found in rows.items() if found == specs] for specs in rows.values()}
    chosen = "\n".join(f"- {'; '.join(names)}: {specs}" for specs, names in together.items())
    return f"{conclusion(found)}\n\n{markdown_table(found)}\nRun with\n\n{chosen}\n"


def choose() -> str:
    """Every method's time, and how close it comes to one perturbation per example at the same radius."""
    (seconds,) = costs()["seconds"].values()
    closeness = {entry["method"].partition(":")[0]: entry for entry in reversed(fidelities())}
    closeness |= {name: entry for entry in fidelities() if (name := short_spec(entry["method"])) in seconds}
    rows = []
    for name in (name for name in seconds if name != PEER):
        entry = closeness.get(name) if name != "erm" else None
        figures = ("", "") if entry is None else ("–", "–")
        if entry and _at_the_radius(entry):
            figures = (_closeness(entry, "error"), _closeness(entry, "cosine"))
        card = f"[`{name}`](methods/{name.partition(':')[0]}.md)"
        rows.append((name, card, f"{ratio(seconds, name, 'erm'):.2f}", *figures))
    rows.sort(key=lambda row: (row[3] == "" and row[0] != "erm", float(row[2])))
    return _table(("method", "time", "error", "cosine"), [row[1:] for row in rows])


def cost() -> str:
    """Every method's time beside plain training and another library's SAM."""
    record = costs()
    (shape,) = record["seconds"]
    seconds = record["seconds"][shape]
    rows = [
        (
            f"`{name}`",
            f"{1000 * statistics.median(times):.0f}",
            *(f"{ratio(seconds, name, b):.2f}" for b in ("erm", PEER)),
        )
        for name, times in seconds.items()
    ]
    return f"{_batch(record)}\n\n{_table(('method', 'ms per step', 'over `erm`', f'over `{PEER}`'), rows)}"


def only() -> str:
    """What a step of SAM costs where only some parameters move."""
    record = costs()
    (seconds,) = record["seconds"].values()
    named = [name for name in seconds if name == "sam" or name.startswith("sam:only=")]
    rows = [(f"`{name}`", f"{ratio(seconds, name, 'erm'):.2f}") for name in named]
    return f"{_batch(record)}\n\n{_table(('method', 'over `erm`'), rows)}"


def overhead() -> str:
    """What a step costs beside its arithmetic: a row for each method, for each model its ratios."""
    record = costs("overhead")
    head = ["method"]
    for model in record["seconds"]:
        head += [f"{model}: over `erm`", f"over `{PEER}`", "operations over `erm`", "waits", "checked step"]
    rows = []
    for name in next(iter(record["counts"].values())):
        row = [f"`{name}`"]
        for model, seconds in record["seconds"].items():
            counts = record["counts"][model][name]
            row += [f"{ratio(seconds, name, 'erm'):.2f}", f"{ratio(seconds, name, PEER):.2f}"]
            row += [f"{counts['operations x erm']:.1f}", f"{counts['waits']:.0f}", f"{counts['first / later']:.1f}"]
        rows.append(tuple(row))
    return f"{_conditions(record)}\n\n{_table(tuple(head), rows)}"


def compiled() -> str:
    """What ``torch.compile`` leaves of the time of a step that is launched more than computed."""
    record = costs("compiled")
    specs = next(iter(record["compiled"].values()))
    rows = [
        (f"`{spec}`", *(f"{ratio(found[spec], COMPILED, WRITTEN):.2f}" for found in record["compiled"].values()))
        for spec in specs
    ]
    return f"{_conditions(record)}\n\n{_table(('method', *record['compiled']), rows)}"


def norms() -> str:
    """Gradient norms of single examples, over a forward and backward, and over another library's."""
    record = costs("norms")
    rows = [
        (f"{shape.replace('x', ' x ')}", name, f"{1000 * statistics.median(times):.0f}", *ratios)
        for shape, seconds in record["seconds"].items()
        for name, times in seconds.items()
        for ratios in [(f"{ratio(seconds, name, PLAIN):.2f}", f"{ratio(seconds, name, OPACUS):.2f}")]
    ]
    head = ("examples x tokens", "norms by", "ms", f"over a {PLAIN}", f"over {OPACUS}")
    return f"MiniLM-L6 without dropout, {_conditions(record)}\n\n{_table(head, rows)}"


def shapes() -> str:
    """Exact per-instance SAM beside the others and a loop over the examples, for models and shapes."""
    records = {name: costs(f"cost-{name}") for name in MODELS}
    seconds = {(name, shape): found for name in MODELS for shape, found in records[name]["seconds"].items()}
    columns = [name for name in next(iter(seconds.values())) if name not in ("erm", PEER)]
    rows = [
        (MODELS[model], shape.replace("x", " x "), *(f"{ratio(found, name, PEER):.2f}" for name in columns))
        for (model, shape), found in seconds.items()
    ]
    head = ("model", "examples x tokens", *(f"`{name}`" if name != LOOP else LOOP for name in columns))
    return f"Float32, {_conditions(next(iter(records.values())))}\n\n{_table(head, rows)}"


def _batch(record: Any) -> str:
    """The batch of a record of one shape, and how the record was made."""
    (shape,) = record["seconds"]
    examples, tokens = shape.split("x")
    return f"MiniLM-L6, {examples} examples of {tokens} tokens, {_conditions(record)}"


def _conditions(record: Any) -> str:
    """How a record of times was made."""
    rounds = {len(times) for found in record["seconds"].values() for times in found.values()}
    machine = record["machine"]
    return (
        f"medians of {', '.join(map(str, rounds))} rounds; {machine['processor']}, threads: {machine['threads']}, "
        f"torch {record['torch']}; {record['clock']} time."
    )


def estimates() -> str:
    """How close delta-SAM's weights bring it, beside SAM and the exact method."""
    wanted = [e for e in fidelities() if e["method"].startswith(("sam", "delta_sam", "per_instance_sam", FLOOR))]
    return f"```bash\n{command()}\n```\n\n{_fidelity_rows(wanted)}"


def fidelity() -> str:
    """The whole measurement."""
    return f"```bash\n{command()}\n```\n\n{_fidelity_rows(fidelities())}"


def costs(name: str = "cost") -> Any:
    """What ``benchmarks/cost.py --record`` wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def fidelities() -> list[Any]:
    """What ``deltasam fidelity --output`` wrote, an entry for each method."""
    return json.loads((RESULTS / "fidelity-demo/fidelity.json").read_text(encoding="utf-8"))


def command() -> str:
    """The command that measured it."""
    methods = [entry["method"] for entry in fidelities() if not entry["method"].startswith(FLOOR)]
    found = [(method, short_spec(method)) for method in methods]
    specs = ",".join(short if full_spec(at_radius(short, RHO)) == full else full for full, short in found)
    batches = len(fidelities()[0]["batches"])
    return f"deltasam fidelity demo --batches {batches} --methods {specs}"


def _fidelity_rows(entries: list[Any]) -> str:
    rows = [
        (f"`{_name_of(e)}`", *(_closeness(e, n) for n in ("error", "cosine", "loss_share", "distance")))
        for e in entries
    ]
    return _table(("method", "error", "cosine", "loss share", "distance / rho"), rows)


def _name_of(entry: Any) -> str:
    return FLOOR if entry["method"].startswith(FLOOR) else short_spec(entry["method"])


def _at_the_radius(entry: Any) -> bool:
    """Whether the weights went as far as the exact perturbations; a method that moves none goes as far as they do."""
    distance = entry["mean"]["distance"]
    return distance is None or abs(distance - 1) < 0.1


def _closeness(entry: Any, number: str) -> str:
    mean, spread = entry["mean"][number], entry["spread"][number]
    if mean is None:
        return "–"
    return f"{mean:.3f} ± {spread:.3f}" if round(mean, 3) or round(spread, 3) else "0"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows]) + "\n"


def study() -> str:
    """How much nearer than SAM each kind of weights comes, at every state of training."""
    return _study([*SHIPPED, "own^2/norm", "own/norm", "gauss-newton", FLOOR])


def every_study() -> str:
    """The same for all that was tried."""
    return _study(None)


def _study(kinds: list[str] | None) -> str:
    record = costs("weights")
    head, *others = table_rows(record)
    batches = sum(len(cell["batches"]) for cell in record["cells"])
    radii = ", ".join(map(str, RHOS))
    how = f"torch {record['torch']}; measured in {record['minutes']:.0f} minutes"
    about = f"{batches} batches of {EXAMPLES}, rho {radii}, {how}."
    chosen = [(_kind(row[0]), *row[1:]) for row in others if kinds is None or row[0] in kinds]
    return f"{about}\n\n{_table(head, chosen)}"


def radius_of_m_slopes() -> str:
    """How the best radius depends on m."""
    return _of_m(radius_of_m.radius_rows, "choosing")


def radius_of_m_differences() -> str:
    """Whether m = 1 is better than the whole batch, each at its best radius."""
    return _of_m(radius_of_m.difference_rows, "judging")


def radius_of_m_accuracies() -> str:
    """The best radius of every m, and the test there."""
    return _of_m(radius_of_m.accuracy_rows, "choosing", "judging")


def _of_m(rows_of: Callable[[Any], list[tuple[str, ...]]], *parts: str) -> str:
    record = costs("radius_of_m")
    head, *others = rows_of(record)
    seeds = (
        f"{name}: {', '.join(f'{len(found[part])} {part}' for part in parts)}"
        for name, found in record["settings"].items()
    )
    return f"Seeds: {'; '.join(seeds)}. 95 % intervals; torch {record['torch']}.\n\n{_table(head, others)}"


def _kind(kind: str) -> str:
    return f"{kind} (`{SHIPPED[kind]}`)" if kind in SHIPPED else kind


def wrong_labels() -> str:
    """Every method and rival where labels are wrong."""
    head, *others = wrong_labels_rows(WRONG_LABELS)
    return _table(head, [(*row[:1], f"`{row[1]}`" if "(" not in row[1] else row[1], *row[2:]) for row in others])


def wrong_labels_rivals() -> str:
    """Each method against the best rival."""
    return "".join(f"- {sentence}\n" for sentence in against_rivals(WRONG_LABELS))


def wrong_labels_line() -> str:
    """The result in a line."""
    return f"{in_a_line(WRONG_LABELS)}\n"


def wrong_labels_cell() -> str:
    """How to do one run again, and what comes out."""
    return f"```bash\n{cell_command(WRONG_LABELS)}\n```\n\nends in {cell_result(WRONG_LABELS)}.\n"


_MADE = (
    *(choose, compiled, cost, estimates, every_study, fidelity, norms, only, overhead, shapes, study),
    *(radius_of_m_accuracies, radius_of_m_differences, radius_of_m_slopes),
    *(wrong_labels, wrong_labels_cell, wrong_labels_line, wrong_labels_rivals),
)
TABLES: dict[str, Callable[[], str]] = {f.__name__: f for f in _MADE}


def table(name: str) -> str:
    """The text between the marks of this name."""
    return TABLES[name]() if name in TABLES else record_table(name)


def pages() -> dict[Path, str]:
    """Every page that has tables, as it should be."""
    texts = {path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]}
    return {
        path: MARKS.sub(lambda found: f"{found[1]}{table(found['name'])}{found[3]}", text)
        for path, text in texts.items()
        if MARKS.search(text)
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
