"""Retrieval: passages of sources, an index of them, and hybrid search."""
