"""The tables of training examples that finished runs have left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deltasam.diagnostics.examples.csv_file import read_examples
from deltasam.diagnostics.examples.recorder import ranking
from deltasam.errors import UserError
from deltasam.lab.compare.launchers.launcher import RunKey
from deltasam.lab.folders.files import EXAMPLES, RESULTS, examples_path, read_history, read_results
from deltasam.lab.train.results import RunResult
from deltasam.lab.train.variant import full_spec, short_spec

if TYPE_CHECKING:
    import pandas as pd


class KeptRun(NamedTuple):
    """A finished run and where its table is, if it has one: runs of old versions have none."""

    result: RunResult
    path: Path

    def read(self) -> pd.DataFrame:
        """The table of its examples: first which run it is, then what was recorded.

        Raises:
            UserError: It cannot be read.
        """
        import pandas as pd

        try:
            table = read_examples(self.path)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {self.path} ({error}); run again to another --output") from error
        known: dict[str, Any] = {"method": short_spec(self.result.method), "seed": self.result.seed}
        if setting := self.result.setting:
            known |= {"train_size": setting.train_size, "label_noise": setting.label_noise}
        return pd.concat([pd.DataFrame(known, index=table.index), table], axis=1)


def inspect_examples(
    folder: str | Path, *, by: str | None = None, method: str | None = None, seed: int | None = None
) -> pd.DataFrame:
    """``deltasam.diagnostics.examples.inspect_examples``, which has the documentation.

    Raises:
        UserError: There are no such runs, none with a table of examples, or none with such a mean.
    """
    import pandas as pd

    runs = kept_runs(Path(folder), method, seed)
    tables = [run.read() for run in runs]
    if by is not None:
        tables = [table.loc[ranking(table, by)] for table in tables if f"mean_{by}" in table]
    if not tables:
        methods = ", ".join(dict.fromkeys(short_spec(run.result.method) for run in runs))
        raise UserError(f"no run of {methods} in {folder} has a {by} of its examples; every run has a loss")
    return pd.concat(tables, ignore_index=True)


def kept_runs(folder: Path, method: str | None = None, seed: int | None = None) -> list[KeptRun]:
    """The finished runs in the folder of ``deltasam train``, ``compare``, or a row of ``reproduce``.

    Args:
        folder: Where the runs are.
        method: Only those of a method: its name, or its spec.
        seed: Only those with a seed.

    Raises:
        UserError: There are none, or none with a table of examples.
    """
    runs = _runs(folder)
    chosen = [run for run in runs if seed in (None, run.result.seed) and _is(run.result.method, method)]
    if not chosen:
        methods, seeds = dict.fromkeys(short_spec(r.result.method) for r in runs), {r.result.seed for r in runs}
        wanted = " ".join(f"--{name} {v}" for name, v in (("method", method), ("seed", seed)) if v is not None)
        raise UserError(
            f"{wanted}: no such run in {folder}; there are {', '.join(methods)} with seeds "
            f"{', '.join(map(str, sorted(seeds)))}"
        )
    if kept := [run for run in chosen if run.path.is_file()]:
        return kept
    raise UserError(
        f"the runs in {folder} have no tables of their examples: they are from before such were kept, or "
        f"{chosen[0].path.name} was deleted; run again to another --output"
    )


def _runs(folder: Path) -> list[KeptRun]:
    if alone := read_history(folder):
        return [KeptRun(alone, folder / EXAMPLES)]
    if results := read_results(folder):
        return [KeptRun(run, examples_path(folder, RunKey(run.seed, run.method, run.setting))) for run in results]
    inside = sorted(str(path.parent) for path in folder.glob(f"**/{RESULTS}")) if folder.is_dir() else []
    hint = f"; inside it there are {', '.join(inside)}" if inside else ""
    raise UserError(
        f"{folder} holds no finished run; give the --output of deltasam train or compare, or the folder final of a "
        f"row of deltasam reproduce{hint}"
    )


def _is(spec: str, wanted: str | None) -> bool:
    if wanted in (None, spec, short_spec(spec), spec.partition(":")[0]):
        return True
    try:
        return full_spec(str(wanted)) == spec
    except (ValueError, UserError):  # no spec at all: then no run has it
        return False
