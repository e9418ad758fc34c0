"""Self-contained web pages: about one comparison, about several, and about a whole table of them."""

from deltasam.lab.report.comparisons_page import write_comparisons
from deltasam.lab.report.overview_page import write_table_page
from deltasam.lab.report.page import write_report

__all__ = ["write_comparisons", "write_report", "write_table_page"]
