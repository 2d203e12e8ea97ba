"""Is the tuned model better than the base? Paired statistics on the same items."""

from __future__ import annotations

from typing import Any

import numpy as np

from meditune.errors import DataError
from meditune.evaluate.metrics import METRICS, Metric, Statistics, statistics_of
from meditune.evaluate.predictions import Predictions

BLOCK = 500


def compare(base: Predictions, tuned: Predictions, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """For every metric that both have: delta (tuned - base), ci95, p, better, and the test behind p.

    A metric whose best value is 1 (length_ratio) has the delta of its distance from 1.
    The interval is the paired bootstrap's percentile interval over items (Efron and Tibshirani 1993). p is
    two-sided: McNemar's exact test (McNemar 1947) for accuracy, the bootstrap's elsewhere. `better` is True or False
    where the interval excludes 0 on the good or the bad side, and None where it doesn't.

    Raises DataError where the two were measured on different items.
    """
    first, second = statistics_of(base), statistics_of(tuned)
    result = {}
    for name in first:
        if name not in second:
            continue
        if first[name].ids != second[name].ids:
            raise DataError(
                f"The two models' {name} was measured on different items, so their difference says nothing. Evaluate "
                "both with the same recipe and seed, and the same version of Python."
            )
        result[name] = _bootstrap(METRICS[name], first[name], second[name], resamples, seed)
    if "accuracy" in result:
        result["accuracy"] |= {"p": mcnemar(base, tuned), "test": "McNemar, exact"}
    return result


def mcnemar(base: Predictions, tuned: Predictions) -> float:
    """Two-sided exact p of McNemar's test that both models are right equally often."""
    from scipy.stats import binomtest

    gained = lost = 0
    for before, after in zip(base.decision, tuned.decision, strict=True):
        was, now = (row["reference"] == row["prediction"] for row in (before, after))
        gained += now and not was
        lost += was and not now
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _bootstrap(metric: Metric, base: Statistics, tuned: Statistics, resamples: int, seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    count = len(base.ids)
    deltas = np.empty(resamples)
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)
        deltas[start : start + size] = _gap(metric, tuned.figure(drawn @ tuned.items), base.figure(drawn @ base.items))
    low, high = np.percentile(deltas, [2.5, 97.5])
    tail = min((deltas <= 0).sum(), (deltas >= 0).sum())
    good_low, good_high = (low, high) if metric.direction == "up" else (-high, -low)
    return {
        "delta": float(_gap(metric, tuned.value(), base.value())),
        "ci95": [float(low), float(high)],
        "p": float(min(1.0, 2 * (tail + 1) / (resamples + 1))),
        "better": True if good_low > 0 else False if good_high < 0 else None,
        "test": "paired bootstrap",
    }


def _gap(metric: Metric, tuned: Any, base: Any) -> Any:
    """Tuned minus base; for a metric whose best value is 1, of the distances from it."""
    return np.abs(tuned - 1) - np.abs(base - 1) if metric.direction == "one" else tuned - base


def got_worse(comparison: dict[str, dict[str, Any]]) -> list[str]:
    """Names of the metrics that moved the wrong way, whether or not the interval excludes 0.

    A move that vanishes in the digits shown counts only where it is shown to be worse.
    """
    worse = []
    for name, row in comparison.items():
        metric = METRICS[name]
        wrong = row["delta"] < 0 if metric.direction == "up" else row["delta"] > 0
        if wrong and (row["better"] is False or round(row["delta"], metric.digits) != 0):
            worse.append(name)
    return worse
