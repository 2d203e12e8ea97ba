"""Mix the rows of several sources: how often each source's rows occur in an epoch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from meditune.config.training_options import MixSpec
from meditune.errors import DataError


@dataclass(frozen=True)
class SourceMix:
    """The rows of each source, and the number of them in an epoch."""

    rows: dict[str, list[int]]
    """Source -> indices of its rows"""
    visits: dict[str, int]
    """Source -> rows in an epoch"""
    limited: frozenset[str] = frozenset()
    """Sources that may not occur more often than their visits, nor than their part of a partial epoch"""

    @property
    def size(self) -> int:
        """Number of rows in an epoch."""
        return sum(self.visits.values())

    def epochs(self, seed: int, count: float = float("inf")) -> Iterator[list[int]]:
        """Yield the rows of one epoch after another, `count` epochs; a partial epoch has that part of every source.

        A source continues where its last epoch ended, so no row occurs a second time before all rows have occurred
        once.
        """
        streams = {name: endless_order(len(indices), f"{seed}/mix/{name}") for name, indices in self.rows.items()}
        for number in itertools.count():
            left = count - number
            if left <= 0:
                return
            visits = self.visits if left >= 1 else self._part(left)
            yield [
                self.rows[name][index]
                for name, taken in visits.items()
                for index in itertools.islice(streams[name], taken)
            ]

    def _part(self, share: float) -> dict[str, int]:
        limits = {name: int(share * self.visits[name]) for name in self.limited}
        visits = _apportioned(self.visits, max(1, round(share * self.size)), limits)
        return visits if any(visits.values()) else {max(visits, key=lambda name: self.visits[name]): 1}

    def described(self) -> str:
        """Return the visits in words, for the pre-flight."""
        return ", ".join(
            f"{count:,} of {name} ({len(self.rows[name]):,} distinct)" for name, count in self.visits.items()
        )

    def repeats(self) -> dict[str, float]:
        """Return how often a row of each source occurs in an epoch, on average."""
        return {name: count / len(self.rows[name]) for name, count in self.visits.items()}


def mix_of(sources: Sequence[str], spec: MixSpec, epochs: float = 1.0) -> SourceMix | None:
    """Return the mix of rows with these `sources` over `epochs`; None if each row occurs once in an epoch.

    Raises DataError if a source with a weight has no rows, or `max_epochs` leaves none.
    """
    rows: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        rows.setdefault(source, []).append(index)
    weighted = bool(spec.weights) and len(rows) > 1
    limits = _limits(rows, spec.max_epochs, epochs, weighted)
    if not (weighted or limits):
        return None
    missing = spec.weights.keys() - rows.keys()
    if missing:
        raise DataError(
            f"train.mix.weights: {', '.join(sorted(missing))} has no training rows. Remove that source from the "
            "weights, or remove the option."
        )
    weights = {name: spec.weights[name] if spec.weights else len(indices) for name, indices in rows.items()}
    visits = _apportioned(weights, len(sources), limits)
    if not sum(visits.values()):
        raise DataError("train.mix.max_epochs leaves no rows in an epoch. Raise it, or lower train.epochs.")
    return SourceMix(rows, visits, frozenset(limits))


def endless_order(count: int, seed: str) -> Iterator[int]:
    """Yield 0 to `count` - 1 endlessly, each time in a new order that follows from the seed."""
    for number in itertools.count():
        order = list(range(count))
        random.Random(f"{seed}/{number}").shuffle(order)
        yield from order


def _limits(rows: Mapping[str, Sequence[int]], most: float | None, epochs: float, repeats: bool) -> dict[str, int]:
    """Return each source's maximum rows per epoch, so that no row occurs more than `most` times in all epochs.

    The result is empty if no row can occur more often, because every row occurs once in an epoch or `repeats` is false.
    """
    if most is None or (most >= epochs and not repeats):
        return {}
    return {name: int(most * len(indices) / epochs) for name, indices in rows.items()}


def _apportioned(weights: Mapping[str, float], total: int, limits: Mapping[str, int]) -> dict[str, int]:
    """Return integers in proportion to the weights that sum to `total` (largest remainders), none above its limit.

    What a limit cuts off is distributed over the others in proportion to their weights. Where all are at their limits,
    the sum is smaller.
    """
    fixed: dict[str, int] = {}
    while True:
        free = {name: weight for name, weight in weights.items() if weight and name not in fixed}
        left, weight_sum = total - sum(fixed.values()), sum(free.values())
        exact = {name: left * weight / weight_sum for name, weight in free.items()}
        full = {name: limits[name] for name in free if name in limits and exact[name] > limits[name]}
        if not full:
            break
        fixed |= full
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    with_room = [name for name in by_remainder if counts[name] + 1 <= limits.get(name, total)]
    for name in with_room[: left - sum(counts.values())]:
        counts[name] += 1
    return {name: fixed.get(name, counts.get(name, 0)) for name in weights}
