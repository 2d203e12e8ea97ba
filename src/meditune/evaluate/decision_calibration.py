"""Fitting what corrects a model's decisions, on its decisions on the dev split and on nothing else.

Abstaining: how sure a model must be on dev to be right often enough, and what that gives on the measured items.

Figures on the dev split while a model is trained, for `train.dev`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from meditune.config.recipe import EvaluateSpec, Recipe
from meditune.data.example import DECISIONS, Example
from meditune.evaluate.evaluator import Scoring
from meditune.evaluate.metrics import summarise
from meditune.evaluate.metrics.confidence import Rows, confidences, probabilities
from meditune.evaluate.metrics.decision import calibrated
from meditune.evaluate.predictions import Predictions
from meditune.models.load import LoadedModel
from meditune.statistics import wilson

COLDEST, HOTTEST = 0.05, 20.0
"""Temperatures that are tried"""
LEAST = 1e-9
"""Mean probability below which a label's isn't taken for less"""


def fit_calibration(predictions: Predictions, spec: EvaluateSpec) -> list[dict[str, Any]] | None:
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


def answered_at(rows: Rows, threshold: float) -> dict[str, Any]:
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
    return {"threshold": threshold, "dev": answered_at(dev, threshold), "test": answered_at(test, threshold)}


def dev_measure(
    loaded: LoadedModel, examples: Sequence[Example], recipe: Recipe
) -> Callable[[LoadedModel], float] | None:
    """What gives the metric of `train.dev` for a model, or None where training measures it itself, or nothing.

    `loaded` lends its tokenizer. Raises DataError where a dev question is too long for the prompt.
    """
    dev = recipe.train.dev
    if not dev.is_on or dev.metric == "loss":
        return None
    decided = [example for example in examples if example.decision and dev.metric != "perplexity"]
    answered = [example for example in examples if example.answer.strip() and dev.metric == "perplexity"]
    scoring = Scoring(loaded.encoder(recipe.prompt), decided, answered)

    def measure(trained: LoadedModel) -> float:
        predictions = scoring.predictions(trained, recipe.evaluate.batch_tokens, f"Measuring {dev.metric} on dev")
        return summarise(predictions)[dev.metric]

    return measure
