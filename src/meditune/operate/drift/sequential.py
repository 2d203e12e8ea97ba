"""The statistical core: is the next request still one like those before it? Pure functions over arrays.

A request's score is ranked among all scores before it. As long as requests are exchangeable (any order of them would
be as likely), these conformal p-values are independent and uniform, whatever the scores are (Vovk, Gammerman and
Shafer, "Algorithmic Learning in a Random World", 2005, theorem 8.2; the scores must be fixed functions, so they are
learned from requests that aren't ranked). A bet is a density on [0, 1]: what it pays for a p-value is an e-value, of
mean 1 under no drift. Products of these are gathered by Shiryaev and Roberts's sum over all possible times of the
change, which makes an e-detector (Shin, Ramdas and Rinaldo, "E-detectors", 2023, arXiv:2203.03532): its mean after n
requests without drift is at most n. So by Doob's inequality it reaches a threshold c within n requests with a
probability of at most n / c, however often one looks, and the same holds for any mean of e-detectors.

What this avoids: a test that is repeated on a sliding window with a fixed p-value raises false alarms without end, and
one against a fixed sample in time finds the sample's own chance deviations.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

POWERS = (0.1, 0.3, 0.6)
"""Exponents of bets on an end of the scale: k p^(k-1). The smaller, the more it bets on extreme values."""
ENDS = 0.4
ODDS = (1 / 8, 1 / 2.5, 2.5, 8.0, 64.0)
"""By how much the odds of a category may have changed"""
BLOCK_POWERS = (0.2, 0.5)
LARGEST = 1e30
"""Where statistics end, so that they come down again soon after a change that went"""

LEAST_P = 1e-12
_POWERS = np.array(POWERS)
_EXPONENTS = np.array([*POWERS, ENDS]) - 1


def p_values(reference: Floats, stream: Floats, coins: Floats) -> Floats:
    """(n,) the smoothed rank of each stream value (n,) among the reference (m,) and the stream up to itself.

    Small where the value is large. `coins` (n,), uniform on [0, 1], decide ties.
    """
    pool = sorted(reference.tolist())
    found = np.empty(len(stream))
    for place, (value, coin) in enumerate(zip(stream.tolist(), coins.tolist(), strict=True)):
        found[place] = p_value(pool, value, coin)
        pool.insert(bisect_right(pool, value), value)
    return found


def p_value(pool: list[float], value: float, coin: float) -> float:
    """The smoothed rank of a value among a sorted pool and itself, in (0, 1); small where it is large."""
    below, up_to = bisect_left(pool, value), bisect_right(pool, value)
    return (len(pool) - up_to + coin * (1 + up_to - below)) / (len(pool) + 1)


def share_p_values(counts: Floats, inside: NDArray[np.bool_], size: float, coins: Floats) -> Floats:
    """(k,) the same for k categories: their counts (k,) in a pool of `size`, and whether the new value is in each."""
    shares = (counts + inside) / (size + 1)
    return np.where(inside, coins * shares, shares + coins * (1 - shares))


def number_bets(p: Floats) -> Floats:
    """(..., 8) what each bet pays for p-values (...): larger values, smaller ones, both ends, the middle."""
    low, high = np.maximum(p, LEAST_P)[..., None], np.maximum(1 - p, LEAST_P)[..., None]
    down, up = low**_EXPONENTS, high**_EXPONENTS
    ends = 0.5 * ENDS * (down[..., -1:] + up[..., -1:])
    return np.concatenate([_POWERS * down[..., :-1], _POWERS * up[..., :-1], ends, 6 * low * high], axis=-1)


def share_bets(p: Floats, shares: Floats) -> Floats:
    """(k, 5) what bets pay on the shares (k,) of categories having changed by ODDS, for p-values (k,).

    `shares` are those of the reference, fixed: a bet that knew the pool wouldn't be independent of earlier ones.
    """
    given = shares[:, None]
    odds = np.array(ODDS) * given / (1 - given)
    wanted = odds / (1 + odds)
    paid = np.where(p[:, None] < given, wanted / given, (1 - wanted) / (1 - given))
    # NaN, where nothing is known, is smaller than nothing.
    paid[np.isnan(p)] = np.nan
    return paid


def block_bets(p: Floats) -> Floats:
    """(..., 2) what bets pay on small p-values (...) of whole blocks."""
    powers = np.array(BLOCK_POWERS)
    paid: Floats = powers * np.maximum(p, LEAST_P)[..., None] ** (powers - 1)
    return paid


def advanced(statistics: Floats, paid: Floats) -> Floats:
    """The e-detectors after one more e-value each: (1 + R) e."""
    return np.minimum((1 + statistics) * paid, LARGEST)


def gathered(paid: Floats) -> Floats:
    """(n,) the e-detector over time of e-values (n, ...): the mean over all bets."""
    found, statistics = np.empty(len(paid)), np.zeros(paid.shape[1:])
    for place, each in enumerate(paid):
        statistics = advanced(statistics, each)
        found[place] = statistics.mean()
    return found


def detector(reference: Floats, stream: Floats, coins: Floats) -> Floats:
    """(n,) the e-detector over time for one number: stream (n,) against reference (m,), coins (n,) for ties."""
    return gathered(number_bets(p_values(reference, stream, coins)))


def threshold(alarms: float, requests: int, signals: int) -> float:
    """What each of so many signals must reach so that `requests` undrifted ones bring at most `alarms` false alarms.

    Bonferroni's correction over the signals; that over time is in the e-detector.
    """
    return requests * signals / alarms


def delta(p: Floats) -> float:
    """Cliff's delta of the values behind p-values (n,) against their pool, in [-1, 1]: 0 no difference, 1 all larger.

    Where the ends gained or lost more than the sides differ, how much, with the same spread by chance.
    """
    if not len(p):
        return 0.0
    side, ends = 1 - 2 * float(p.mean()), 4 * (float(np.abs(p - 0.5).mean()) - 0.25)
    return side if abs(side) >= abs(ends) else abs(ends)


def cohens_h(share: float, before: float) -> float:
    """Cohen's effect size of two shares, signed (Cohen, "Statistical Power Analysis", 1988, chapter 6)."""
    return float(2 * np.arcsin(np.sqrt(share)) - 2 * np.arcsin(np.sqrt(before)))
