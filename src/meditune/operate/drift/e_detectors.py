"""The statistics of drift detection: conformal p-values, bets, e-detectors, block tests, and the track of each signal.

Each request has a score, whose rank among all earlier scores gives a conformal p-value. If requests are exchangeable
(every order is equally likely), these p-values are independent and uniform (Vovk, Gammerman and Shafer, "Algorithmic
Learning in a Random World", 2005, theorem 8.2). This requires fixed score functions, so they are learned from requests
that aren't ranked. A bet is a density on [0, 1]. Its payoff for a p-value is an e-value, whose expected value is 1
without drift. The Shiryaev-Roberts sum over all possible times of the change is an e-detector (Shin, Ramdas and
Rinaldo, "E-detectors", 2023, arXiv:2203.03532), whose expected value after n requests without drift is at most n. By
Doob's inequality, it reaches a threshold c within n requests with a probability of at most n / c, however often it is
checked. The same holds for any mean of e-detectors.

By contrast, repeated tests at a fixed significance level on a sliding window keep raising false alarms, and tests
against a fixed sample eventually detect the random deviations of that sample.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]
Value = float | str | None
Effect = Literal["Cliff's delta", "Cohen's h", "MMD"]

POWERS = (0.1, 0.3, 0.6)
"""Values of k in the bets k p^(k-1) on one end of the scale; a bet with a smaller k is on more extreme values."""
TAIL_POWER = 0.4
ODDS = (1 / 8, 1 / 2.5, 2.5, 8.0, 64.0)
"""Factors by which the odds of a category may have changed"""
RARE = 10
"""A category that occurs in the reference fewer times than this is compared with its share in the pool"""
BLOCK_POWERS = (0.2, 0.5)
MAX_STATISTIC = 1e30
"""Upper limit of the statistics, so that they fall again soon after a change ends"""

MIN_P = 1e-12
_POWERS = np.array(POWERS)
_EXPONENTS = np.array([*POWERS, TAIL_POWER]) - 1


def p_value(pool: list[float], value: float, coin: float) -> float:
    """Return the conformal p-value of a value against a sorted pool, in (0, 1); large values have small p-values.

    `coin`, which is random in (0, 1), breaks ties.
    """
    below, up_to = bisect_left(pool, value), bisect_right(pool, value)
    return (len(pool) - up_to + coin * (1 + up_to - below)) / (len(pool) + 1)


def share_p_values(counts: Floats, is_member: NDArray[np.bool_], size: float, coins: Floats) -> Floats:
    """Return the p-values (k,) of k categories, given their counts (k,) in a pool of `size` values.

    `is_member` (k,) shows which category a new value has; `coins` (k,) are random in (0, 1).
    """
    shares = (counts + is_member) / (size + 1)
    return np.where(is_member, coins * shares, shares + coins * (1 - shares))


def number_bets(p: Floats) -> Floats:
    """Return the payoffs (..., 8), for p-values (...), of bets on large values, small values, both ends, the middle."""
    low, high = np.maximum(p, MIN_P)[..., None], np.maximum(1 - p, MIN_P)[..., None]
    down, up = low**_EXPONENTS, high**_EXPONENTS
    ends = 0.5 * TAIL_POWER * (down[..., -1:] + up[..., -1:])
    return np.concatenate([_POWERS * down[..., :-1], _POWERS * up[..., :-1], ends, 6 * low * high], axis=-1)


def share_bets(p: Floats, shares: Floats) -> Floats:
    """Return the payoffs (k, 5) for p-values (k,), with one bet for each factor in ODDS.

    Each bet is that the odds of a category, given by its expected share (k,), changed by that factor.
    """
    given = shares[:, None]
    odds = np.array(ODDS) * given / (1 - given)
    shifted = odds / (1 + odds)
    return np.where(p[:, None] < given, shifted / given, (1 - shifted) / (1 - given))


def block_bets(p: Floats) -> Floats:
    """Return the payoffs (..., 2), for the p-values (...) of blocks, of bets on small p-values."""
    powers = np.array(BLOCK_POWERS)
    paid: Floats = powers * np.maximum(p, MIN_P)[..., None] ** (powers - 1)
    return paid


def advanced(statistics: Floats, payoffs: Floats) -> Floats:
    """Return (1 + R) e: the e-detectors R, each updated with one more e-value e."""
    return np.minimum((1 + statistics) * payoffs, MAX_STATISTIC)


def threshold(false_alarms: float, requests: int, signals: int) -> float:
    """Return the threshold for each of `signals` signals.

    At this threshold, `requests` requests without drift are expected to cause at most `false_alarms` false alarms, over
    all signals (Bonferroni).
    """
    return requests * signals / false_alarms


def delta(p: Floats) -> float:
    """Return Cliff's delta, in [-1, 1], of values against their pool, computed from the values' p-values (n,).

    Cliff's delta is 1 if all values are larger than the pool's. If the spread of the values changed more than their
    location, return the size of the change in spread instead, scaled to the same variance without drift.
    """
    if not len(p):
        return 0.0
    side, ends = 1 - 2 * float(p.mean()), 4 * (float(np.abs(p - 0.5).mean()) - 0.25)
    return side if abs(side) >= abs(ends) else abs(ends)


def cohens_h(share: float, before: float) -> float:
    """Return Cohen's signed effect size h of two shares (Cohen, "Statistical Power Analysis", 1988, chapter 6)."""
    return float(2 * np.arcsin(np.sqrt(share)) - 2 * np.arcsin(np.sqrt(before)))


class EDetector:
    """The e-detector of one signal, with arrays of shape (columns, bets)."""

    def __init__(self, columns: int, bets: int) -> None:
        self.bets = {name: np.zeros((columns, bets)) for name in ("statistics", "sums", "starts")}

    @property
    def statistic(self) -> float:
        """The mean of the e-detectors of all bets."""
        return float(self.bets["statistics"].mean())

    def add_payoffs(self, payoffs: Floats, count: int) -> None:
        """Add the payoffs (columns, bets) of a request."""
        bets = self.bets
        bets["statistics"] = advanced(bets["statistics"], payoffs)
        # CUSUM, used only to find the request at which the strongest bet's evidence began to grow.
        bets["starts"][bets["sums"] < 1] = count
        bets["sums"] = np.minimum(np.maximum(bets["sums"], 1) * payoffs, MAX_STATISTIC)

    def strongest_bet(self) -> tuple[int, int]:
        """Return the column of the bet with the most evidence, and the request at which that evidence began to grow."""
        sums = self.bets["sums"]
        column, bet = np.unravel_index(int(sums.argmax()), sums.shape)
        return int(column), int(self.bets["starts"][column, bet])

    def restart(self) -> None:
        """Reset all evidence, for example after an alert."""
        self.bets = {name: np.zeros_like(array) for name, array in self.bets.items()}


BLOCK = 25
PERMUTATIONS = 499
FEATURES = 128


@dataclass(frozen=True)
class Kernel:
    """A Gaussian kernel, approximated at a constant cost by random Fourier features (Rahimi and Recht 2007)."""

    weights: Vectors
    """(size, FEATURES)"""
    phases: Vectors

    def features(self, vectors: Vectors) -> Vectors:
        """Return the features (n, FEATURES) of vectors (n, size). Dot products of features approximate the kernel."""
        found: Vectors = np.sqrt(2 / FEATURES, dtype=np.float32) * np.cos(vectors @ self.weights + self.phases)
        return found


def kernel(vectors: Vectors, rng: np.random.Generator) -> Kernel:
    """Return a kernel whose width is the median distance between vectors (n, size) (Gretton et al., JMLR 2012)."""
    first, second = rng.integers(len(vectors), size=(2, 2000))
    distances = np.linalg.norm(vectors[first] - vectors[second], axis=1)
    width = float(np.median(distances[distances > 0])) if np.any(distances > 0) else 1.0
    weights = rng.normal(scale=1 / width, size=(vectors.shape[1], FEATURES)).astype(np.float32)
    return Kernel(weights, rng.uniform(0, 2 * np.pi, FEATURES).astype(np.float32))


def block_test(pool: Vectors, block: Vectors, rng: np.random.Generator) -> tuple[float, float]:
    """Return the p-value of a block's features (b, FEATURES) and its squared maximum mean discrepancy (MMD).

    The p-value is the block's rank among random blocks drawn from pool and block. It is exact under exchangeability.
    The mean over the random blocks is subtracted from the squared MMD, so that the result is about 0 without drift.
    """
    everything = np.concatenate([pool, block])
    centre = everything.mean(axis=0)
    chosen = rng.integers(len(everything), size=(PERMUTATIONS, len(block)))
    # Rows that contain an index twice are drawn again.
    while (repeated := (np.diff(np.sort(chosen, axis=1), axis=1) == 0).any(axis=1)).any():
        chosen[repeated] = rng.integers(len(everything), size=(int(repeated.sum()), len(block)))
    distances = ((everything[chosen].mean(axis=1) - centre) ** 2).sum(axis=1)
    own = float(((block.mean(axis=0) - centre) ** 2).sum())
    larger, ties = int((distances > own).sum()), int((distances == own).sum())
    p = (larger + rng.random() * (1 + ties)) / (PERMUTATIONS + 1)
    return p, own - float(distances.mean())


WINDOW = 200
"""Number of latest requests on which the size of a change is measured"""
RECENT = 2000
"""Number of latest requests that can be removed from the pool again if a change began before them"""
POOL = 20_000
"""Maximum number of earlier values in a pool; in a full pool, a new value replaces a random one."""


class Track:
    """The state of one signal: its pool of earlier values, its e-detector and its latest window."""

    weight = 1

    def __init__(self, columns: Sequence[str], bets: int) -> None:
        self.columns, self.detector = tuple(columns), EDetector(len(columns), bets)
        self.absorbing = True
        self.window: deque[tuple[int, Floats]] = deque(maxlen=WINDOW)
        self.recent: deque[tuple[int, Any]] = deque(maxlen=RECENT)

    def latest(self, column: int, since: int = 0) -> Floats:
        """Return the window's values (n,) of a column, from request number `since` on."""
        return np.array([values[column] for count, values in self.window if count >= since], dtype=np.float64)

    def saved(self) -> Arrays:
        """Return the complete state as arrays."""
        window = np.array([values for _, values in self.window], dtype=np.float64)
        return self.detector.bets | {
            "absorbing": np.array(self.absorbing),
            "window": window.reshape(len(self.window), len(self.columns)),
            "window_at": np.array([count for count, _ in self.window], dtype=np.int64),
            "recent_at": np.array([count for count, _ in self.recent], dtype=np.int64),
            **self._saved(),
        }

    def restore(self, state: Arrays) -> None:
        """Restore the state from the arrays that `saved` returned."""
        self.detector.bets = {name: np.array(state[name], dtype=np.float64) for name in self.detector.bets}
        self.absorbing = bool(state["absorbing"])
        self.window.extend(zip(state["window_at"].tolist(), state["window"], strict=True))
        self._restore(state)

    def _saved(self) -> Arrays:
        raise NotImplementedError

    def _restore(self, state: Arrays) -> None:
        raise NotImplementedError


class NumberTrack(Track):
    """A track of a numeric signal, which has one value per request or one value per direction."""

    effect_name: Effect = "Cliff's delta"

    def __init__(self, name: str, reference: Floats) -> None:
        """`reference` contains the reference's values (n, columns)."""
        count = reference.shape[1]
        columns = [f"direction {number + 1}" for number in range(count)] if count > 1 else [name]
        super().__init__(columns, 2 * len(POWERS) + 2)
        self.pools = [sorted(values.tolist()) for values in reference.T]
        self.values: deque[tuple[int, Floats]] = deque(maxlen=WINDOW)

    def add(self, values: Sequence[Value], count: int, rng: np.random.Generator) -> bool:
        """Add a request to the evidence and the pool; return False and add nothing if a value is missing."""
        coins = rng.random(len(self.columns))
        numbers = [float(value) for value in values if value is not None]
        if len(numbers) < len(self.columns):
            return False
        ranked = zip(self.pools, numbers, coins.tolist(), strict=True)
        p = np.array([p_value(pool, number, coin) for pool, number, coin in ranked])
        self.detector.add_payoffs(number_bets(p), count)
        self.window.append((count, p))
        self.values.append((count, np.array(numbers)))
        if self.absorbing:
            self.recent.append((count, numbers))
            for place, (pool, number) in enumerate(zip(self.pools, numbers, strict=True)):
                if len(pool) >= POOL:
                    del pool[int(coins[place] * 1e9) % len(pool)]
                insort(pool, number)
        return True

    def forget(self, since: int) -> None:
        """Remove the values from request number `since` on from the pool."""
        while self.recent and self.recent[-1][0] >= since:
            for pool, number in zip(self.pools, self.recent.pop()[1], strict=True):
                place = bisect_left(pool, number)
                if place < len(pool) and pool[place] == number:
                    del pool[place]

    def effect(self, column: int, since: int = 0) -> float:
        """Return Cliff's delta of the window against the pool."""
        return delta(self.latest(column, since))

    def before_and_after(self, column: int, since: int) -> tuple[float, float]:
        """Return the median of the pool, and the median in the window from request number `since` on."""
        pool = self.pools[column]
        now = [values[column] for count, values in self.values if count >= since]
        return pool[len(pool) // 2], float(np.median(now)) if now else float("nan")

    def _saved(self) -> Arrays:
        columns = len(self.columns)
        return {
            "pools": np.array(self.pools, dtype=np.float64),
            "recent": np.array([values for _, values in self.recent], dtype=np.float64).reshape(-1, columns),
            "values": np.array([values for _, values in self.values], dtype=np.float64).reshape(-1, columns),
        }

    def _restore(self, state: Arrays) -> None:
        self.pools = state["pools"].tolist()
        self.recent.extend(zip(state["recent_at"].tolist(), state["recent"].tolist(), strict=True))
        self.values.extend(zip(state["window_at"].tolist(), state["values"], strict=True))


class ShareTrack(Track):
    """A track of the shares of categories; the last column is for categories that the reference doesn't contain."""

    effect_name: Effect = "Cohen's h"
    OTHER = "something new"

    def __init__(self, counts: Mapping[str, int]) -> None:
        """`counts` contains the reference's count of each category; OTHER is added as the last category."""
        super().__init__((*counts, self.OTHER), len(ODDS))
        self.counts = np.array([*counts.values(), 0.0])
        self.total = float(self.counts.sum())
        self.before = np.clip(self.counts / self.total, 0.5 / self.total, 1 - 0.5 / self.total)
        self._places = {name: place for place, name in enumerate(counts)}
        self._rare = self.counts < RARE

    def add(self, values: Sequence[Value], count: int, rng: np.random.Generator) -> bool:
        """Add a request to the evidence and the pool; return False and add nothing if its category is None."""
        coins, (value,) = rng.random(len(self.columns)), values
        if value is None:
            return False
        place = self._places.get(str(value), len(self.columns) - 1)
        inside = np.zeros(len(self.columns), dtype=bool)
        inside[place] = True
        p = share_p_values(self.counts, inside, self.total, coins)
        # A few values double the pool's share of a rare category. After that, the reference's share would often be too
        # small for a bet on the category to win, even if every request has it.
        expected = np.where(self._rare, (self.counts + 1) / (self.total + 1), self.before)
        self.detector.add_payoffs(share_bets(p, expected), count)
        self.window.append((count, inside))
        if self.absorbing:
            self.recent.append((count, place))
            self.counts[place] += 1
            self.total += 1
        return True

    def forget(self, since: int) -> None:
        """Remove the values from request number `since` on from the pool."""
        while self.recent and self.recent[-1][0] >= since:
            self.counts[self.recent.pop()[1]] -= 1
            self.total -= 1

    def effect(self, column: int, since: int = 0) -> float:
        """Return Cohen's h of the share in the window against the share in the reference."""
        latest = self.latest(column, since)
        share = float(latest.mean()) if len(latest) else float(self.before[column])
        return cohens_h(share, float(self.before[column]))

    def before_and_after(self, column: int, since: int) -> tuple[float, float]:
        """Return the share in the pool, and the share in the window from request number `since` on."""
        latest = self.latest(column, since)
        return float(self.counts[column] / self.total), float(latest.mean()) if len(latest) else float("nan")

    def _saved(self) -> Arrays:
        recent = np.array([place for _, place in self.recent], dtype=np.int64)
        return {"counts": self.counts, "total": np.array(self.total), "recent": recent}

    def _restore(self, state: Arrays) -> None:
        self.counts, self.total = state["counts"].copy(), float(state["total"])
        self.recent.extend(zip(state["recent_at"].tolist(), state["recent"].tolist(), strict=True))


class BlockTrack(Track):
    """A track of blocks of vectors, compared by the MMD."""

    weight = BLOCK
    effect_name: Effect = "MMD"

    def __init__(self, reference: NDArray[np.float32]) -> None:
        """`reference` contains the reference's features (n, FEATURES)."""
        super().__init__(("all",), len(BLOCK_POWERS))
        self.window = deque(maxlen=WINDOW // BLOCK)
        self._pool = reference
        self._block: list[tuple[int, NDArray[np.float32]]] = []

    def add(self, features: NDArray[np.float32] | None, count: int, rng: np.random.Generator) -> bool:
        """Add a request's features, and test the block if it is full; return False if the features are None."""
        if features is None:
            return False
        self._block.append((count, features))
        if len(self._block) < BLOCK:
            return True
        block = np.stack([each for _, each in self._block])
        first = self._block[0][0]
        self._block.clear()
        p, distance = block_test(self._pool, block, rng)
        self.detector.add_payoffs(block_bets(np.array([p])), first)
        self.window.append((first, np.array([distance])))
        if self.absorbing:
            if len(self._pool) + BLOCK > POOL:
                self._pool = np.delete(self._pool, rng.choice(len(self._pool), BLOCK, replace=False), axis=0)
            self._pool = np.concatenate([self._pool, block])
            self.recent.append((first, None))
        return True

    def forget(self, since: int) -> None:
        """Remove the blocks that began at request number `since` or later from the pool."""
        while self.recent and self.recent[-1][0] >= since:
            self.recent.pop()
            self._pool = self._pool[:-BLOCK]

    def effect(self, column: int, since: int = 0) -> float:
        """Return the MMD of the window's blocks without the part expected at random; from 0 to about 1."""
        latest = self.latest(column, since)
        return float(np.sqrt(max(0.0, latest.mean()))) if len(latest) else 0.0

    def before_and_after(self, column: int, since: int) -> tuple[float, float]:
        """Return 0, and the MMD in the window from request number `since` on."""
        return 0.0, self.effect(column, since)

    def _saved(self) -> Arrays:
        block = np.array([each for _, each in self._block], dtype=np.float32)
        return {
            "pool": self._pool,
            "block": block.reshape(-1, self._pool.shape[1]),
            "block_at": np.array([count for count, _ in self._block], dtype=np.int64),
        }

    def _restore(self, state: Arrays) -> None:
        self._pool = state["pool"].copy()
        self.recent.extend((count, None) for count in state["recent_at"].tolist())
        self._block = list(zip(state["block_at"].tolist(), state["block"], strict=True))
