"""Self-contained web pages: about one comparison, and about a whole table of them."""

from deltasam.experiment.report.overview_page import write_table_page
from deltasam.experiment.report.page import write_report

__all__ = ["write_report", "write_table_page"]
