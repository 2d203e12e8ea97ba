"""Readers of the known data sets, one module each, and of a user's own files."""
