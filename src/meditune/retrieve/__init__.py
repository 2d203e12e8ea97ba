"""Retrieval: splitting sources into passages, indexing the passages, and hybrid search."""
