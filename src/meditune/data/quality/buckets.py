"""Pairs of rows whose signatures share a band: in time and memory that grow as the rows do, whatever they say."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from meditune.data.quality.minhash import BANDS, PERMUTATIONS, Hashes, Signed

SLACK = 0.14
"""Three standard errors of an estimate from 126 values: pairs that look so much less alike aren't compared exactly."""
WINDOW = 50
"""In a bucket of more rows than this, each is paired with so many that follow it and with the first, not with all: the
bucket's pairs would grow as the square of its rows. Rows that are alike share many other buckets."""
BLOCK = 50_000
"""Pairs looked at together."""


def near(signed: Iterable[Signed], rows: int, least: float, folder: Path | None = None) -> NDArray[np.int64]:
    """(pairs, 2) of rows, the smaller first, whose Jaccard index may be `least` or more, in order and each once.

    `rows` is their number. Bands wait in unnamed files in `folder`, or where temporary files go.
    """
    tables: dict[str, _Table] = {}
    for some in signed:
        if some.kind not in tables:
            tables[some.kind] = _Table(rows, folder)
        tables[some.kind].add(some)
    found = np.empty(0, np.int64)
    for table in tables.values():
        members = table.members[: table.size]
        one, two = table.candidates(least)
        found = np.union1d(found, members[one] * rows + members[two])
        table.close()
    return np.stack([found // rows, found % rows], axis=1) if rows else np.empty((0, 2), np.int64)


class _Table:
    """Signatures of one kind: bands in files, one after the other, the rest in memory (134 bytes a row)."""

    def __init__(self, rows: int, folder: Path | None) -> None:
        self.size = 0
        self.members = np.empty(rows, np.int64)
        self._low = np.empty((rows, PERMUTATIONS), np.uint8)
        self._bands: list[IO[bytes]] = [
            tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as this object)
            for _ in range(BANDS)
        ]

    def add(self, some: Signed) -> None:
        """Add rows, in their order."""
        place = slice(self.size, self.size + len(some.members))
        self.members[place], self._low[place] = some.members, some.low
        self.size = place.stop
        for band, stream in enumerate(self._bands):
            stream.write(some.keys[:, band].tobytes())

    def candidates(self, least: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places, the smaller first, of rows that share a band and look about as alike as `least`; each pair once."""
        count = np.int64(max(self.size, 1))
        seen = np.empty(0, np.int64)
        for stream in self._bands:
            stream.seek(0)
            keys = np.frombuffer(stream.read(), np.uint64)
            found = [seen]
            for one, two in _within(keys):
                agreed = (self._low[one] == self._low[two]).mean(axis=1) >= least - SLACK
                found.append(one[agreed] * count + two[agreed])
            seen = np.unique(np.concatenate(found))
        return seen // count, seen % count

    def close(self) -> None:
        """Let go of the files."""
        for stream in self._bands:
            stream.close()


def _within(keys: Hashes) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of places with the same key, the smaller first, up to BLOCK at a time."""
    order = np.argsort(keys, kind="stable")
    said = keys[order]
    starts = np.flatnonzero(np.append(True, said[1:] != said[:-1]))
    begins = np.repeat(starts, np.diff(np.append(starts, len(said))))
    for step in range(1, WINDOW + 1):
        at = np.flatnonzero(said[step:] == said[:-step]) if len(said) > step else starts[:0]
        if not len(at):
            return
        yield from _blocks(order[at], order[at + step])
    far = np.flatnonzero(np.arange(len(said)) - begins > WINDOW)
    yield from _blocks(order[begins[far]], order[far])


def _blocks(one: NDArray[np.int64], two: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    for start in range(0, len(one), BLOCK):
        yield one[start : start + BLOCK], two[start : start + BLOCK]
