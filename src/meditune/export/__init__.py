"""Exports of a tuned model to the formats of other programs, each verified against the original model."""
