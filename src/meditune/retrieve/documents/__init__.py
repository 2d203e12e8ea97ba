"""Readers that turn sources into documents and passages."""
