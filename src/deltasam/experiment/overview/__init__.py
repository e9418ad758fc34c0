"""A whole table of experiments: tasks x methods, what it shows and what it cannot."""

from deltasam.experiment.overview.conclusion import answer, conclusion, details
from deltasam.experiment.overview.markdown import markdown_table
from deltasam.experiment.overview.overview import Overview
from deltasam.experiment.overview.statistics import survey
from deltasam.experiment.overview.table_row import TableRow
from deltasam.experiment.overview.terminal import TerminalTable

__all__ = ["Overview", "TableRow", "TerminalTable", "answer", "conclusion", "details", "markdown_table", "survey"]
