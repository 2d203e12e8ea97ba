"""Metrics of the confidence of decisions: calibration error, Brier score, risk and coverage.

All use rows with `reference`, `prediction` and `logits`. A decision's confidence is the probability of the most likely
label, from a softmax over the labels alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.data.example import DECISIONS
from meditune.statistics import Array, Statistics, mean

BINS = 10
"""Number of confidence bins for the calibration error"""
GROUPS = 500
"""Maximum number of distinct confidences in the area under the risk-coverage curve"""

Rows = Sequence[dict[str, Any]]


def probabilities(logits: dict[str, float]) -> dict[str, float]:
    """Return the softmax over the labels."""
    values = np.array(list(logits.values()))
    weights = np.exp(values - values.max())
    return dict(zip(logits, (weights / weights.sum()).tolist(), strict=True))


def confidences(rows: Rows) -> tuple[Array, NDArray[np.bool_]]:
    """Return (n,) probabilities of each item's most likely label, and (n,) whether its decision is correct."""
    confidence = [max(probabilities(row["logits"]).values()) for row in rows]
    return np.array(confidence), np.array([row["reference"] == row["prediction"] for row in rows])


def calibration_error(rows: Rows) -> Statistics:
    """Return the expected calibration error with ten equal bins (Guo et al. 2017, arXiv:1706.04599).

    Columns: for each bin the sum of confidences and the number of correct decisions; then the number of items.
    """
    confidence, right = confidences(rows)
    bin_numbers = _bin_indices(confidence)
    bins = np.zeros((len(rows), 2 * BINS + 1))
    every = np.arange(len(rows))
    bins[every, 2 * bin_numbers], bins[every, 2 * bin_numbers + 1], bins[:, -1] = confidence, right, 1
    return Statistics(
        _ids(rows), bins, lambda sums: np.abs(sums[..., 0:-1:2] - sums[..., 1:-1:2]).sum(axis=-1) / sums[..., -1]
    )


def brier_score(rows: Rows) -> Statistics:
    """Return the squared distance of the probabilities from the reference, summed over labels: 0 to 2 (Brier 1950)."""
    scores = []
    for row in rows:
        shares = probabilities(row["logits"])
        scores.append(sum((shares.get(label, 0.0) - (label == row["reference"])) ** 2 for label in DECISIONS))
    return mean(_ids(rows), scores)


def risk_area(rows: Rows) -> Statistics:
    """Return the area under the risk-coverage curve (Geifman et al. 2019, arXiv:1805.08206).

    This is the mean over items of the share of wrong decisions among those with at least the item's confidence. Items
    of equal confidence form a group, so their order doesn't matter. Columns: for each group, the most confident first,
    the number of items; then for each group the number of wrong ones.
    """
    confidence, right = confidences(rows)
    groups = np.unique(-confidence, return_inverse=True)[1].reshape(-1)
    count = int(groups.max()) + 1
    if count > GROUPS:
        groups, count = groups * GROUPS // count, GROUPS
    items = np.zeros((len(rows), 2 * count))
    every = np.arange(len(rows))
    items[every, groups], items[every, count + groups] = 1, ~right

    def area(sums: Array) -> Array:
        covered, missed = sums[..., :count].cumsum(axis=-1), sums[..., count:].cumsum(axis=-1)
        risks = missed / np.maximum(covered, 1)
        return np.asarray((sums[..., :count] * risks).sum(axis=-1) / covered[..., -1])

    return Statistics(_ids(rows), items, area)


def reliability(rows: Rows) -> list[dict[str, float]]:
    """Return the nonempty bins of the calibration error.

    Each has `from` and `to`, the number of `items`, their mean `confidence`, and the share `right`, from 0 to 1.
    """
    confidence, right = confidences(rows)
    bin_numbers = _bin_indices(confidence)
    return [
        {
            "from": slot / BINS,
            "to": (slot + 1) / BINS,
            "items": int((bin_numbers == slot).sum()),
            "confidence": float(confidence[bin_numbers == slot].mean()),
            "right": float(right[bin_numbers == slot].mean()),
        }
        for slot in range(BINS)
        if (bin_numbers == slot).any()
    ]


def risk_coverage(rows: Rows, points: int = 100) -> list[dict[str, float]]:
    """Return the risk-coverage curve from the most confident item to all items, with at most `points` points.

    Each point has the `threshold`, the `coverage` (share of items with at least this confidence) and the `risk` (share
    of wrong decisions among them).
    """
    confidence, right = confidences(rows)
    order = np.argsort(-confidence, kind="stable")
    confidence, missed = confidence[order], (~right[order]).cumsum()
    ends = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True))
    if len(ends) > points:
        ends = ends[np.linspace(0, len(ends) - 1, points).round().astype(int)]
    return [
        {
            "threshold": float(confidence[end]),
            "coverage": float((end + 1) / len(rows)),
            "risk": float(missed[end] / (end + 1)),
        }
        for end in ends
    ]


def _bin_indices(confidence: Array) -> NDArray[np.int64]:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def _ids(rows: Rows) -> tuple[str, ...]:
    return tuple(row["id"] for row in rows)
