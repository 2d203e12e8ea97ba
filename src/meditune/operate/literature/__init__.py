"""New literature: import, quality control, retractions, indexing, and training pairs."""
