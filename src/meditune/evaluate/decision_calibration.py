"""Calibration and abstention thresholds, fitted on the dev split or out of fold, and the dev metric during training."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from meditune.config.data_options import Task
from meditune.config.recipe import EvaluateSpec, Recipe
from meditune.data.example import DECISIONS, Example
from meditune.errors import DataError
from meditune.evaluate.metrics import summarize
from meditune.evaluate.metrics.decision import Rows, calibrated, confidences, fit_softmax, probabilities
from meditune.evaluate.predictions import Predictions
from meditune.evaluate.weights_backend import Scoring
from meditune.models.load import LoadedModel
from meditune.statistics import wilson

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Range in which the temperature is searched for"""
BIAS_SD, MAX_BIAS = 2.0, 10.0
"""Standard deviation of the biases' prior, and limit of a bias, in nats"""
MIN_PROBABILITY = 1e-9
"""Lower limit of a label's mean probability"""


def fit_calibration(predictions: Predictions, spec: EvaluateSpec) -> list[dict[str, Any]] | None:
    """Return one row with `id`, `method`, `temperature`, the `bias` of each label, and the number of dev `items`.

    Calibrated logits are logits / temperature + bias. Returns None if calibration is off, if there are no dev
    decisions, or if an API returned no likelihoods.
    """
    rows = predictions.dev_decision
    has_logits = all("logits" in row for row in (*rows, *predictions.decision))
    if spec.calibrate == "none" or not rows or not has_logits:
        return None
    temperature = 1.0
    if spec.calibrate in ("temperature", "bcts"):
        temperature, bias = _likeliest(rows, with_bias=spec.calibrate == "bcts")
    else:
        bias = _bias(rows, spec.calibrate == "prior")
    fit = {"id": spec.calibrate, "method": spec.calibrate, "temperature": temperature, "bias": bias}
    return [fit | {"items": len(rows)}]


def _likeliest(rows: Rows, with_bias: bool) -> tuple[float, dict[str, float]]:
    """Return the temperature that maximizes the references' likelihood (Guo et al. 2017, arXiv:1706.04599).

    With `with_bias`, a bias for each label is fitted at the same time: bias-corrected temperature scaling (BCTS,
    Alexandari et al. 2020, arXiv:1901.06852). A weak normal prior keeps a label without references possible.
    """
    # Only the differences between biases matter, so the first one is 0.
    free = (-MAX_BIAS, MAX_BIAS) if with_bias else (0.0, 0.0)
    bounds = [(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)), (0.0, 0.0), *[free] * (len(DECISIONS) - 1)]
    return fit_softmax(rows, DECISIONS, 1 / (2 * BIAS_SD**2), bounds, tol=1e-10)


def _bias(rows: Rows, to_prior: bool) -> dict[str, float]:
    """Return biases that divide a label's probability by its mean, and with `to_prior`, multiply it by its frequency.

    Without `to_prior`, this is batch calibration (Zhou et al. 2023, arXiv:2309.17249) with the dev split as the batch.
    Frequencies have add-one smoothing, so that a label without references on dev can still be predicted.
    """
    shares = [probabilities(row["logits"]) for row in rows]
    bias: dict[str, float] = {}
    for label in DECISIONS:
        mean = sum(each[label] for each in shares) / len(rows)
        seen = sum(row["reference"] == label for row in rows)
        prior = (seen + 1) / (len(rows) + len(DECISIONS)) if to_prior else 1.0
        bias[label] = math.log(prior) - math.log(max(mean, MIN_PROBABILITY))
    return bias


MIN_ITEMS = 10
"""Minimum number of dev items at or above a threshold, because a few items can all be correct by luck"""


def abstention(predictions: Predictions, target: float) -> dict[str, Any] | None:
    """Return the results with the `raw` confidence and, if there is a calibration, with the `calibrated` confidence.

    A result has `threshold`, fitted on dev by `threshold_for`, and `dev` and `test`, the results of `answered_at`. All
    three are None if no threshold reaches the target. The function returns None if there are no dev decisions, or if a
    dev or test decision has no likelihoods.
    """
    dev, test = predictions.dev_decision, predictions.decision
    if not dev or not all("logits" in row for row in (*dev, *test)):
        return None
    found = {"raw": _tried(dev, test, target)}
    for fit in predictions.calibration:
        found["calibrated"] = _tried(calibrated(dev, fit), calibrated(test, fit), target)
    return found


def threshold_for(rows: Rows, target: float) -> float | None:
    """Return the lowest threshold at which the accuracy of the kept rows is at least `target` (0 to 1), or None.

    A row is kept if its confidence reaches the threshold. At least MIN_ITEMS rows must be kept.
    """
    sure, right = confidences(rows)
    for candidate in sorted(set(sure.tolist())):
        selected = sure >= candidate
        if selected.sum() >= MIN_ITEMS and right[selected].mean() >= target:
            return float(candidate)
    return None


def answered_at(rows: Rows, threshold: float) -> dict[str, Any]:
    """Return the number of decisions `kept` because their confidence reaches `threshold`, and the number of all (`of`).

    Further keys, in percent: the `coverage`, the `accuracy` of the kept decisions, and its Wilson interval `ci95`
    (Wilson 1927). The last two are None if no decision is kept.
    """
    sure, right = confidences(rows)
    selected = sure >= threshold
    count, hits = int(selected.sum()), int(right[selected].sum())
    return {
        "kept": count,
        "of": len(rows),
        "coverage": 100 * count / len(rows),
        "accuracy": 100 * hits / count if count else None,
        "ci95": wilson(hits, count) if count else None,
    }


def _tried(dev: Rows, test: Rows, target: float) -> dict[str, Any]:
    threshold = threshold_for(dev, target)
    results = [None if threshold is None else answered_at(rows, threshold) for rows in (dev, test)]
    return {"threshold": threshold, "dev": results[0], "test": results[1]}


def dev_measure(
    loaded: LoadedModel, examples: Sequence[Example], recipe: Recipe
) -> Callable[[LoadedModel], float] | None:
    """Return a function that computes the metric named in `train.dev` for a model.

    Returns None if this measurement is off, or if the metric is the loss, which training computes itself. Only the
    tokenizer of `loaded` is used. Dev questions that are too long for the prompt are left out. Raises DataError if none
    is left.
    """
    dev = recipe.train.dev
    if not dev.is_on or dev.metric == "loss":
        return None
    encoder = loaded.encoder(recipe.prompt)
    task: Task = "answer" if dev.metric == "perplexity" else "decision"
    on_dev = [each for each in examples if (each.decision if task == "decision" else each.answer.strip())]
    fitting = encoder.fitting(on_dev, task)
    if not fitting:
        raise DataError(
            f"None of the {len(on_dev)} dev examples fits into prompt.max_tokens={encoder.format.max_tokens}. Raise it."
        )
    if left_out := len(on_dev) - len(fitting):
        print(f"{left_out} of {len(on_dev)} dev examples don't fit into the prompt and are left out.", file=sys.stderr)
    scoring = Scoring(encoder, *((fitting, []) if task == "decision" else ([], fitting)))

    def measure(trained: LoadedModel) -> float:
        predictions = scoring.predictions(trained, recipe.train.micro_batch_tokens, f"Measuring {dev.metric} on dev")
        return summarize(predictions)[dev.metric]

    return measure
