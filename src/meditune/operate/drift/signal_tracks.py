"""Tracks: the state of one signal, with its pool of earlier values, its e-detector and its latest window."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from meditune.operate.drift import e_detectors
from meditune.operate.drift.e_detectors import BLOCK, EDetector, block_test
from meditune.operate.drift.signals import Value

Floats = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]
Effect = Literal["Cliff's delta", "Cohen's h", "MMD"]

WINDOW = 200
"""Number of requests from which the size of a change is measured"""
RECENT = 2000
"""Number of requests that can be removed from the pool again if a change began before them"""
POOL = 20_000
"""Maximum number of earlier values; beyond it, a new value replaces a random one"""


class Track:
    """The base class of tracks."""

    weight = 1
    """Requests per step of the e-detector"""

    def __init__(self, columns: Sequence[str], bets: int) -> None:
        self.columns, self.detector = tuple(columns), EDetector(len(columns), bets)
        self.absorbing = True
        self.window: deque[tuple[int, Floats]] = deque(maxlen=WINDOW)
        self.recent: deque[tuple[int, Any]] = deque(maxlen=RECENT)

    def latest(self, column: int, since: int = 0) -> Floats:
        """Return (n,) the window's values of a column since a request."""
        return np.array([values[column] for count, values in self.window if count >= since], dtype=np.float64)

    def saved(self) -> Arrays:
        """Return the whole state as arrays."""
        window = np.array([values for _, values in self.window], dtype=np.float64)
        return self.detector.saved() | {
            "absorbing": np.array(self.absorbing),
            "window": window.reshape(len(self.window), len(self.columns)),
            "window_at": np.array([count for count, _ in self.window], dtype=np.int64),
            "recent_at": np.array([count for count, _ in self.recent], dtype=np.int64),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore the arrays that `saved` returned."""
        self.detector.restore(state)
        self.absorbing = bool(state["absorbing"])
        self.window.extend(zip(state["window_at"].tolist(), state["window"], strict=True))


class NumberTrack(Track):
    """A track of one number, or of one number per direction."""

    effect_name: Effect = "Cliff's delta"

    def __init__(self, name: str, reference: Floats) -> None:
        """`reference` holds the reference's values (n, columns)."""
        count = reference.shape[1]
        columns = [f"direction {number + 1}" for number in range(count)] if count > 1 else [name]
        super().__init__(columns, 2 * len(e_detectors.POWERS) + 2)
        self.pools = [sorted(values.tolist()) for values in reference.T]
        self.values: deque[tuple[int, Floats]] = deque(maxlen=WINDOW)

    def add(self, values: Sequence[Value], count: int, rng: np.random.Generator) -> bool:
        """Add a request to the evidence and the pool; return False if it has no values."""
        coins = rng.random(len(self.columns))
        numbers = [float(value) for value in values if value is not None]
        if len(numbers) < len(self.columns):
            return False
        ranked = zip(self.pools, numbers, coins.tolist(), strict=True)
        p = np.array([e_detectors.p_value(pool, number, coin) for pool, number, coin in ranked])
        self.detector.add_payoffs(e_detectors.number_bets(p), count)
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
        """Remove the values since a request from the pool."""
        while self.recent and self.recent[-1][0] >= since:
            for pool, number in zip(self.pools, self.recent.pop()[1], strict=True):
                place = bisect_left(pool, number)
                if place < len(pool) and pool[place] == number:
                    del pool[place]

    def effect(self, column: int, since: int = 0) -> float:
        """Return Cliff's delta of the window against the pool."""
        return e_detectors.delta(self.latest(column, since))

    def before_and_after(self, column: int, since: int) -> tuple[float, float]:
        """Return the median before, and the median in the window since a request."""
        pool = self.pools[column]
        now = [values[column] for count, values in self.values if count >= since]
        return pool[len(pool) // 2], float(np.median(now)) if now else float("nan")

    def saved(self) -> Arrays:
        """Return the whole state as arrays."""
        columns = len(self.columns)
        return super().saved() | {
            "pools": np.array(self.pools, dtype=np.float64),
            "recent": np.array([values for _, values in self.recent], dtype=np.float64).reshape(-1, columns),
            "values": np.array([values for _, values in self.values], dtype=np.float64).reshape(-1, columns),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore the arrays that `saved` returned."""
        super().restore(state)
        self.pools = state["pools"].tolist()
        self.recent.extend(zip(state["recent_at"].tolist(), state["recent"].tolist(), strict=True))
        self.values.extend(zip(state["window_at"].tolist(), state["values"], strict=True))


class ShareTrack(Track):
    """A track of one category; the last column counts categories that the reference doesn't have."""

    effect_name: Effect = "Cohen's h"
    OTHER = "something new"

    def __init__(self, counts: Mapping[str, int]) -> None:
        """`counts` are the reference's, by category; OTHER is added."""
        super().__init__((*counts, self.OTHER), len(e_detectors.ODDS))
        self.counts = np.array([*counts.values(), 0.0])
        self.total = float(self.counts.sum())
        self.before = np.clip(self.counts / self.total, 0.5 / self.total, 1 - 0.5 / self.total)
        self._places = {name: place for place, name in enumerate(counts)}

    def add(self, values: Sequence[Value], count: int, rng: np.random.Generator) -> bool:
        """Add a request to the evidence and the pool; return False if its category is unknown."""
        coins, (value,) = rng.random(len(self.columns)), values
        if value is None:
            return False
        place = self._places.get(str(value), len(self.columns) - 1)
        inside = np.zeros(len(self.columns), dtype=bool)
        inside[place] = True
        p = e_detectors.share_p_values(self.counts, inside, self.total, coins)
        self.detector.add_payoffs(e_detectors.share_bets(p, self.before), count)
        self.window.append((count, inside))
        if self.absorbing:
            self.recent.append((count, place))
            self.counts[place] += 1
            self.total += 1
        return True

    def forget(self, since: int) -> None:
        """Remove the values since a request from the pool."""
        while self.recent and self.recent[-1][0] >= since:
            self.counts[self.recent.pop()[1]] -= 1
            self.total -= 1

    def effect(self, column: int, since: int = 0) -> float:
        """Return Cohen's h of the share in the window against the reference's."""
        latest = self.latest(column, since)
        share = float(latest.mean()) if len(latest) else float(self.before[column])
        return e_detectors.cohens_h(share, float(self.before[column]))

    def before_and_after(self, column: int, since: int) -> tuple[float, float]:
        """Return the share before, and the share in the window since a request."""
        latest = self.latest(column, since)
        return float(self.counts[column] / self.total), float(latest.mean()) if len(latest) else float("nan")

    def saved(self) -> Arrays:
        """Return the whole state as arrays."""
        recent = np.array([place for _, place in self.recent], dtype=np.int64)
        return super().saved() | {"counts": self.counts, "total": np.array(self.total), "recent": recent}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore the arrays that `saved` returned."""
        super().restore(state)
        self.counts, self.total = state["counts"].copy(), float(state["total"])
        self.recent.extend(zip(state["recent_at"].tolist(), state["recent"].tolist(), strict=True))


class BlockTrack(Track):
    """A track of blocks of vectors (`e_detectors.py`)."""

    weight = BLOCK
    effect_name: Effect = "MMD"

    def __init__(self, reference: NDArray[np.float32]) -> None:
        """`reference` holds the reference's features (n, features)."""
        super().__init__(("all",), len(e_detectors.BLOCK_POWERS))
        self.window = deque(maxlen=WINDOW // BLOCK)
        self._pool = reference
        self._block: list[tuple[int, NDArray[np.float32]]] = []

    def add(self, features: NDArray[np.float32] | None, count: int, rng: np.random.Generator) -> bool:
        """Add a request's features, and test the block if it is full; return False without features."""
        if features is None:
            return False
        self._block.append((count, features))
        if len(self._block) < BLOCK:
            return True
        block = np.stack([each for _, each in self._block])
        first = self._block[0][0]
        self._block.clear()
        p, distance = block_test(self._pool, block, rng)
        self.detector.add_payoffs(e_detectors.block_bets(np.array([p])), first)
        self.window.append((first, np.array([distance])))
        if self.absorbing:
            if len(self._pool) + BLOCK > POOL:
                self._pool = np.delete(self._pool, rng.choice(len(self._pool), BLOCK, replace=False), axis=0)
            self._pool = np.concatenate([self._pool, block])
            self.recent.append((first, None))
        return True

    def forget(self, since: int) -> None:
        """Remove blocks that began at a request or later from the pool."""
        while self.recent and self.recent[-1][0] >= since:
            self.recent.pop()
            self._pool = self._pool[:-BLOCK]

    def effect(self, column: int, since: int = 0) -> float:
        """Return the MMD of the window's blocks minus its random part; 0 to about 1."""
        latest = self.latest(column, since)
        return float(np.sqrt(max(0.0, latest.mean()))) if len(latest) else 0.0

    def before_and_after(self, column: int, since: int) -> tuple[float, float]:
        """Return 0, and the MMD in the window since a request."""
        return 0.0, self.effect(column, since)

    def saved(self) -> Arrays:
        """Return the whole state as arrays. Blocks at the end of the pool are stored only once."""
        block = np.array([each for _, each in self._block], dtype=np.float32)
        return super().saved() | {
            "pool": self._pool,
            "block": block.reshape(-1, self._pool.shape[1]),
            "block_at": np.array([count for count, _ in self._block], dtype=np.int64),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore the arrays that `saved` returned."""
        super().restore(state)
        self._pool = state["pool"].copy()
        self.recent.extend((count, None) for count in state["recent_at"].tolist())
        self._block = list(zip(state["block_at"].tolist(), state["block"], strict=True))
