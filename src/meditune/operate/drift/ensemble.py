"""All signals of a reference together: one request in, every e-detector a step on."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from meditune.operate.drift import sequential
from meditune.operate.drift.bank import Bank
from meditune.operate.drift.reference import Reference
from meditune.operate.drift.request import Request
from meditune.operate.drift.signals import BY_NAME, MEANING
from meditune.operate.drift.tracks import BlockTrack, NumberTrack, ShareTrack

Floats = NDArray[np.float64]


class Ensemble:
    """The tracks of each signal by name, with their banks."""

    def __init__(self, reference: Reference) -> None:
        self._shape = reference.shape
        self._numbers = Bank([values.shape[1] for values in reference.numbers.values()], len(sequential.POWERS) * 2 + 2)
        self._shares = Bank([len(counts) + 1 for counts in reference.shares.values()], len(sequential.ODDS))
        self._blocks = Bank([1] if reference.features is not None else [], len(sequential.BLOCK_POWERS))
        self.numbers: dict[str, NumberTrack] = {}
        for place, (name, values) in enumerate(reference.numbers.items()):
            several = values.shape[1] > 1
            columns = [f"direction {number + 1}" if several else name for number in range(values.shape[1])]
            self.numbers[name] = NumberTrack(columns, self._numbers.seat(place), values)
        self.shares: dict[str, ShareTrack] = {}
        for place, (name, counts) in enumerate(reference.shares.items()):
            sizes = np.array(list(counts.values()), dtype=np.float64)
            self.shares[name] = ShareTrack(list(counts), self._shares.seat(place), sizes)
        self._before = np.concatenate([[], *(track.before for track in self.shares.values())])
        self.blocks = {}
        if reference.features is not None:
            self.blocks[MEANING] = BlockTrack(self._blocks.seat(0), reference.features)

    @property
    def tracks(self) -> dict[str, NumberTrack | ShareTrack | BlockTrack]:
        """All of them, in the order of the reference's signals."""
        return {**self.numbers, **self.shares, **self.blocks}

    def take(self, request: Request, names: Collection[str], count: int, rng: np.random.Generator) -> list[str]:
        """Take what a request says of these signals; the names of those that knew nothing of it."""
        unknown: list[str] = []
        p = self._ranked(self.numbers, request, names, count, rng, unknown)
        if p is not None:
            self._numbers.pay(sequential.number_bets(p), count)
        p = self._ranked(self.shares, request, names, count, rng, unknown)
        if p is not None:
            self._shares.pay(sequential.share_bets(p, self._before), count)
        if MEANING in self.blocks and MEANING in names:
            self._take_vector(request, count, rng, unknown)
        return unknown

    def _ranked(
        self,
        tracks: dict[str, NumberTrack] | dict[str, ShareTrack],
        request: Request,
        names: Collection[str],
        count: int,
        rng: np.random.Generator,
        unknown: list[str],
    ) -> Floats | None:
        """(all columns,) p-values, NaN where there are none; None where there are none at all."""
        found, some = [], False
        for name, track in tracks.items():
            p = None
            if name in names:
                values = BY_NAME[name].read(request, self._shape)
                p = track.ranked(values, rng.random(len(track.columns)), count)
                if p is None:
                    unknown.append(name)
            some |= p is not None
            found.append(np.full(len(track.columns), np.nan) if p is None else p)
        return np.concatenate(found) if some else None

    def _take_vector(self, request: Request, count: int, rng: np.random.Generator, unknown: list[str]) -> None:
        kernel = self._shape.kernel
        if request.vector is None or kernel is None:
            unknown.append(MEANING)
            return
        tested = self.blocks[MEANING].tested(kernel.features(request.vector[None])[0], count, rng)
        if tested:
            p, first = tested
            self._blocks.pay(sequential.block_bets(np.array([p])), first)
