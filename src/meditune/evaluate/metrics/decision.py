"""Metrics of decisions (by likelihood, calibrated and written) and of claims, including metrics of confidence.

A row has `reference` and `prediction`; metrics of confidence also need `logits`. The confidence of a decision is the
probability of the most likely label, from a softmax over only the labels. A claim's row also has `source`, and its
logits are those of the labels that the source uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.data.example import DECISIONS, LABELS
from meditune.evaluate.predictions import Predictions, ids_of, most_likely
from meditune.evidence.support_model import ClaimCorrection
from meditune.prompts import WORD_OF_LABEL
from meditune.statistics import Array, Statistics, mean, wilson

BINS = 10
"""Number of confidence bins for the calibration error"""
GROUPS = 500
"""Maximum number of distinct confidences from which the area under a curve is computed"""
PRIOR = 0.05
"""Weight of the penalty on biases, which limits the effect of a missing label or of only a few claims"""
FALSE_ALARMS = 0.05
"""Maximum share of supported dev claims below the threshold"""
Rows = Sequence[dict[str, Any]]


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric that can be computed from the predictions."""
    rows, found = predictions.decision, {}
    if rows:
        found = agreement(rows) | _class_f1(rows)
        # Without likelihoods from the API, there is no confidence to evaluate.
        if all("logits" in row for row in rows):
            found |= {"ece": calibration_error(rows), "brier": brier_score(rows), "aurc": risk_area(rows)}
    if rows and predictions.calibration:
        after = calibrated(rows, predictions.calibration[0])
        found |= _prefixed("calibrated", agreement(after) | {"ece": calibration_error(after)})
    if predictions.written:
        found |= _prefixed("written", agreement(predictions.written))
    return found | claim_statistics(predictions.claim)


def _prefixed(prefix: str, found: Mapping[str, Statistics]) -> dict[str, Statistics]:
    return {f"{prefix}_{name}": each for name, each in found.items()}


# Agreement with the references


def agreement(rows: Rows) -> dict[str, Statistics]:
    """Return `accuracy` and `macro_f1` of the rows; a prediction is None if the model's text contained no label."""
    ids, cells = _cells(rows)
    return {
        "accuracy": Statistics(ids, cells, lambda sums: 100 * sums[..., [0, 5, 10]].sum(axis=-1) / sums.sum(axis=-1)),
        "macro_f1": Statistics(ids, cells, macro_f1),
    }


def _class_f1(rows: Rows) -> dict[str, Statistics]:
    """Return `f1_yes`, `f1_no` and `f1_maybe`, for those labels that occur in the references.

    F1 is NaN for a subgroup or a bootstrap draw without references of the label.
    """
    ids, cells = _cells(rows)

    def f1_of(index: int, sums: Array) -> Array:
        references = sums[..., 4 * index : 4 * index + 4].sum(axis=-1)
        return np.where(references > 0, _f1(sums)[0][..., index], np.nan)

    references = {row["reference"] for row in rows}
    return {
        f"f1_{label}": Statistics(ids, cells, partial(f1_of, index))
        for index, label in enumerate(DECISIONS)
        if label in references
    }


def confusion(rows: Rows) -> NDArray[np.int64]:
    """Return (3, 3) counts: references in rows, predictions in columns, both in the order yes, no, maybe.

    If any prediction is None, the result is (3, 4), and its last column counts the predictions without a label.
    """
    matrix: NDArray[np.int64] = _cells(rows)[1].sum(axis=0).reshape(3, 4).astype(np.int64)
    return matrix if matrix[:, 3].any() else matrix[:, :3]


def recalls(matrix: NDArray[np.int64]) -> dict[str, float | None]:
    """Return the recall of each class in percent; None for a class without references."""
    totals = matrix.sum(axis=1)
    return {
        label: float(100 * matrix[index, index] / totals[index]) if totals[index] else None
        for index, label in enumerate(DECISIONS)
    }


def macro_f1(sums: Array, classes: int = 3) -> Array:
    """Return macro-F1 in percent from flattened confusion counts (..., 9), or (..., 12) with predictions of None.

    As in scikit-learn's f1_score(average="macro"), the mean is over the classes that occur in references or
    predictions. Predictions without a label don't form a class.
    """
    f1, present = _f1(sums, classes)
    return np.asarray(f1.sum(axis=-1) / np.maximum(present.sum(axis=-1), 1))


def _f1(sums: Array, classes: int = 3) -> tuple[Array, NDArray[np.bool_]]:
    """Return two (..., classes) arrays: F1 of each class in percent, 0 if it doesn't occur, and whether it occurs."""
    matrix = sums.reshape(*sums.shape[:-1], classes, -1)
    right = np.diagonal(matrix, axis1=-2, axis2=-1)
    both = matrix.sum(axis=-1) + matrix[..., :classes].sum(axis=-2)
    present = both > 0
    return np.where(present, 100 * 2 * right / np.where(present, both, 1), 0), present


def _cells(rows: Rows) -> tuple[tuple[str, ...], Array]:
    """Return the ids and an (n, 12) array: each item's flattened (3, 4) confusion matrix, with a single 1."""
    column = {label: index for index, label in enumerate((*DECISIONS, None))}
    cells = np.zeros((len(rows), 12))
    for index, row in enumerate(rows):
        cells[index, 4 * DECISIONS.index(row["reference"]) + column[row["prediction"]]] = 1
    return ids_of(rows), cells


def calibrated(rows: Rows, fit: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows with calibrated `logits` and the resulting `prediction`."""
    corrected = []
    for row in rows:
        logits = {label: value / fit["temperature"] + fit["bias"][label] for label, value in row["logits"].items()}
        # If an API's likelihoods don't tell the labels apart, the decision is the label in the text.
        tied = len(set(logits.values())) == 1
        corrected.append(row | {"logits": logits, "prediction": row["prediction"] if tied else most_likely(logits)})
    return corrected


# Confidence


def probabilities(logits: dict[str, float]) -> dict[str, float]:
    """Return the softmax over the labels."""
    values = np.array(list(logits.values()))
    weights = np.exp(values - values.max())
    return dict(zip(logits, (weights / weights.sum()).tolist(), strict=True))


def confidences(rows: Rows) -> tuple[Array, NDArray[np.bool_]]:
    """Return two (n,) arrays: the probability of each item's most likely label, and whether the decision is correct."""
    confidence = [max(probabilities(row["logits"]).values()) for row in rows]
    return np.array(confidence), np.array([row["reference"] == row["prediction"] for row in rows])


def calibration_error(rows: Rows) -> Statistics:
    """Return the expected calibration error with ten bins of equal width (Guo et al. 2017, arXiv:1706.04599).

    The columns of the statistics are the sum of confidences and the number of correct decisions of each bin, and then
    the number of items.
    """
    confidence, right = confidences(rows)
    slots, every = _bins(confidence), np.arange(len(rows))
    bins = np.zeros((len(rows), 2 * BINS + 1))
    bins[every, 2 * slots], bins[every, 2 * slots + 1], bins[:, -1] = confidence, right, 1
    return Statistics(
        ids_of(rows), bins, lambda sums: np.abs(sums[..., 0:-1:2] - sums[..., 1:-1:2]).sum(axis=-1) / sums[..., -1]
    )


def brier_score(rows: Rows) -> Statistics:
    """Return the squared distance of the probabilities from the reference, summed over labels: 0 to 2 (Brier 1950)."""
    shares = [(probabilities(row["logits"]), row["reference"]) for row in rows]
    scores = [
        sum((each.get(label, 0.0) - (label == reference)) ** 2 for label in DECISIONS) for each, reference in shares
    ]
    return mean(ids_of(rows), scores)


def risk_area(rows: Rows) -> Statistics:
    """Return the area under the risk-coverage curve (Geifman et al. 2019, arXiv:1805.08206).

    The area is the mean, over all items, of the share of wrong decisions among the decisions with at least the item's
    confidence. Items of equal confidence form a group, so their order doesn't matter. The columns of the statistics are
    the number of items in each group, the most confident group first, and then the number of wrong decisions in each
    group.
    """
    confidence, right = confidences(rows)
    groups, count = _groups(-confidence)
    items = np.zeros((len(rows), 2 * count))
    every = np.arange(len(rows))
    items[every, groups], items[every, count + groups] = 1, ~right

    def area(sums: Array) -> Array:
        covered, missed = sums[..., :count].cumsum(axis=-1), sums[..., count:].cumsum(axis=-1)
        risks = missed / np.maximum(covered, 1)
        return np.asarray((sums[..., :count] * risks).sum(axis=-1) / covered[..., -1])

    return Statistics(ids_of(rows), items, area)


def reliability(rows: Rows) -> list[dict[str, float]]:
    """Return the nonempty bins of the calibration error.

    A bin has its bounds `from` and `to`, the number of `items`, their mean `confidence`, and the share of correct
    decisions (`right`, 0 to 1).
    """
    confidence, right = confidences(rows)
    slots = _bins(confidence)
    return [
        {
            "from": slot / BINS,
            "to": (slot + 1) / BINS,
            "items": int((slots == slot).sum()),
            "confidence": float(confidence[slots == slot].mean()),
            "right": float(right[slots == slot].mean()),
        }
        for slot in range(BINS)
        if (slots == slot).any()
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


def _bins(confidence: Array) -> NDArray[np.int64]:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def _groups(values: Array) -> tuple[NDArray[np.int64], int]:
    """Return (n,) group numbers, ascending with the values, and the number of groups; equal values form a group."""
    groups = np.unique(values, return_inverse=True)[1].reshape(-1)
    count = int(groups.max()) + 1
    return (groups, count) if count <= GROUPS else (groups * GROUPS // count, GROUPS)


# Claims


def claim_statistics(rows: Rows) -> dict[str, Statistics]:
    """Return `claim_accuracy` and so on, with `claim_auroc` only if some claims are supported and some aren't."""
    if not rows:
        return {}
    # Claims have the metrics of decisions, with each label replaced by its word.
    in_words = [
        row
        | {"reference": WORD_OF_LABEL[row["reference"]], "prediction": WORD_OF_LABEL[row["prediction"]]}
        | {"logits": {WORD_OF_LABEL[label]: value for label, value in row["logits"].items()}}
        for row in rows
    ]
    found = agreement(in_words) | {"ece": calibration_error(in_words)}
    if 0 < sum(row["reference"] == "supported" for row in rows) < len(rows):
        found["auroc"] = auroc(rows)
    return _prefixed("claim", found)


def corrected_claims(rows: Rows, correction: ClaimCorrection) -> dict[str, Any]:
    """Return the `threshold` of the correction and what the corrected claims give.

    `ece` is the calibration error of the corrected claims. `false_alarms` is the percentage of the supported claims
    (`supported`: their number) that fall below the threshold, with Wilson's `ci95`; None if no claim is supported.
    """
    corrected = []
    for row in rows:
        logits = correction.logits(row["logits"])
        corrected.append(row | {"logits": logits, "prediction": most_likely(logits)})
    true = [row for row in rows if row["reference"] == "supported"]
    below = sum(correction.probabilities(row["logits"])["supported"] < correction.threshold for row in true)
    return {
        "threshold": correction.threshold,
        "ece": claim_statistics(corrected)["claim_ece"].value(),
        "supported": len(true),
        "false_alarms": 100 * below / len(true) if true else None,
        "ci95": wilson(below, len(true)) if true else None,
    }


def auroc(rows: Rows) -> Statistics:
    """Return the area under the ROC curve of the probability of support; ties count half.

    Claims of equal probability form a group. The columns of the statistics are the number of supported claims in each
    group, in ascending order of probability, and then the number of other claims in each group.
    """
    groups, count = _groups(np.array([probabilities(row["logits"])["supported"] for row in rows]))
    supported = np.array([row["reference"] == "supported" for row in rows])
    items = np.zeros((len(rows), 2 * count))
    items[np.arange(len(rows)), groups + count * ~supported] = 1

    def area(sums: Array) -> Array:
        good, other = sums[..., :count], sums[..., count:]
        below = other.cumsum(axis=-1) - other / 2
        pairs = good.sum(axis=-1) * other.sum(axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((good * below).sum(axis=-1) / pairs)

    return Statistics(ids_of(rows), items, area)


def fit_correction(rows: Sequence[Mapping[str, Any]]) -> ClaimCorrection:
    """Return a correction with the temperature and biases that maximize the likelihood of the references.

    The method follows Platt (1999) and Guo et al. (2017, arXiv:1706.04599). Only sources with several labels are used,
    because a source with a single label says nothing about probabilities.
    """
    labels = _labels_of_sources(rows)
    mixed = [row for row in rows if len(labels[row["source"]]) > 1]
    bounds = [(-3.0, 3.0), *[(-5.0, 5.0)] * len(LABELS)]
    return ClaimCorrection(*fit_softmax(mixed, LABELS, PRIOR, bounds)) if mixed else ClaimCorrection()


def known_to_be_true(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the ids of the supported claims: only those of sources without other claims, if there are such sources."""
    labels = _labels_of_sources(rows)
    supported = [row for row in rows if row["reference"] == "supported"]
    true = [row for row in supported if len(labels[row["source"]]) == 1]
    return {row["id"] for row in true or supported}


def fit_threshold(support: Sequence[float]) -> float:
    """Return the highest threshold, up to 0.5, below which at most the share FALSE_ALARMS of true claims falls."""
    return min(0.5, sorted(support)[int(FALSE_ALARMS * len(support))])


def _labels_of_sources(rows: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    labels: dict[str, set[str]] = {}
    for row in rows:
        labels.setdefault(row["source"], set()).add(row["reference"])
    return labels


def fit_softmax(
    rows: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    prior: float,
    bounds: Sequence[tuple[float, float]],
    tol: float | None = None,
) -> tuple[float, dict[str, float]]:
    """Return the temperature, and the bias of each label, that maximize the likelihood of the rows' references.

    `prior` is the weight of the penalty on squared biases. `bounds` limits the temperature's logarithm, then each bias.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    logits = np.array([[row["logits"].get(label, -np.inf) for label in labels] for row in rows])
    right = [labels.index(row["reference"]) for row in rows]

    def loss(values: Array) -> float:
        likelihoods = log_softmax(logits / np.exp(values[0]) + values[1:], axis=1)[np.arange(len(rows)), right]
        return float(prior * (values[1:] ** 2).sum() / len(rows) - likelihoods.mean())

    found = minimize(loss, np.zeros(len(bounds)), method="L-BFGS-B", bounds=bounds, tol=tol).x
    return float(np.exp(found[0])), dict(zip(labels, map(float, found[1:]), strict=True))
