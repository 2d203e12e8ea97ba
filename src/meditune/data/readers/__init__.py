"""Readers for the known data sets and for a user's own files."""
