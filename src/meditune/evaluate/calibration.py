"""Fitting what corrects a model's decisions, on its decisions on the dev split and on nothing else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from meditune.data.example import DECISIONS
from meditune.evaluate.metrics.confidence import Rows, probabilities
from meditune.evaluate.predictions import Predictions
from meditune.recipe import EvaluateSpec

COLDEST, HOTTEST = 0.05, 20.0
"""Temperatures that are tried"""
LEAST = 1e-9
"""Mean probability below which a label's isn't taken for less"""


def fitted(predictions: Predictions, spec: EvaluateSpec) -> list[dict[str, Any]] | None:
    """One row: `id` and `method`, the `temperature`, the `bias` of each label, and how many dev `items` gave them.

    Corrected logits are logits / temperature + bias. None where nothing is asked for, there are no dev decisions, or
    an API tells no likelihoods.
    """
    rows = predictions.dev_decision
    told = all("logits" in row for row in (*rows, *predictions.decision))
    if spec.calibrate == "none" or not rows or not told:
        return None
    sharpness = spec.calibrate == "temperature"
    return [
        {
            "id": spec.calibrate,
            "method": spec.calibrate,
            "temperature": _temperature(rows) if sharpness else 1.0,
            "bias": dict.fromkeys(DECISIONS, 0.0) if sharpness else _bias(rows, spec.calibrate == "prior"),
            "items": len(rows),
        }
    ]


def _temperature(rows: Rows) -> float:
    """The T that makes the references likeliest when logits are divided by it (Guo et al. 2017, arXiv:1706.04599)."""
    from scipy.optimize import minimize_scalar

    logits = np.array([[row["logits"][label] for label in DECISIONS] for row in rows])
    right = np.array([DECISIONS.index(row["reference"]) for row in rows])

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(right)), right]).mean())

    bounds = (math.log(COLDEST), math.log(HOTTEST))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)


def _bias(rows: Rows, to_prior: bool) -> dict[str, float]:
    """What takes each label's mean probability away; with `to_prior`, what puts its frequency in that place.

    Without, this is batch calibration (Zhou et al. 2023, arXiv:2309.17249) with the dev split as the batch.
    Frequencies are counted with one more of each label, so that a label that dev lacks isn't ruled out.
    """
    shares = [probabilities(row["logits"]) for row in rows]
    bias: dict[str, float] = {}
    for label in DECISIONS:
        mean = sum(each[label] for each in shares) / len(rows)
        seen = sum(row["reference"] == label for row in rows)
        prior = (seen + 1) / (len(rows) + len(DECISIONS)) if to_prior else 1.0
        bias[label] = math.log(prior) - math.log(max(mean, LEAST))
    return bias
