"""Abstaining: how sure a model must be on dev to be right often enough, and what that gives on the measured items."""

from __future__ import annotations

from typing import Any

from meditune.evaluate.metrics.calibration import calibrated
from meditune.evaluate.metrics.confidence import Rows, confidences
from meditune.evaluate.predictions import Predictions
from meditune.shares import wilson

FEWEST = 10
"""A threshold must keep at least so many dev items: a few lucky ones at the top show nothing."""


def abstention(predictions: Predictions, target: float) -> dict[str, Any] | None:
    """By `raw` and, where there is a calibration, by `calibrated` confidence: `threshold`, `dev` and `test`.

    The threshold is the lowest confidence from which on dev the share `target` is right, with FEWEST items kept at
    least; it and `test` are None where there is none. `dev` and `test` are as `kept_at` gives them, with `dev` None
    where no threshold is. None without likelihoods on dev.
    """
    if not predictions.dev_decision or not all(
        "logits" in r for r in (*predictions.dev_decision, *predictions.decision)
    ):
        return None
    found = {"raw": _tried(predictions.dev_decision, predictions.decision, target)}
    for fit in predictions.calibration:
        both = calibrated(predictions.dev_decision, fit), calibrated(predictions.decision, fit)
        found["calibrated"] = _tried(*both, target)
    return found


def threshold_for(rows: Rows, target: float) -> float | None:
    """The lowest confidence from which on the share `target` of the rows is right; None where no such one is."""
    sure, right = confidences(rows)
    for candidate in sorted(set(sure.tolist())):
        kept = sure >= candidate
        if kept.sum() >= FEWEST and right[kept].mean() >= target:
            return float(candidate)
    return None


def kept_at(rows: Rows, threshold: float) -> dict[str, Any]:
    """Decisions at least that sure: how many are `kept` `of` all, their `coverage` and `accuracy` in percent.

    `ci95` is Wilson's interval (1927) of that accuracy; it and the accuracy are None where nothing is kept.
    """
    sure, right = confidences(rows)
    kept = sure >= threshold
    count, hits = int(kept.sum()), int(right[kept].sum())
    return {
        "kept": count,
        "of": len(rows),
        "coverage": 100 * count / len(rows),
        "accuracy": 100 * hits / count if count else None,
        "ci95": wilson(hits, count) if count else None,
    }


def _tried(dev: Rows, test: Rows, target: float) -> dict[str, Any]:
    threshold = threshold_for(dev, target)
    if threshold is None:
        return {"threshold": None, "dev": None, "test": None}
    return {"threshold": threshold, "dev": kept_at(dev, threshold), "test": kept_at(test, threshold)}
