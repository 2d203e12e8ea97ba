"""The HTML report of a finished run: verdict, tables, plots and worked examples in one file."""

from meditune.evaluate.report.page import render

__all__ = ["render"]
