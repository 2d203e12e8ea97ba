"""Requests out of a server's store or a JSON Lines file, in the order in which they came."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from meditune.errors import DataError
from meditune.operate.drift.request import Request, from_file
from meditune.store.answers import Answers
from meditune.store.base import FILE, Base

SHADOW = "shadow"
"""The route of answers that nobody was shown: their questions are there already"""


class Source:
    """A store or a file of requests."""

    def __init__(self, path: Path) -> None:
        """Raises DataError where there is neither."""
        self.path = path.resolve()
        if path.is_file() and path.name != FILE:
            self._answers = None
            return
        folder = path.parent if path.name == FILE else path
        if not (folder / FILE).is_file():
            raise DataError(
                f"{path}: neither a store (a folder with {FILE}) nor a file of requests. Give the --store of "
                "`meditune serve`, or a JSON Lines file with a question on each line."
            )
        self.path = folder.resolve()
        self._answers = Answers(Base(folder))

    @property
    def is_store(self) -> bool:
        """Whether it is a store."""
        return self._answers is not None

    def requests(self, after: int = 0) -> Iterator[Request]:
        """Those at a later place than `after`. Raises DataError where the source can't be read."""
        if self._answers is None:
            yield from from_file(self.path, after)
            return
        for place, answer, ratings in self._answers.in_order(after):
            if answer.route == SHADOW:
                continue
            yield Request(
                answer.id,
                answer.question,
                answer.answer,
                outcome=answer.outcome,
                facts=answer.facts,
                ratings=ratings,
                sequence=place,
            )

    def last(self) -> int:
        """The last place."""
        if self._answers is not None:
            return self._answers.last_place()
        return sum(1 for _ in from_file(self.path))
