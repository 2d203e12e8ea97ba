"""The e-detectors of all signals of a kind together, so that a request costs a few array operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.operate.drift import sequential

Floats = NDArray[np.float64]


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
        np.copyto(self.statistics, sequential.advanced(self.statistics, paid), where=known)
        fresh = known & (self.sums < 1)
        self.starts[fresh] = count
        # CUSUM, only for when the winning bet began to win.
        np.copyto(self.sums, np.minimum(np.maximum(self.sums, 1) * paid, sequential.LARGEST), where=known)
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
