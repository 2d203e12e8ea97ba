"""Metrics of claims: how well a model distinguishes supported, refuted and unclear claims; and its calibration.

A row has `id`, `source`, `reference`, `prediction` and `logits` {label: logit}, with the labels that its source uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from meditune.data.example import LABELS
from meditune.evaluate.metrics import decision
from meditune.evaluate.metrics.confidence import calibration_error, probabilities
from meditune.evaluate.predictions import Predictions
from meditune.evidence.support_model import ClaimCorrection
from meditune.prompts import WORD_OF_LABEL
from meditune.statistics import Array, Metric, Statistics

METRICS = (
    Metric("claim_accuracy", "Claims, accuracy", "up", 1, "Correct labels of claims, in percent.", True, share=True),
    Metric("claim_macro_f1", "Claims, macro-F1", "up", 1, "Mean of the F1 of the labels of claims, in percent.", True),
    Metric(
        "claim_auroc",
        "Claims, AUROC",
        "up",
        3,
        "Chance that a supported claim gets a higher probability of support than another claim.",
        optional=True,
    ),
    Metric("claim_ece", "Claims, calibration error", "down", 3, "The same for the labels of claims.", True),
)
GROUPS = 500
"""Maximum number of distinct probabilities in the AUROC"""


def statistics(predictions: Predictions) -> dict[str, Statistics]:
    """Return the statistics of each metric that can be computed from the predictions."""
    rows = predictions.claim
    if not rows:
        return {}
    # The metrics of decisions, with each label's word in place of the label.
    in_words = [
        row
        | {"reference": WORD_OF_LABEL[row["reference"]], "prediction": WORD_OF_LABEL[row["prediction"]]}
        | {"logits": {WORD_OF_LABEL[label]: value for label, value in row["logits"].items()}}
        for row in rows
    ]
    found = decision.agreement(in_words) | {"ece": calibration_error(in_words)}
    if 0 < sum(row["reference"] == "supported" for row in rows) < len(rows):
        found["auroc"] = auroc(rows)
    return {f"claim_{name}": each for name, each in found.items()}


def auroc(rows: Sequence[Mapping[str, Any]]) -> Statistics:
    """Return the area under the ROC curve of the probability of support; ties count half.

    Columns: for each group of equal probability, in ascending order, the number of supported claims; then for each
    group the number of others.
    """
    score = np.array([probabilities(row["logits"])["supported"] for row in rows])
    groups = np.unique(score, return_inverse=True)[1].reshape(-1)
    count = int(groups.max()) + 1
    if count > GROUPS:
        groups, count = groups * GROUPS // count, GROUPS
    supported = np.array([row["reference"] == "supported" for row in rows])
    items = np.zeros((len(rows), 2 * count))
    items[np.arange(len(rows)), groups + count * ~supported] = 1

    def area(sums: Array) -> Array:
        good, other = sums[..., :count], sums[..., count:]
        below = other.cumsum(axis=-1) - other / 2
        pairs = good.sum(axis=-1) * other.sum(axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((good * below).sum(axis=-1) / pairs)

    return Statistics(tuple(row["id"] for row in rows), items, area)


def by_source(predictions: Predictions) -> dict[str, dict[str, float]]:
    """Return for each source of claims the number of `claims` and the metrics on them alone."""
    sources: dict[str, list[dict[str, Any]]] = {}
    for row in predictions.claim:
        sources.setdefault(row["source"], []).append(row)
    return {
        source: {"claims": float(len(rows))}
        | {name: each.value() for name, each in statistics(Predictions(claim=rows)).items()}
        for source, rows in sorted(sources.items())
    }


PRIOR = 0.05
"""Weight of the penalty on a bias, so that few claims or a missing label can't move it far"""


FALSE_ALARMS = 0.05
"""The share of supported dev claims that may fall below the threshold"""


def fit_correction(rows: Sequence[Mapping[str, Any]]) -> ClaimCorrection:
    """Return the temperature and biases that maximize the likelihood of the references, and the threshold.

    Sources with only one label say nothing about probabilities, so only the threshold is fitted to them: the highest,
    up to 0.5, below which at most FALSE_ALARMS of the supported claims fall. If there are such sources with supported
    claims, the threshold is fitted to them alone, since their claims are known to be true.

    After Platt (1999) and Guo et al. (2017, arXiv:1706.04599).
    """
    labels: dict[str, set[str]] = {}
    for row in rows:
        labels.setdefault(row["source"], set()).add(row["reference"])
    true = [row for row in rows if labels[row["source"]] == {"supported"}]
    mixed = [row for row in rows if len(labels[row["source"]]) > 1]
    correction = _fit_probabilities(mixed) if mixed else ClaimCorrection()
    supported = true or [row for row in rows if row["reference"] == "supported"]
    if supported:
        found = sorted(correction.probabilities(row["logits"])["supported"] for row in supported)
        correction = replace(correction, threshold=min(0.5, found[int(FALSE_ALARMS * len(found))]))
    return correction


def _fit_probabilities(rows: Sequence[Mapping[str, Any]]) -> ClaimCorrection:
    from scipy.optimize import minimize

    logits = np.array([[row["logits"].get(label, -np.inf) for label in LABELS] for row in rows])
    right = np.array([LABELS.index(row["reference"]) for row in rows])

    def loss(values: Array) -> float:
        corrected = logits / np.exp(values[0]) + values[1:]
        top = corrected.max(axis=1, keepdims=True)
        normalizer = top[:, 0] + np.log(np.exp(corrected - top).sum(axis=1))
        penalty = PRIOR * float((values[1:] ** 2).sum()) / len(rows)
        return float((normalizer - corrected[np.arange(len(right)), right]).mean()) + penalty

    found = minimize(loss, np.zeros(1 + len(LABELS)), method="L-BFGS-B", bounds=[(-3, 3), *[(-5, 5)] * len(LABELS)]).x
    return ClaimCorrection(float(np.exp(found[0])), dict(zip(LABELS, map(float, found[1:]), strict=True)))
