"""Rows that wait on the disk: each can be had back by its number, and what compares them stays in memory."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.data.example import Example
from meditune.data.quality.duplicates import Chosen, Keys, Marks
from meditune.data.quality.minhash import Hashes


class Spool:
    """Rows as JSON with their shingles, in an unnamed file; in memory 66 bytes a row."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as this object)
        self._ends = array("q", [0])
        self._texts = array("q")
        self._keys = array("Q")
        self.kept = bytearray()
        """For each row, whether it is to stay whatever is found"""
        self.changed = bytearray()
        """For each row, whether a rule changed it"""

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: bytes, marks: Marks, kept: bool, changed: bool) -> None:
        """Add a row, which is JSON."""
        shingles = marks.shingles.tobytes()
        self._file.write(text)
        self._file.write(shingles)
        self._texts.append(len(text))
        self._ends.append(self._ends[-1] + len(text) + len(shingles))
        self._keys.extend([*marks.content, *marks.asked, *marks.wording])
        self.kept.append(kept)
        self.changed.append(changed)

    def text(self, row: int) -> bytes:
        """A row's JSON."""
        return os.pread(self._file.fileno(), self._texts[row], self._ends[row])

    def example(self, row: int) -> Example:
        """A row."""
        return Example.model_validate_json(self.text(row))

    def shingles(self, row: int) -> Hashes:
        """A row's shingles."""
        start = self._ends[row] + self._texts[row]
        return np.frombuffer(os.pread(self._file.fileno(), self._ends[row + 1] - start, start), np.uint64)

    def finish(self) -> None:
        """Nothing more is added, and reading begins."""
        self._file.flush()

    def keys(self) -> tuple[Keys, Keys, Keys]:
        """Marks.content, Marks.asked and Marks.wording of all rows."""
        whole = np.frombuffer(self._keys, np.uint64).reshape(-1, 6)
        return whole[:, :2], whole[:, 2:4], whole[:, 4:]


class Spooled:
    """A spool's rows in an order of their own, to be compared (duplicates.Rows)."""

    def __init__(self, spool: Spool, order: NDArray[np.int64]) -> None:
        contents, _, wordings = spool.keys()
        self.contents, self.wordings = contents[order], wordings[order]
        self.shingles: Sequence[Hashes] = Chosen(_Fetched(spool, spool.shingles), order)
        self.examples: Sequence[Example] = Chosen(_Fetched(spool, spool.example), order)
        self._spool, self._order = spool, order

    def questions(self, rows: NDArray[np.int64]) -> Iterator[str]:
        """Those rows' questions."""
        return (json.loads(self._spool.text(int(row)))["question"] for row in self._order[rows])


class _Fetched(Sequence[Any]):
    """What a function finds for each of a spool's rows."""

    def __init__(self, spool: Spool, fetch: Callable[[int], Any]) -> None:
        self._spool, self._fetch = spool, fetch

    def __len__(self) -> int:
        return len(self._spool)

    def __getitem__(self, row: Any) -> Any:
        return self._fetch(row)
