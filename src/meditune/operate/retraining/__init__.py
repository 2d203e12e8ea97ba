"""From what people said and what was published to the next version: gathered, trained, judged, served, taken back."""
