"""What finished runs have recorded of their training examples, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltasam.diagnostics.examples.recorder import ranking
from deltasam.errors import UserError
from deltasam.spec import short_spec

if TYPE_CHECKING:
    import pandas as pd

    from deltasam.lab.train.results import RunResult


def inspect_examples(
    folder: str | Path, *, by: str | None = None, method: str | None = None, seed: int | None = None
) -> pd.DataFrame:
    """Every training example of every run in a folder: one row per run and example.

    First which run it is: ``method`` (the short spec), ``seed``, ``train_size``, ``label_noise``. Then the columns of
    ``ExampleRecorder.frame`` (``docs/how-to/inspect_examples.md``), as far as a run has them.

    Args:
        folder: The output of ``deltasam train`` or ``compare``, or the folder ``final`` of a row of ``reproduce``.
        by: ``weight``, ``norm`` or ``loss``: the examples of each run by this mean, largest first, without those that
            have none. None: all of them, in the order of the data.
        method: Only runs of this method: its name, or its spec.
        seed: Only runs with this seed.

    Raises:
        UserError: There are no such runs, none with a table of examples, or none with such a mean.
    """
    import pandas as pd

    from deltasam.lab.compare.kept_examples import kept_runs

    runs = kept_runs(Path(folder), method, seed)
    tables = [(run, run.read()) for run in runs]
    if by is not None:
        tables = [(run, t.loc[ranking(t, by)]) for run, t in tables if f"mean_{by}" in t]
    if not tables:
        methods = ", ".join(dict.fromkeys(short_spec(run.result.method) for run in runs))
        raise UserError(f"no run of {methods} in {folder} has a {by} of its examples; every run has a loss")
    return pd.concat([_with_run(run.result, table) for run, table in tables], ignore_index=True)


def _with_run(result: RunResult, table: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    known: dict[str, Any] = {"method": short_spec(result.method), "seed": result.seed}
    if result.setting is not None:
        known |= {"train_size": result.setting.train_size, "label_noise": result.setting.label_noise}
    return pd.concat([pd.DataFrame(known, index=table.index), table], axis=1)
