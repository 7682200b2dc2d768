"""The report: one self-contained page on a run folder. Imports no torch."""

from rlhf.report.page import write_report

__all__ = ["write_report"]
