"""Passages that a run's examples are shown, found once and kept in its folder: where retrieval meets the rest."""
