"""How often the rows of each source come in an epoch, where a recipe mixes several sources."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from meditune.errors import DataError
from meditune.recipe import MixSpec


@dataclass(frozen=True)
class Mix:
    """The rows of each source, and how many of them an epoch takes."""

    rows: dict[str, list[int]]
    """Source -> indices of its rows"""
    visits: dict[str, int]
    """Source -> rows in an epoch; together they are as many as there are rows"""

    def epochs(self, seed: int) -> Iterator[list[int]]:
        """The rows of one epoch after another, without end.

        A source goes on where its last epoch ended, so that none of its rows comes a second time before all came once.
        """
        streams = {name: endless(len(indices), f"{seed}/mix/{name}") for name, indices in self.rows.items()}
        while True:
            yield [
                self.rows[name][index]
                for name, count in self.visits.items()
                for index in itertools.islice(streams[name], count)
            ]

    def said(self) -> str:
        """The visits in words, for the pre-flight."""
        return ", ".join(
            f"{count:,} of {name} ({len(self.rows[name]):,} different ones)" for name, count in self.visits.items()
        )

    def repeats(self) -> dict[str, float]:
        """How often a row of each source comes in an epoch, on average."""
        return {name: count / len(self.rows[name]) for name, count in self.visits.items()}


def mix_of(sources: Sequence[str], spec: MixSpec) -> Mix | None:
    """The mix of rows with these sources; None where each row comes once.

    With a temperature T, a source of n rows gets a share that is proportional to n ** (1 / T) (Arivazhagan et al.
    2019, arXiv:1907.05019). Raises DataError where a source that has a weight has no rows.
    """
    rows: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        rows.setdefault(source, []).append(index)
    if len(rows) < 2 or not (spec.weights or spec.temperature):
        return None
    missing = spec.weights.keys() - rows.keys()
    if missing:
        raise DataError(
            f"train.mix.weights: {', '.join(sorted(missing))} has no training rows. Leave that source out, or take "
            "the weights away."
        )
    power = 1 / (spec.temperature or 1)
    weights = spec.weights or {name: len(indices) ** power for name, indices in rows.items()}
    return Mix(rows, _apportioned(weights, len(sources)))


def endless(count: int, seed: str) -> Iterator[int]:
    """0 to `count` - 1 over and over, in a new order each time that follows from the seed."""
    for number in itertools.count():
        order = list(range(count))
        random.Random(f"{seed}/{number}").shuffle(order)
        yield from order


def _apportioned(weights: dict[str, float], total: int) -> dict[str, int]:
    """Whole numbers in proportion to the weights that sum to `total` (largest remainders)."""
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
