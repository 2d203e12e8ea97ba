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
        other = _in_order(name, first[name], second[name])
        result[name] = _bootstrap(METRICS[name], first[name], other, resamples, seed)
    if "accuracy" in result:
        later = {row["id"]: row for row in tuned.decision}
        same_order = Predictions(decision=[later[row["id"]] for row in base.decision])
        result["accuracy"] |= {"p": mcnemar(base, same_order), "test": "McNemar, exact"}
    return result


def _in_order(name: str, first: Statistics, second: Statistics) -> Statistics:
    """`second` with its items in the order of `first`. Raises DataError where they aren't the same items."""
    if first.ids == second.ids:
        return second
    place = {each: index for index, each in enumerate(second.ids)}
    lacking = [each for each in first.ids if each not in place]
    further = sorted(place.keys() - set(first.ids))
    if lacking or further:
        sides = [
            f"{len(ids)} only in the {side} ({', '.join(ids[:3])}{' ...' if len(ids) > 3 else ''})"
            for side, ids in (("first", lacking), ("second", further))
            if ids
        ]
        raise DataError(
            f"The two models' {name} was measured on different items, so their difference says nothing: "
            f"{', '.join(sides)}. Evaluate both with the same recipe and seed, and the same version of Python."
        )
    return Statistics(first.ids, second.items[[place[each] for each in first.ids]], second.figure)


def mcnemar(base: Predictions, tuned: Predictions) -> float:
    """Two-sided exact p of McNemar's test that both models are right equally often; their rows in the same order."""
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
