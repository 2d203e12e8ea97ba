"""Vectors of the index's titles, each once: questions are compared with the questions that passages answer.

Ben Abacha and Demner-Fushman 2019 (https://doi.org/10.1186/s12859-019-3119-4) found answers to consumers' questions by
the questions these entail. Titles are short: they cost a fifteenth of what passages' vectors cost, 12 MB for MedQuAD.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from meditune.retrieve.near import Near, Vectors

Embed = Callable[[Sequence[str]], Vectors]
"""Texts to vectors of length 1, (n, size)"""


class TitleVectors:
    """Titles with their vectors."""

    def __init__(self, titles: Sequence[str], vectors: Vectors) -> None:
        self.titles = tuple(titles)
        self.vectors = vectors
        self._place = {title: place for place, title in enumerate(titles)}

    def __len__(self) -> int:
        return len(self._place)

    @cached_property
    def _near(self) -> Near:
        return Near(self.vectors)

    def place(self, title: str) -> int | None:
        """Where a title's vector is; None where the title isn't known."""
        return self._place.get(title)

    @classmethod
    def made(cls, titles: Sequence[str], embed: Embed) -> TitleVectors:
        """Those of all titles, the same ones once."""
        once = list(dict.fromkeys(titles))
        return cls(once, embed(once))

    def of(self, titles: Sequence[str], embed: Embed) -> Vectors:
        """(n, size); titles that aren't known are embedded now."""
        unknown = [title for title in dict.fromkeys(titles) if title not in self._place]
        fresh: dict[str, Any] = dict(zip(unknown, embed(unknown), strict=True)) if unknown else {}
        return np.array([fresh[t] if t in fresh else self.vectors[self._place[t]] for t in titles], dtype=np.float32)

    def nearest(self, vectors: Vectors, count: int) -> list[list[int]]:
        """For each of the vectors (n, size) the places of the titles that come nearest to it, the nearest first."""
        if not len(self):
            return [[] for _ in vectors]
        return [self._near.nearest(vector, count)[0].tolist() for vector in vectors]
