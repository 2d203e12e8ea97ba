"""Versions of a model with their lineage: what was made of what, which one is served, and which came before it."""
