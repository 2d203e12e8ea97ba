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

The e-detectors of all signals of a kind together, so that a request costs a few array operations.

Maximum mean discrepancy of a block of requests from all before it, with an exact p-value.

The kernel is Gaussian with the median distance as its width (Gretton et al., "A Kernel Two-Sample Test", JMLR 2012),
through random Fourier features (Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", 2007), so a block
costs the same however many requests were before. The p-value is the block's rank among random blocks of everything
that came so far, the block itself included: exact under exchangeability, and independent of earlier blocks' p-values.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


def combined(paid: Floats) -> Floats:
    """(n,) the e-detector over time of e-values (n, ...): the mean over all bets."""
    found, statistics = np.empty(len(paid)), np.zeros(paid.shape[1:])
    for place, each in enumerate(paid):
        statistics = advanced(statistics, each)
        found[place] = statistics.mean()
    return found


def detector(reference: Floats, stream: Floats, coins: Floats) -> Floats:
    """(n,) the e-detector over time for one number: stream (n,) against reference (m,), coins (n,) for ties."""
    return combined(number_bets(p_values(reference, stream, coins)))


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


class Bank:
    """Bets (columns, bets) of several signals, whose columns follow one another."""

    def __init__(self, widths: Sequence[int], bets: int) -> None:
        """`widths`: columns of each signal."""
        columns = sum(widths)
        self.statistics = np.zeros((columns, bets))
        self.sums = np.zeros((columns, bets))
        self.starts = np.zeros((columns, bets), dtype=np.int64)
        self.means = np.zeros(len(widths))
        """The e-detector of each signal: the mean over its bets"""
        self._offsets = np.cumsum([0, *widths[:-1]]) if widths else np.zeros(0, dtype=np.int64)
        self._sizes = np.array(widths) * bets

    def pay(self, paid: Floats, count: int) -> None:
        """Take in what the bets pay (columns, bets) with a request; NaN where a signal knew nothing of it."""
        known = paid == paid
        np.copyto(self.statistics, advanced(self.statistics, paid), where=known)
        fresh = known & (self.sums < 1)
        self.starts[fresh] = count
        # CUSUM, only for when the winning bet began to win.
        np.copyto(self.sums, np.minimum(np.maximum(self.sums, 1) * paid, LARGEST), where=known)
        self.gather()

    def gather(self) -> None:
        """Bring the means up to date."""
        if len(self._sizes):
            self.means[:] = np.add.reduceat(self.statistics.sum(axis=1), self._offsets) / self._sizes

    def seat(self, signal: int) -> Seat:
        """A signal's part."""
        start = int(self._offsets[signal])
        stop = int(self._offsets[signal + 1]) if signal + 1 < len(self._offsets) else len(self.statistics)
        return Seat(self, signal, slice(start, stop))


class Seat:
    """One signal's part of a bank."""

    def __init__(self, bank: Bank, signal: int, rows: slice) -> None:
        self._bank, self._signal, self.rows = bank, signal, rows

    @property
    def statistic(self) -> float:
        """The signal's e-detector."""
        return float(self._bank.means[self._signal])

    def leading(self) -> tuple[int, int]:
        """The column of the bet with the most evidence, and the request at which that began to grow."""
        sums = self._bank.sums[self.rows]
        column, bet = np.unravel_index(int(sums.argmax()), sums.shape)
        return int(column), int(self._bank.starts[self.rows][column, bet])

    def restart(self) -> None:
        """Forget all evidence, as after an alert."""
        for array in (self._bank.statistics, self._bank.sums, self._bank.starts):
            array[self.rows] = 0
        self._bank.gather()

    def saved(self) -> dict[str, NDArray[Any]]:
        """The signal's evidence, as arrays."""
        return {name: getattr(self._bank, name)[self.rows].copy() for name in ("statistics", "sums", "starts")}

    def restore(self, kept: Mapping[str, NDArray[Any]]) -> None:
        """What `saved` gave."""
        for name in ("statistics", "sums", "starts"):
            getattr(self._bank, name)[self.rows] = kept[name]
        self._bank.gather()


Vectors = NDArray[np.float32]

BLOCK = 25
PERMUTATIONS = 499
FEATURES = 128


@dataclass(frozen=True)
class Kernel:
    """A Gaussian kernel as features."""

    weights: Vectors
    """(size, FEATURES)"""
    phases: Vectors
    """(FEATURES,)"""

    def features(self, vectors: Vectors) -> Vectors:
        """(n, FEATURES) features of vectors (n, size), whose dot products approach the kernel."""
        found: Vectors = np.sqrt(2 / FEATURES, dtype=np.float32) * np.cos(vectors @ self.weights + self.phases)
        return found


def kernel(vectors: Vectors, rng: np.random.Generator) -> Kernel:
    """The kernel whose width is the median distance of these vectors (n, size)."""
    first, second = rng.integers(len(vectors), size=(2, 2000))
    distances = np.linalg.norm(vectors[first] - vectors[second], axis=1)
    width = float(np.median(distances[distances > 0])) if np.any(distances > 0) else 1.0
    weights = rng.normal(scale=1 / width, size=(vectors.shape[1], FEATURES)).astype(np.float32)
    return Kernel(weights, rng.uniform(0, 2 * np.pi, FEATURES).astype(np.float32))


def block_test(pool: Vectors, block: Vectors, rng: np.random.Generator) -> tuple[float, float]:
    """The p-value of a block's features (b, FEATURES) among random blocks of pool and block, and its squared MMD.

    The squared MMD has its mean over the random blocks taken off, so it is about 0 without drift.
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
    """(PERMUTATIONS, size) rows of distinct numbers below count: drawn with repetition, rows with any drawn again."""
    found = rng.integers(count, size=(PERMUTATIONS, size))
    while True:
        ordered = np.sort(found, axis=1)
        repeated = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        if not repeated.any():
            return found
        found[repeated] = rng.integers(count, size=(int(repeated.sum()), size))
