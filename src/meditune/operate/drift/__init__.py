"""Drift detection: references, signals, alerts, and the evidence for them."""
