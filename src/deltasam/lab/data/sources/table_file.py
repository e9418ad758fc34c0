"""A table file: CSV, TSV, JSON, JSON lines or Parquet."""

from __future__ import annotations

from pathlib import Path

from deltasam.errors import UserError
from deltasam.lab.data.assemble import assemble, goal_of
from deltasam.lab.data.columns import choose_columns
from deltasam.lab.data.dataset import TextData
from deltasam.lab.data.source import DataSource, ReadOptions
from deltasam.lab.data.tables import read_table, table_suffix


class TableFileSource(DataSource, name="table file"):
    """A file, or a name with a table's suffix; evaluation rows are in a second file, or held out."""

    def recognizes(self, name: str) -> bool:
        """Whether such a file exists, or the suffix is that of a table."""
        path = Path(name)
        return path.is_file() or table_suffix(path) is not None

    def load(self, name: str, options: ReadOptions) -> TextData:
        """Read the file, and the one with the evaluation rows."""
        path, goal = Path(name), goal_of(options.task)
        train = read_table(path)
        columns = choose_columns(str(path), list(train.columns), *options.columns)
        if options.eval_data is None:
            return assemble(path.name, train, options.eval_size, columns, goal)
        evaluation = Path(options.eval_data)
        held_out = read_table(evaluation)
        if evaluation.samefile(path):
            raise UserError(f"{evaluation}: both --data and --eval-data; leave out --eval-data to split the file")
        choose_columns(str(evaluation), list(held_out.columns), columns.text, columns.text_pair, columns.label)
        return assemble(path.name, train, held_out, columns, goal)
