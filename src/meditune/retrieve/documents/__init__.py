"""Readers that turn sources into passages."""
