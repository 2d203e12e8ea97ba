"""Measuring a model, comparing two with statistics, and the report."""
