"""The diversity of prepared data: coverage, imbalances, topic clusters and comparisons of two sets."""
