"""Random programs against the oracle.

    python benchmarks/adversary/programs.py --seeds 0:1000 --jobs 2     # a table, and what fails
    python benchmarks/adversary/programs.py --seed 123 --show           # the source of one, as text to read and paste
    python benchmarks/adversary/programs.py --seed 123 --shrink         # the smallest part of it that fails like it
    python benchmarks/adversary/programs.py --file broken.py            # judge a program that was changed by hand

A program is the source of an ``nn.Module``, a batch and a loss. A third of them are *ordinary* (what people write, in
random order), a third *hostile* (with at least one piece that lets examples interact, or that an engine cannot see), a
third *sequences* of steps in which what the model does changes: another task, other row counts, frozen parameters.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import random
import signal
import sys
import textwrap
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import nn

from adversary import record
from adversary.blocks import BLOCKS, CLASSES, Source
from adversary.judge import SPECS, Case, Outcome, Subject, Truth, worst

SECONDS = 60  # for one program
ALL_STEPS = SPECS[:1]
CLASSES_OF_PROGRAMS = ("ordinary", "hostile", "sequence")
LOSSES = {
    "cross entropy": "F.cross_entropy(out, y, reduction='none')",
    "squares": "(out - F.one_hot(y, 3)).square().sum(-1)",
    "tokens": "(F.cross_entropy(out.mT, y[:, None].expand(mask.shape), reduction='none') * mask).sum(1) / mask.sum(1)",
    "in batch": "F.cross_entropy(F.normalize(out, dim=-1) @ F.normalize(out, dim=-1).T / 0.5, torch.arange(len(out)))",
}
UNSEEN = ("state", "counted")  # blocks that keep state in Python attributes: documented as what may go unseen
POOLS = (
    "{h}.mean(1)",
    "{h}[:, 0]",
    "({h} * mask[..., None]).sum(1)",
    "{h}.amax(1)",
    "{h}.sum(1) / mask.sum(1, keepdim=True)",
)


@dataclass(frozen=True)
class Piece:
    """A block and the seed of its choices.

    Attributes:
        kind: ordinary or hostile.
        name: Of the block.
        seed: Of its choices.
        plain: Its matrices and vectors are parameters as they are.
        task: In which task it runs; None: in both.
    """

    kind: str
    name: str
    seed: str
    plain: bool = False
    task: int | None = None


@dataclass(frozen=True)
class Plan:
    """What a program is made of; ``source`` is its text.

    Attributes:
        seed: Of all choices.
        kind: One of ``CLASSES_OF_PROGRAMS``.
        n: Examples.
        t: Tokens.
        d: Width.
        loss: A key of ``LOSSES``.
        scalar: The closure returns the mean loss.
        pool: From hidden states to a row.
        pieces: In their order.
        steps: Arguments of ``batch`` and more, for every step.
    """

    seed: int
    kind: str
    n: int
    t: int
    d: int
    loss: str
    scalar: bool
    pool: str
    pieces: tuple[Piece, ...]
    steps: tuple[dict[str, Any], ...] = field(hash=False)


def plan(seed: int) -> Plan:
    """The plan of a seed."""
    r = random.Random(seed)
    kind = CLASSES_OF_PROGRAMS[seed % 3]
    n, t, d = r.choice([2, 3, 4, 4, 4, 5, 6]), r.choice([1, 2, 3, 3, 4, 4, 5, 6]), r.choice([4, 4, 6])
    loss = r.choices(list(LOSSES), [4, 2, 2, 1])[0]
    scalar = loss == "in batch" or r.random() < 0.25
    pieces = [_piece(r, "ordinary", f"{seed}-{i}") for i in range(r.randint(1, 5))]
    if kind == "hostile":  # after something that has parameters: rows of the data may interact
        pieces[0] = replace(pieces[0], name="linear")
        for i in range(r.randint(1, 2)):
            pieces.insert(r.randint(1, len(pieces)), _piece(r, "hostile", f"{seed}-h{i}"))
    ragged, train = r.random() < 0.3, r.random() < 0.85
    first = {"n": n, "t": t, "ragged": ragged, "task": 0, "train": train, "frozen": 0, "seed": 0}
    steps = [first, {**first, "seed": 1}]
    if kind == "sequence":
        tasks = r.random() < 0.5
        if tasks:
            pieces = [replace(p, task=r.choice([None, 0, 1])) for p in pieces]
            for i in range(r.randint(1, 2)):
                hostile = r.random() < 0.4
                at = 1 if r.random() < 0.8 else 0
                pieces.insert(
                    r.randint(0, len(pieces)),
                    replace(_piece(r, "hostile" if hostile else "ordinary", f"{seed}-t{i}"), task=at),
                )
        steps = [{**first, "ragged": False}]
        for i in range(r.randint(2, 5)):
            change = {"seed": i + 1}
            if tasks:
                change["task"] = r.choice([0, 1])
            if r.random() < 0.3:
                change["n"] = r.choice([1, 2, 3, 4, 6])
            if r.random() < 0.3:
                change["t"] = r.choice([1, 2, 3, 4, 5])
            if r.random() < 0.4:
                change["ragged"] = True
            if r.random() < 0.3:
                change["train"] = r.random() < 0.5
            if r.random() < 0.3:
                change["frozen"] = r.randint(0, 3)
            steps.append({**steps[-1], **change})
    return Plan(seed, kind, n, t, d, loss, scalar, r.choice(POOLS), tuple(pieces), tuple(steps))


def _piece(r: random.Random, kind: str, seed: str) -> Piece:
    return Piece(kind, r.choice(list(BLOCKS[kind])), seed)


def source(p: Plan) -> str:
    """The Python source of a program."""
    g = Source(p.n, p.t, p.d)
    g.line("aux = []")
    body: list[str] = []
    h = "x"
    for piece in p.pieces:
        g.lines, g.plain = [], piece.plain
        r = random.Random(piece.seed)
        out = BLOCKS[piece.kind][piece.name](g, r, h)
        if r.random() < 0.35:
            out = g.let(f"torch.tanh({out})")
        elif r.random() < 0.3:
            out = g.let(f"{h} + 0.5 * {out}")
        body.append(f"# {piece.kind}: {piece.name}")
        if piece.task is None:
            body += g.lines
            h = out
        else:
            name = g.name("h")
            body += [
                f"{name} = {h}",
                f"if task == {piece.task}:",
                *(f"    {line}" for line in g.lines),
                f"    {name} = {out}",
            ]
            h = name
    pooled = f"torch.tanh({h})" if p.loss == "tokens" else p.pool.format(h=f"torch.tanh({h})")
    forward = ["aux = []", *body, f"out = self.head({pooled})", "return out, sum(aux) if aux else 0.0"]
    init = textwrap.indent("\n".join([*g.init, f"self.head = nn.Linear({p.d}, 3)"]), " " * 8)
    classes = "\n".join(f"\n{CLASSES[name].strip()}\n" for name in g.classes)
    steps = "\n".join(f"    {step!r}," for step in p.steps)
    closure = "losses(model, **data).mean()" if p.scalar else "losses(model, **data)"
    return f'''"""Program {p.seed} ({p.kind}): {", ".join(piece.name for piece in p.pieces)}. Loss: {p.loss}.

The closure returns {closure}.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

torch.set_default_dtype(torch.float64)
{classes}

class Model(nn.Module):
    def __init__(self):
        super().__init__()
{init}

    def forward(self, x, ids, mask, task=0):
{textwrap.indent(chr(10).join(forward), " " * 8)}


def batch(n, t, ragged, seed, **_):
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, t + 1, (n,), generator=g) if ragged else torch.full((n,), max(1, t - 1))
    return dict(
        x=torch.randn(n, t, {p.d}, generator=g),
        ids=torch.randint(0, 6, (n, t), generator=g),
        mask=torch.arange(t) < counts[:, None],
        y=torch.randint(0, 3, (n,), generator=g),
    )


def losses(model, x, ids, mask, y, task):
    out, extra = model(x, ids, mask, task)
    return {LOSSES[p.loss]} + extra


LOSS, SCALAR = {p.loss!r}, {p.scalar}
STEPS = [
{steps}
]
torch.manual_seed({p.seed})
model = Model()
'''


def cases(text: str) -> Iterator[Case]:
    """The steps of a program: each with the model as plain training would have left it by then."""
    space: dict[str, Any] = {"__name__": "program"}
    exec(compile(text, "<program>", "exec"), space)
    model: nn.Module = space["model"]
    scalar, in_batch = space["SCALAR"], space["LOSS"] == "in batch"
    for step in space["STEPS"]:
        model.train(step["train"])
        for i, p in enumerate(model.parameters()):
            p.requires_grad_(step["frozen"] != i + 1)
        data = {**space["batch"](**step), "task": step["task"]}
        case = Case(model, lambda m, data=data: space["losses"](m, **data), step["n"], scalar)
        if in_batch:
            given = {k: v for k, v in data.items() if k != "y"}
            case.outputs = lambda m, given=given: m(**given)[0]
            case.loss_of = in_batch_loss
            if not isinstance(copy.deepcopy(model)(**given)[1], float):
                return  # auxiliary losses beside one that examples share: no equation of ours
        yield case
        model = Truth(case).plain()[0]
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=0.05)
                p.grad = None


def in_batch_loss(out: torch.Tensor) -> torch.Tensor:
    """What ``LOSSES["in batch"]`` says."""
    rows = torch.nn.functional.normalize(out, dim=-1)
    return torch.nn.functional.cross_entropy(rows @ rows.T / 0.5, torch.arange(len(out)))


def judge(text: str, specs: tuple[str, ...] = SPECS, *, sequence: bool = False) -> dict[str, Outcome]:
    """The outcome of each spec on a program. In a sequence all take every step, else ``ALL_STEPS`` do.

    Where the oracle cannot run the program, there is one outcome, ``invalid``.
    """
    torch.manual_seed(0)
    try:
        truths = []
        steps = cases(text)
        for case in steps:
            case = replace(case, model=copy.deepcopy(case.model))
            truth = Truth(case)
            if case.outputs is None and len(case.losses(copy.deepcopy(case.model))) != case.n:
                raise ValueError("not one loss per example")
            truth.answer(SPECS[0])
            truths.append(truth)
    except Exception as error:  # noqa: BLE001 - such a program is invalid
        if not truths:
            return {"": Outcome("invalid", f"{type(error).__name__}: {error}"[:100])}
    if not truths:
        return {"": Outcome("invalid", "no step")}
    found = {}
    for spec in specs:
        fits = [t for t in truths if _fits(spec, t.case)]
        if fits:
            subject = Subject(
                spec, copy.deepcopy(fits[0].case.model), large=zlib.crc32((spec + text).encode()) % 2 == 0
            )
            if not sequence and spec not in ALL_STEPS:
                fits = fits[:1]
            found[spec] = worst([subject.step(truth) for truth in fits])
    return found


def _fits(spec: str, case: Case) -> bool:
    if "m=2" in spec and case.n % 2:
        return False
    if case.outputs is not None:  # examples interact in the loss: only the copies have an equation
        return spec.startswith("sam") or ("unsupported" not in spec and spec.startswith("per_"))
    return True


class _Timeout(BaseException):
    pass


def _ring(*_: Any) -> None:
    raise _Timeout


def run(work: tuple[int, tuple[str, ...]]) -> tuple[int, dict[str, Outcome]]:
    """Judge the program of a seed within a time limit."""
    seed, specs = work
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _ring)
    signal.alarm(SECONDS)
    try:
        return seed, judge(source(plan(seed)), specs, sequence=seed % 3 == 2)
    except _Timeout:
        return seed, {"": Outcome("crashed", f"took more than {SECONDS} s")}
    finally:
        signal.alarm(0)


def shrink(p: Plan, spec: str, kind: str) -> Plan:
    """The smallest part of a program that has the same kind of outcome."""

    def fails(candidate: Plan) -> bool:
        try:
            found = judge(source(candidate), (spec,), sequence=True).get(spec)
        except Exception:  # noqa: BLE001 - smaller, and broken in another way
            return False
        return found is not None and found.kind == kind

    again = True
    while again:
        again = False
        for candidate in _smaller(p):
            if fails(candidate):
                p, again = candidate, True
                break
    return p


def _smaller(p: Plan) -> Iterator[Plan]:
    for i in range(len(p.pieces)):
        yield replace(p, pieces=p.pieces[:i] + p.pieces[i + 1 :])
    for i in range(len(p.steps)):
        if len(p.steps) > 1:
            yield replace(p, steps=p.steps[:i] + p.steps[i + 1 :])
    for i, piece in enumerate(p.pieces):
        if not piece.plain:
            yield replace(p, pieces=(*p.pieces[:i], replace(piece, plain=True), *p.pieces[i + 1 :]))
        if piece.task is not None:
            yield replace(p, pieces=(*p.pieces[:i], replace(piece, task=None), *p.pieces[i + 1 :]))
    if p.scalar and p.loss != "in batch":
        yield replace(p, scalar=False)
    if p.loss != "cross entropy":
        yield replace(p, loss="cross entropy", scalar=False)
    if p.pool != POOLS[0]:
        yield replace(p, pool=POOLS[0])
    if any(s["ragged"] for s in p.steps):
        yield replace(p, steps=tuple({**s, "ragged": False} for s in p.steps))


def main() -> None:
    torch.set_default_dtype(torch.float64)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:300", help="from:to, the programs to run")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, help="one program")
    parser.add_argument("--file", type=Path, help="judge a program in a file")
    parser.add_argument("--show", action="store_true", help="print the source of --seed")
    parser.add_argument("--shrink", action="store_true", help="print the smallest part of --seed that fails")
    parser.add_argument("--spec", help="with --shrink or --file: one method (default: the first that fails; all)")
    parser.add_argument("--methods", default="", help="only the methods whose spec contains this text")
    parser.add_argument("--causes", type=int, default=0, help="shrink that many failures and list them by their pieces")
    parser.add_argument("--output", type=Path, default=record.RESULTS / "programs.json", help="where the record goes")
    arguments = parser.parse_args()
    if arguments.file:
        _print(judge(arguments.file.read_text(), (arguments.spec,) if arguments.spec else SPECS, sequence=True))
    elif arguments.seed is not None:
        _one(arguments)
    else:
        _many(arguments)


def _one(arguments: argparse.Namespace) -> None:
    p = plan(arguments.seed)
    found = judge(source(p), sequence=p.kind == "sequence")
    if arguments.shrink:
        failing = {s: o for s, o in found.items() if o.kind in ("wrong", "crashed") and arguments.spec in (None, s)}
        if failing:
            spec, outcome = next(iter(failing.items()))
            p = shrink(p, spec, outcome.kind)
            found = judge(source(p), sequence=True)
    if arguments.show or arguments.shrink:
        print(source(p))
    _print(found)


def _print(found: dict[str, Outcome]) -> None:
    for spec, outcome in found.items():
        print(f"# {spec:48s} {outcome.kind:10s} {outcome.error:.1e}  {outcome.reason}")
        if outcome.kind == "crashed":
            print(textwrap.indent(outcome.detail, "#   "))


def _many(arguments: argparse.Namespace) -> None:
    first, last = map(int, arguments.seeds.split(":"))
    specs = tuple(s for s in SPECS if arguments.methods in s)
    work = [(seed, specs) for seed in range(first, last)]
    begun = time.monotonic()
    failures, pairs, refusals, programs = [], [], Counter(), Counter()
    with multiprocessing.get_context("fork").Pool(arguments.jobs, maxtasksperchild=500) as pool:
        for done, (seed, outcomes) in enumerate(pool.imap_unordered(run, work, chunksize=4), 1):
            kind = _group(plan(seed))
            programs[f"{kind}: {worst(list(outcomes.values())).kind}"] += 1
            for spec, outcome in outcomes.items():
                pairs.append((f"{kind} `{spec}`" if spec else f"{kind} (not run)", outcome.kind))
                if outcome.kind == "refused":
                    refusals[f"{kind}: {outcome.reason}"] += 1
                if outcome.kind in ("wrong", "crashed"):
                    blocks = [piece.name for piece in plan(seed).pieces]
                    failures.append(
                        {
                            "seed": seed,
                            "spec": spec,
                            "kind": outcome.kind,
                            "reason": outcome.reason,
                            "error": outcome.error,
                            "class": kind,
                            "blocks": blocks,
                        }
                    )
            if done % 200 == 0:
                print(
                    f"{done} programs, {done / (time.monotonic() - begun):.1f} per second, {len(failures)} failures",
                    file=sys.stderr,
                )
    found = dict(sorted(record.counts(pairs).items()))
    print(record.table(found, "programs"))
    print("refused because:\n" + "\n".join(f"{c:6d}  {reason}" for reason, c in refusals.most_common(40)))
    by_seed: dict[int, list[dict[str, Any]]] = {}
    for f in failures:
        by_seed.setdefault(f["seed"], []).append(f)
    for seed, of_seed in sorted(by_seed.items(), key=lambda item: (item[1][0]["kind"], item[1][0]["class"], item[0]))[
        :80
    ]:
        f = max(of_seed, key=lambda f: f["kind"] == "wrong")
        methods = ", ".join(f["spec"].replace("per_instance_sam:rho=0.1", "pi").partition(":rho")[0] for f in of_seed)
        print(f"{f['kind']:8s} {f['class']:9s} seed {seed:6d} {f['error']:.1e} {f['reason']} [{methods}] {f['blocks']}")
    print(f"{last - first} programs in {time.monotonic() - begun:.0f} s; {dict(programs)}")
    causes = _causes(failures, arguments.causes)
    record.write(
        arguments.output,
        {
            "tool": "programs",
            "seeds": [first, last],
            "methods": specs,
            "programs": dict(programs),
            "counts": found,
            "refusals": dict(refusals),
            "failures": failures,
            "causes": causes,
        },
    )
    print(f"written to {arguments.output}")


def _group(p: Plan) -> str:
    """The class of a program in the table; what keeps state in attributes stands apart."""
    return "stateful" if any(piece.name in UNSEEN for piece in p.pieces) else p.kind


def _causes(failures: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Failures that are shrunk to the pieces that matter, one for each set of pieces."""
    causes: dict[str, dict[str, Any]] = {}
    tried: set[int] = set()
    for f in failures:
        if len(tried) >= most:
            break
        if f["seed"] in tried or not f["spec"]:
            continue
        tried.add(f["seed"])
        small = shrink(plan(f["seed"]), f["spec"], f["kind"])
        names = ", ".join(sorted({piece.name for piece in small.pieces})) or "the head alone"
        cause = causes.setdefault(f"{f['kind']} {names}", {"cause": names, **f, "seeds": [], "source": source(small)})
        cause["seeds"].append(f["seed"])
    for key, cause in sorted(causes.items(), key=lambda item: -len(item[1]["seeds"])):
        print(f"{len(cause['seeds']):5d}  {key}  (seed {cause['seed']}, {cause['spec']}, {cause['reason']})")
    return list(causes.values())


if __name__ == "__main__":
    main()
