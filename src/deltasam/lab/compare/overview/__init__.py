"""A whole table of experiments: tasks x methods, what it shows and what it cannot."""

from deltasam.lab.compare.overview.conclusion import answer, conclusion, details
from deltasam.lab.compare.overview.markdown import markdown_table
from deltasam.lab.compare.overview.overview import Overview
from deltasam.lab.compare.overview.statistics import survey
from deltasam.lab.compare.overview.table_row import TableRow
from deltasam.lab.compare.overview.terminal import TerminalTable

__all__ = ["Overview", "TableRow", "TerminalTable", "answer", "conclusion", "details", "markdown_table", "survey"]
