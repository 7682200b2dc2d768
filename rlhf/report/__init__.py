"""The report: one self-contained page on a run folder. No torch here."""

from rlhf.report.page import write_report

__all__ = ["write_report"]
