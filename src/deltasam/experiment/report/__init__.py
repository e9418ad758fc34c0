"""One self-contained web page about a comparison."""

from deltasam.experiment.report.page import write_report

__all__ = ["write_report"]
