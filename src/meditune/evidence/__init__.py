"""Whether an answer is borne out by its sources: a detector that needs no model."""
