"""Evaluation of models, statistical comparison, and the report."""
