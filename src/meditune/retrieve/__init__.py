"""Finding what sources say: passages, an index of them, and hybrid search."""
