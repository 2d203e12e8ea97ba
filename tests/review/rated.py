"""Rating sets with ratings that are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from meditune.review.rating_set import Origin, create, read_key, read_set
from meditune.review.ratings_store import RATING, Rating, Store
from tests.review.runs import finished

Says = Callable[[int, str], int | None]
"""What a rater says of question n's answer of that origin"""


def made(folder: Path, questions: int = 6, axes: str = "lay", **changed: dict[int, str]) -> Path:
    """A set in RUN/review, nothing rated yet."""
    run = finished(folder / "run", questions, **changed)
    create(run, run / "review", questions, axes, None, None, 17)
    return run / "review"


def rate(folder: Path, name: str, says: Says, only: tuple[str, ...] = (), round: int = RATING) -> None:
    """Let a rater say the same on every axis, or on those named; binary axes get option 1 or 2."""
    rating_set, (key, _), store = read_set(folder), read_key(folder), Store(folder)
    rater = store.rater(name).id
    ratings = []
    for id, row in key.items():
        option = says(number(row), row.origins[0])
        for axis in rating_set.axes:
            if not only or axis.name in only:
                chosen = option if option is None else min(option, len(axis.options))
                ratings.append(Rating(rater, id, axis.name, chosen, 2.0, round=round))
    store.save(ratings)


def number(row: Origin) -> int:
    """Of the question that an item is about."""
    return int(row.example.partition(":")[2])


def item_of(folder: Path, n: int, origin: str) -> str:
    """The id of question n's answer of that origin."""
    key, _ = read_key(folder)
    return next(id for id, row in key.items() if number(row) == n and origin in row.origins)
