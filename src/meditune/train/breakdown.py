"""When a training has broken down: a loss or gradient that is no number any more, or a loss that explodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median

WINDOW = 50
"""So many usual losses are remembered."""
LEAST = 10
"""With fewer of them nothing is judged."""
FACTOR = 2.0
MARGIN = 3.0
"""In nats"""
STREAK = 5
"""Steps in a row that are an explosion."""


class BreakdownError(Exception):
    """Training can't go on; the last checkpoint is of the state before `step`."""

    def __init__(self, step: int, what: str, ids: Sequence[str]) -> None:
        super().__init__(f"step {step}: {what}")
        self.step, self.what = step, what
        self.ids = list(ids)
        """Of the rows that the step was to learn from; never their text, which may be restricted"""


class LossGuard:
    """Tells an exploding loss from a noisy one.

    A loss is out of bounds where it is above twice the running median and more than 3 nats above it as well; five steps
    in a row that are, are an explosion. The median is that of the last 50 losses within bounds, so an explosion doesn't
    raise its own bound, and a single hard batch, or noise around a loss near zero, is none.
    """

    def __init__(self, earlier: Iterable[float] = ()) -> None:
        self.streak = 0
        """Steps in a row, up to the last one, that were out of bounds"""
        self._usual: deque[float] = deque(maxlen=WINDOW)
        for loss in earlier:
            self.add(loss)

    def add(self, loss: float) -> None:
        """Take note of the next step's loss."""
        if loss > self.bound:
            self.streak += 1
        else:
            self.streak = 0
            self._usual.append(loss)

    @property
    def bound(self) -> float:
        """The largest usual loss."""
        if len(self._usual) < LEAST:
            return float("inf")
        middle = median(self._usual)
        return max(FACTOR * middle, middle + MARGIN)

    @property
    def exploded(self) -> bool:
        """Whether it has."""
        return self.streak >= STREAK
