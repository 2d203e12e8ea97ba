"""How sure a model is of its decisions, and whether that tells right ones from wrong ones.

All of it rests on rows with `reference`, `prediction` and `logits`. A decision's confidence is the probability of the
likeliest label: the softmax over the labels alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.data.example import DECISIONS
from meditune.statistics import Array, Statistics, mean

BINS = 10
"""Of confidence, for calibration"""
GROUPS = 500
"""So many different confidences are told apart in the area under the risk-coverage curve."""

Rows = Sequence[dict[str, Any]]


def probabilities(logits: dict[str, float]) -> dict[str, float]:
    """Softmax over the labels."""
    values = np.array(list(logits.values()))
    weights = np.exp(values - values.max())
    return dict(zip(logits, (weights / weights.sum()).tolist(), strict=True))


def confidences(rows: Rows) -> tuple[Array, NDArray[np.bool_]]:
    """(n,) probability of each item's likeliest label, and (n,) whether its decision is right."""
    sure = [max(probabilities(row["logits"]).values()) for row in rows]
    return np.array(sure), np.array([row["reference"] == row["prediction"] for row in rows])


def calibration_error(rows: Rows) -> Statistics:
    """Expected calibration error, ten equal bins (Guo et al. 2017, arXiv:1706.04599).

    Columns: of each bin the sum of confidences and how many are right; then how many items there are.
    """
    sure, right = confidences(rows)
    slots = _slots(sure)
    bins = np.zeros((len(rows), 2 * BINS + 1))
    every = np.arange(len(rows))
    bins[every, 2 * slots], bins[every, 2 * slots + 1], bins[:, -1] = sure, right, 1
    return Statistics(
        _ids(rows), bins, lambda sums: np.abs(sums[..., 0:-1:2] - sums[..., 1:-1:2]).sum(axis=-1) / sums[..., -1]
    )


def brier_score(rows: Rows) -> Statistics:
    """Squared distance of the probabilities from the truth, summed over the labels (Brier 1950): 0 to 2."""
    scores = []
    for row in rows:
        shares = probabilities(row["logits"])
        scores.append(sum((shares.get(label, 0.0) - (label == row["reference"])) ** 2 for label in DECISIONS))
    return mean(_ids(rows), scores)


def risk_area(rows: Rows) -> Statistics:
    """Area under the risk-coverage curve: the mean, over items, of the share wrong among those at least as sure.

    Geifman et al. 2019, arXiv:1805.08206. Items of equal confidence come together, so their order doesn't matter.
    Columns: of each group of equal confidence, the surest first, how many items, and how many of them wrong.
    """
    sure, right = confidences(rows)
    groups = np.unique(-sure, return_inverse=True)[1].reshape(-1)
    count = int(groups.max()) + 1
    if count > GROUPS:
        groups, count = groups * GROUPS // count, GROUPS
    items = np.zeros((len(rows), 2 * count))
    every = np.arange(len(rows))
    items[every, groups], items[every, count + groups] = 1, ~right

    def area(sums: Array) -> Array:
        kept, missed = sums[..., :count].cumsum(axis=-1), sums[..., count:].cumsum(axis=-1)
        risks = missed / np.maximum(kept, 1)
        return np.asarray((sums[..., :count] * risks).sum(axis=-1) / kept[..., -1])

    return Statistics(_ids(rows), items, area)


def reliability(rows: Rows) -> list[dict[str, float]]:
    """The bins behind the calibration error that hold items.

    Each has `from` and `to`, how many `items`, their mean `confidence`, and the share `right`; all shares 0 to 1.
    """
    sure, right = confidences(rows)
    slots = _slots(sure)
    return [
        {
            "from": slot / BINS,
            "to": (slot + 1) / BINS,
            "items": int((slots == slot).sum()),
            "confidence": float(sure[slots == slot].mean()),
            "right": float(right[slots == slot].mean()),
        }
        for slot in range(BINS)
        if (slots == slot).any()
    ]


def risk_coverage(rows: Rows, points: int = 100) -> list[dict[str, float]]:
    """The risk-coverage curve from the surest item to all of them, in at most so many points.

    Each has the `threshold`, the `coverage` (share of items at least as sure) and the `risk` (share of those wrong).
    """
    sure, right = confidences(rows)
    order = np.argsort(-sure, kind="stable")
    sure, missed = sure[order], (~right[order]).cumsum()
    ends = np.flatnonzero(np.append(sure[1:] != sure[:-1], True))
    if len(ends) > points:
        ends = ends[np.linspace(0, len(ends) - 1, points).round().astype(int)]
    return [
        {
            "threshold": float(sure[end]),
            "coverage": float((end + 1) / len(rows)),
            "risk": float(missed[end] / (end + 1)),
        }
        for end in ends
    ]


def _slots(sure: Array) -> NDArray[np.int64]:
    return np.minimum((sure * BINS).astype(np.int64), BINS - 1)


def _ids(rows: Rows) -> tuple[str, ...]:
    return tuple(row["id"] for row in rows)
