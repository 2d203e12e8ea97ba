"""Readers of data sets, one file for each, and of a user's own files."""
