"""Effective numbers of groups, and how far two mixtures of groups lie apart."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, log

import numpy as np

DRAWS = 20


def shannon(counts: Mapping[str, float]) -> float:
    """Effective number of groups, exp of Shannon's entropy: Hill's number of order 1 (Hill 1973, Ecology 54:427-432).

    As many equally large groups have the same entropy. 0 without groups.
    """
    total = sum(counts.values())
    shares = [count / total for count in counts.values() if count]
    return exp(-sum(share * log(share) for share in shares)) if shares else 0.0


def simpson(counts: Mapping[str, float]) -> float:
    """Effective number of groups, the inverse of Simpson's index: Hill's number of order 2; large groups lead it."""
    total = sum(counts.values())
    return 1 / sum((count / total) ** 2 for count in counts.values()) if total else 0.0


def rarefied(counts: Mapping[str, int], share: float, seed: int) -> float:
    """`shannon` of a seeded draw of this share of what was counted, without putting back; the mean of DRAWS draws.

    More rows show more groups, so two sets are comparable only at the same size.
    """
    values = np.array([count for count in counts.values() if count], dtype=np.int64)
    size = round(share * int(values.sum()))
    if not size or share >= 1:
        return shannon(counts)
    drawn = np.random.default_rng(seed).multivariate_hypergeometric(values, size, size=DRAWS, method="marginals")
    return float(np.mean([shannon(dict(enumerate(row.tolist()))) for row in drawn]))  # type: ignore[arg-type]


def distance(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Total variation distance of two mixtures, 0 to 1: the share of either that must change to give the other."""
    sums = sum(first.values()), sum(second.values())
    if not all(sums):
        return float(any(sums))
    names = first.keys() | second.keys()
    return sum(abs(first.get(name, 0) / sums[0] - second.get(name, 0) / sums[1]) for name in names) / 2
