"""A finished run for people: one HTML file with verdict, tables, plots and worked examples."""

from meditune.evaluate.report.page import render

__all__ = ["render"]
