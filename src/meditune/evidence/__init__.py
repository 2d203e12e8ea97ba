"""Checking whether sources support an answer, with a detector that needs no model."""
