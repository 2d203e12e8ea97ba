"""What a metric is: its name and direction, and per-item statistics whose sums give the figure.

The same function gives the figure from the sums over all items, over a subgroup, and over a bootstrap draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Direction = Literal["up", "down", "one"]


@dataclass(frozen=True)
class Metric:
    """How a metric is named, read and judged."""

    name: str
    title: str
    direction: Direction
    """up: higher is better; down: lower is better; one: closer to 1 is better."""
    digits: int
    meaning: str
    optional: bool = False
    """Of no interest in a report of a run that didn't measure it."""
    share: bool = False
    """A percentage of items, each of which is right or wrong: its figure on a single item is 0 or 100."""
    detail: bool = False
    """Says more about another metric: the verdict names it only where it got worse."""
    detector: bool = False
    """Counts what a detector marks. It marks some true answers too, so no change is claimed unless the model with more
    marks has significantly more of them than the reference answers have."""


@dataclass(frozen=True)
class Statistics:
    """Per-item statistics of one metric, and what their sums say."""

    ids: tuple[str, ...]
    items: Array
    """(n, k): k statistics of each of n items"""
    figure: Callable[[Array], Array]
    """From sums (..., k) over any selection of items to the figure (...)"""

    def value(self) -> float:
        """The figure over all items."""
        return float(self.figure(self.items.sum(axis=0)))


def mean(ids: Sequence[str], values: Sequence[float]) -> Statistics:
    """The plain mean of one value for each item."""
    return ratio(ids, values, [1.0] * len(values))


def ratio(ids: Sequence[str], over: Sequence[float], under: Sequence[float]) -> Statistics:
    """The sum of one value for each item over the sum of another; NaN of items of which the second sums to 0."""
    items = np.array([over, under], dtype=np.float64).T

    def figure(sums: Array) -> Array:
        found: Array = np.full(sums.shape[:-1], np.nan)
        np.divide(sums[..., 0], sums[..., 1], out=found, where=sums[..., 1] != 0)
        return found

    return Statistics(tuple(ids), items, figure)
