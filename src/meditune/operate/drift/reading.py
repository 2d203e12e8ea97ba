"""Requests out of a server's store or a JSON Lines file, in the order in which they came."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from meditune.errors import DataError
from meditune.operate.drift.request import Request, from_file
from meditune.store.answers import SHADOW, Answers
from meditune.store.base import FILE
from meditune.store.opening import Place, exists, folder_of, is_url, open_store


class Source:
    """A store or a file of requests."""

    def __init__(self, place: Place) -> None:
        """Raises DataError where there is neither."""
        self._answers = None
        if not is_url(place) and Path(place).is_file() and Path(place).name != FILE:
            self.named = str(Path(place).resolve())
            return
        if not exists(place):
            raise DataError(
                f"{place}: neither a store (a folder with {FILE}, a postgresql:// URL) nor a file of requests. Give "
                "the --store of `meditune serve`, or a JSON Lines file with a question on each line."
            )
        base = open_store(place)
        self._answers = Answers(base)
        self.named = base.place if is_url(place) else str(folder_of(place).resolve())

    @property
    def is_store(self) -> bool:
        """Whether it is a store."""
        return self._answers is not None

    def requests(self, after: int = 0) -> Iterator[Request]:
        """Those at a later place than `after`. Raises DataError where the source can't be read."""
        if self._answers is None:
            yield from from_file(Path(self.named), after)
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

    def has(self, id: str) -> bool:
        """Whether a request is still there; what a file held once is taken to be."""
        return self._answers is None or self._answers.get(id) is not None

    def last(self) -> int:
        """The last place."""
        if self._answers is not None:
            return self._answers.last_place()
        return sum(1 for _ in from_file(Path(self.named)))
