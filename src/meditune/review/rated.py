"""A set with its key and what was said: what every task's results start from."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from meditune.review.ratingset import Origin, RatingSet, read_key_as, read_set
from meditune.review.store import ADJUDICATION, RATING, Note, Rater, Rating, Store
from meditune.review.tasks import Task

Key = TypeVar("Key", bound=Origin)


@dataclass(frozen=True)
class Rated(Generic[Key]):
    """Ratings and notes of items and axes that the set has."""

    set: RatingSet
    key: dict[str, Key]
    made_from: dict[str, Any]
    raters: dict[str, Rater]
    first: list[Rating]
    settled: list[Rating]
    notes: list[Note]

    def without(self, raters: Container[str]) -> Rated[Key]:
        """As if these raters, by id, had said nothing in the first round."""
        return Rated(
            self.set, self.key, self.made_from, self.raters,
            [rating for rating in self.first if rating.rater not in raters],
            self.settled,
            [note for note in self.notes if note.round == ADJUDICATION or note.rater not in raters],
        )  # fmt: skip


def read_rated_as(folder: Path, task: Task, made: Callable[[dict[str, Any]], Key]) -> Rated[Key]:
    """The set in `folder` with its ratings. Raises DataError where it isn't whole, or a set of another task."""
    rating_set, (key, made_from) = read_set(folder, task), read_key_as(folder, made)
    store = Store(folder)
    ratings = [each for each in store.ratings() if each.item in key and rating_set.axis(each.axis)]
    first, settled = ([each for each in ratings if each.round == number] for number in (RATING, ADJUDICATION))
    notes = [note for note in store.notes() if note.item in key]
    return Rated(rating_set, key, made_from, store.raters(), first, settled, notes)
