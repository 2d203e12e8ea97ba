"""How sure a figure is that rests on a few questions: whole clusters are drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any
RESAMPLES = 2000


def resampled(each: Array, clusters: Sequence[Any] | None, seed: int) -> Array:
    """(RESAMPLES, k) sums of (units, k) over units drawn with replacement, those of one cluster together.

    (0, k) where there are fewer than two clusters, which say nothing about how figures vary.
    """
    numbers: dict[Any, int] = {}
    place = np.array([numbers.setdefault(key, len(numbers)) for key in (clusters or range(len(each)))])
    if len(numbers) < 2:
        return np.zeros((0, each.shape[1]))
    sums = np.zeros((len(numbers), each.shape[1]))
    np.add.at(sums, place, each)
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    return draws @ sums


def interval(figures: Array) -> tuple[float, float] | None:
    """The 95 % percentile interval (Efron and Tibshirani 1993) of those that are defined; None where none is."""
    defined = figures[~np.isnan(figures)]
    if not len(defined):
        return None
    # What is off zero by the arithmetic alone must not exclude it.
    low, high = np.round(np.percentile(defined, [2.5, 97.5]), 9) + 0.0
    return float(low), float(high)
