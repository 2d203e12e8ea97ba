"""The statistics of drift detection: conformal p-values, bets, e-detectors, and block tests.

A request's score is ranked among all earlier scores. If requests are exchangeable (every order is equally likely),
these conformal p-values are independent and uniform (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random
World", 2005, theorem 8.2; the scores must be fixed functions, so they are learned from requests that aren't ranked). A
bet is a density on [0, 1]; what it pays for a p-value is an e-value, with mean 1 under no drift. Shiryaev and Roberts's
sum over all possible times of the change makes an e-detector (Shin, Ramdas and Rinaldo, "E-detectors", 2023,
arXiv:2203.03532), whose mean after n requests without drift is at most n. By Doob's inequality, it reaches a threshold
c within n requests with a probability of at most n / c, however often it is checked; the same holds for any mean of
e-detectors.

By contrast, repeated tests with a fixed p-value on a sliding window keep raising false alarms, and tests against a
fixed sample eventually detect the random deviations of that sample.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

POWERS = (0.1, 0.3, 0.6)
"""Exponents k of the bets k p^(k-1) on one end of the scale; a smaller k bets on more extreme values."""
TAIL_POWER = 0.4
ODDS = (1 / 8, 1 / 2.5, 2.5, 8.0, 64.0)
"""Factors by which the odds of a category may have changed"""
BLOCK_POWERS = (0.2, 0.5)
MAX_STATISTIC = 1e30
"""Upper limit of the statistics, so that they fall again soon after a change ends"""

MIN_P = 1e-12
_POWERS = np.array(POWERS)
_EXPONENTS = np.array([*POWERS, TAIL_POWER]) - 1


def p_value(pool: list[float], value: float, coin: float) -> float:
    """Return the smoothed rank of a value among a sorted pool and itself, in (0, 1); small for large values."""
    below, up_to = bisect_left(pool, value), bisect_right(pool, value)
    return (len(pool) - up_to + coin * (1 + up_to - below)) / (len(pool) + 1)


def share_p_values(counts: Floats, is_member: NDArray[np.bool_], size: float, coins: Floats) -> Floats:
    """Return (k,) the p-values of k categories, given their counts (k,) in a pool of `size` and the new value."""
    shares = (counts + is_member) / (size + 1)
    return np.where(is_member, coins * shares, shares + coins * (1 - shares))


def number_bets(p: Floats) -> Floats:
    """Return (..., 8) what each bet pays for p-values (...): on larger values, smaller ones, both ends, the middle."""
    low, high = np.maximum(p, MIN_P)[..., None], np.maximum(1 - p, MIN_P)[..., None]
    down, up = low**_EXPONENTS, high**_EXPONENTS
    ends = 0.5 * TAIL_POWER * (down[..., -1:] + up[..., -1:])
    return np.concatenate([_POWERS * down[..., :-1], _POWERS * up[..., :-1], ends, 6 * low * high], axis=-1)


def share_bets(p: Floats, shares: Floats) -> Floats:
    """Return the (k, 5) payoffs, for p-values (k,), of bets that the categories' shares (k,) changed by ODDS.

    `shares` are fixed, those of the reference: bets that depend on the pool wouldn't be independent of earlier bets.
    """
    given = shares[:, None]
    odds = np.array(ODDS) * given / (1 - given)
    shifted = odds / (1 + odds)
    return np.where(p[:, None] < given, shifted / given, (1 - shifted) / (1 - given))


def block_bets(p: Floats) -> Floats:
    """Return (..., 2) what bets pay for small p-values (...) of whole blocks."""
    powers = np.array(BLOCK_POWERS)
    paid: Floats = powers * np.maximum(p, MIN_P)[..., None] ** (powers - 1)
    return paid


def advanced(statistics: Floats, payoffs: Floats) -> Floats:
    """Return the e-detectors after one more e-value each: (1 + R) e."""
    return np.minimum((1 + statistics) * payoffs, MAX_STATISTIC)


def threshold(false_alarms: float, requests: int, signals: int) -> float:
    """Return the threshold of each signal for at most `false_alarms` expected false alarms in `requests` without drift.

    It applies Bonferroni's correction for the number of signals; the e-detector itself corrects over time.
    """
    return requests * signals / false_alarms


def delta(p: Floats) -> float:
    """Return Cliff's delta of the values behind p-values (n,) against their pool, in [-1, 1]; 0: no difference, 1: all
    larger.

    If the ends changed more than the sides differ, return the size of that change, scaled to the same random spread.
    """
    if not len(p):
        return 0.0
    side, ends = 1 - 2 * float(p.mean()), 4 * (float(np.abs(p - 0.5).mean()) - 0.25)
    return side if abs(side) >= abs(ends) else abs(ends)


def cohens_h(share: float, before: float) -> float:
    """Return Cohen's signed effect size h of two shares (Cohen, "Statistical Power Analysis", 1988, chapter 6)."""
    return float(2 * np.arcsin(np.sqrt(share)) - 2 * np.arcsin(np.sqrt(before)))


class EDetector:
    """The e-detector of one signal, with its bets (columns, bets)."""

    def __init__(self, columns: int, bets: int) -> None:
        self._bets = {name: np.zeros((columns, bets)) for name in ("statistics", "sums", "starts")}
        self.statistic = 0.0
        """The mean over all bets"""

    def add_payoffs(self, payoffs: Floats, count: int) -> None:
        """Add the payoffs (columns, bets) of a request."""
        bets = self._bets
        bets["statistics"] = advanced(bets["statistics"], payoffs)
        self.statistic = float(bets["statistics"].mean())
        # CUSUM, used only to find when the winning bet began to win.
        bets["starts"][bets["sums"] < 1] = count
        bets["sums"] = np.minimum(np.maximum(bets["sums"], 1) * payoffs, MAX_STATISTIC)

    def strongest_bet(self) -> tuple[int, int]:
        """Return the column of the bet with the most evidence, and the request at which that evidence began to grow."""
        sums = self._bets["sums"]
        column, bet = np.unravel_index(int(sums.argmax()), sums.shape)
        return int(column), int(self._bets["starts"][column, bet])

    def restart(self) -> None:
        """Reset all evidence, as after an alert."""
        self.restore({name: np.zeros_like(array) for name, array in self._bets.items()})

    def saved(self) -> dict[str, NDArray[Any]]:
        """Return the evidence as arrays."""
        return dict(self._bets)

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore the arrays that `saved` returned."""
        self._bets = {name: np.array(state[name], dtype=np.float64) for name in self._bets}
        self.statistic = float(self._bets["statistics"].mean())


Vectors = NDArray[np.float32]

BLOCK = 25
PERMUTATIONS = 499
FEATURES = 128


@dataclass(frozen=True)
class Kernel:
    """A Gaussian kernel approximated by random Fourier features (Rahimi and Recht, "Random Features for Large-Scale
    Kernel Machines", 2007).

    The cost of a block doesn't depend on the number of earlier requests.
    """

    weights: Vectors
    """(size, FEATURES)"""
    phases: Vectors
    """(FEATURES,)"""

    def features(self, vectors: Vectors) -> Vectors:
        """Return (n, FEATURES) features of vectors (n, size), whose dot products approximate the kernel."""
        found: Vectors = np.sqrt(2 / FEATURES, dtype=np.float32) * np.cos(vectors @ self.weights + self.phases)
        return found


def kernel(vectors: Vectors, rng: np.random.Generator) -> Kernel:
    """Return a kernel whose width is the median distance of these vectors (n, size) (Gretton et al., "A Kernel
    Two-Sample Test", JMLR 2012).
    """
    first, second = rng.integers(len(vectors), size=(2, 2000))
    distances = np.linalg.norm(vectors[first] - vectors[second], axis=1)
    width = float(np.median(distances[distances > 0])) if np.any(distances > 0) else 1.0
    weights = rng.normal(scale=1 / width, size=(vectors.shape[1], FEATURES)).astype(np.float32)
    return Kernel(weights, rng.uniform(0, 2 * np.pi, FEATURES).astype(np.float32))


def block_test(pool: Vectors, block: Vectors, rng: np.random.Generator) -> tuple[float, float]:
    """Return the p-value of a block's features (b, FEATURES) and its squared maximum mean discrepancy (MMD).

    The p-value is the block's rank among random blocks of pool and block: exact under exchangeability, and independent
    of the p-values of earlier blocks. The mean over the random blocks is subtracted from the squared MMD, so that it is
    about 0 without drift.
    """
    everything = np.concatenate([pool, block])
    centre = everything.mean(axis=0)
    chosen = _distinct(len(everything), len(block), rng)
    distances = ((everything[chosen].mean(axis=1) - centre) ** 2).sum(axis=1)
    own = float(((block.mean(axis=0) - centre) ** 2).sum())
    larger, ties = int((distances > own).sum()), int((distances == own).sum())
    p = (larger + rng.random() * (1 + ties)) / (PERMUTATIONS + 1)
    return p, own - float(distances.mean())


def _distinct(count: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return (PERMUTATIONS, size) rows of distinct numbers below count; rows with repetitions are drawn again."""
    found = rng.integers(count, size=(PERMUTATIONS, size))
    while True:
        ordered = np.sort(found, axis=1)
        repeated = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        if not repeated.any():
            return found
        found[repeated] = rng.integers(count, size=(int(repeated.sum()), size))
