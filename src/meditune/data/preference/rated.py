"""Pairs out of rated answers: of two answers to one question, the one that was rated higher is to be preferred."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from meditune.data.columns import GUESSES
from meditune.data.example import Passage
from meditune.data.preference.own import SOURCE
from meditune.data.preference.pair import RATED, Pair
from meditune.data.records import NO_CONTEXT, cell, group_of, passages, records
from meditune.data.rejects import Rejects
from meditune.data.restrictions import RESTRICTED, is_marked
from meditune.data.splits import question_key
from meditune.data.tables import Row
from meditune.recipe import RatedSpec

COLUMNS = {field: GUESSES[field] for field in ("question", "answer", "context")} | {
    "id": ("id", "answer_id", "uid"),
    "rating": ("rating", "score", "grade", "stars", "judgment", "judgement"),
    "group": (*GUESSES["group"], "question_id", "qid"),
}
NEEDED = (("question",), ("answer",), ("rating",))
_ROUNDING = 1e-9
"""Means of ratings differ by no more than this from what they would be without rounding."""


@dataclass(frozen=True)
class Rated:
    """One rating of one answer."""

    id: str
    """Unique: its place in the file"""
    name: str
    """What its file calls the answer; the same for each rating of it"""
    question: str
    context: tuple[Passage, ...]
    answer: str
    group: str
    """As stated, or empty"""
    rating: float
    """Higher is better"""
    source: str = ""
    restricted: bool = False

    @property
    def asked(self) -> tuple[str, tuple[Passage, ...], str]:
        """The same for answers that may be compared."""
        return question_key(self.question), self.context, self.group


def from_rows(
    found: Iterable[Row], rejects: Rejects, fields: Mapping[str, str] | None, name: str, no_rows: str
) -> Iterator[Rated]:
    """Ratings from (place, columns) pairs with the columns question, answer and rating (a number, higher is better).

    Context, group and id may be there too. Rows without one of the three, and those whose id is another answer's, go
    to `rejects`. `name` begins the ids of rows without one. Raises DataError where a needed column is missing.
    """
    known: dict[str, tuple[Any, ...]] = {}

    def make(row: Mapping[str, Any], columns: Mapping[str, str], place: str) -> tuple[Rated | None, str]:
        rated, problem = _rated(row, columns, place)
        if rated and known.setdefault(rated.name, (rated.asked, rated.answer)) != (rated.asked, rated.answer):
            return None, "id of another answer"
        return rated, problem

    yield from records(found, rejects, make, SOURCE, name, no_rows, fields, guesses=COLUMNS, needed=NEEDED)


def paired(ratings: Iterable[Rated], spec: RatedSpec, seed: int, rejects: Rejects) -> list[Pair]:
    """Up to `spec.per_question` seeded pairs of each question, their ratings at least `spec.margin` apart.

    Only answers to the same question with the same context and group are compared: after any other prompt the worse one
    might be the better. An answer that was rated more than once has the mean of its ratings. What gives no pair is
    counted in `rejects`.
    """
    asked: dict[Any, dict[str, list[Rated]]] = defaultdict(lambda: defaultdict(list))
    for rated in ratings:
        asked[rated.asked][" ".join(rated.answer.split())].append(rated)
    pairs: list[Pair] = []
    for answers in asked.values():
        again = sum(map(len, answers.values())) - len(answers)
        rejects.count_only(SOURCE, "further ratings of the same answer, averaged with its first", again)
        means = [replace(each[0], rating=sum(r.rating for r in each) / len(each)) for each in answers.values()]
        if len(means) == 1:
            rejects.count_only(SOURCE, "answers without another to the same question, context and group")
        else:
            pairs += _of_question(means, spec, seed, rejects)
    return pairs


def _of_question(answers: Sequence[Rated], spec: RatedSpec, seed: int, rejects: Rejects) -> list[Pair]:
    """Pairs of different answers to one question. They are counted, not listed, to be chosen from."""
    ranked = sorted(answers, key=lambda each: each.rating)
    ratings = [each.rating for each in ranked]
    below = [bisect_right(ratings, rating - spec.margin + _ROUNDING) for rating in ratings]
    ends = list(accumulate(below))
    above = ratings[-1] - spec.margin + _ROUNDING
    lone = sum(not count and rating > above for count, rating in zip(below, ratings, strict=True))
    rejects.count_only(SOURCE, "answers rated too close to all others of their question (rated.margin)", lone)
    rejects.count_only(SOURCE, "pairs beyond rated.per_question", max(0, ends[-1] - spec.per_question))
    chance = random.Random(f"{seed}/rated/{ranked[0].question}")
    pairs = []
    for number in sorted(chance.sample(range(ends[-1]), min(ends[-1], spec.per_question))):
        place = bisect_right(ends, number)
        better, worse = ranked[place], ranked[ends[place] - 1 - number]
        pairs.append(
            Pair(
                id=f"{SOURCE}:{better.name}>{worse.name}",
                question=better.question,
                context=better.context,
                chosen=better.answer,
                rejected=worse.answer,
                group=group_of(better.group, better.question),
                source=better.source,
                restricted=better.restricted or worse.restricted,
                kind=RATED,
            )
        )
    return pairs


def _rated(row: Mapping[str, Any], columns: Mapping[str, str], place: str) -> tuple[Rated | None, str]:
    """The row as a Rated, or None and the reason why not."""
    values = {field: row.get(column) for field, column in columns.items()}
    question, answer = cell(values.get("question")), cell(values.get("answer"))
    context = passages(values.get("context"))
    rating = _number(values.get("rating"))
    if not question:
        return None, "no question"
    if not answer:
        return None, "no answer (or one that isn't text)"
    if rating is None:
        return None, "no rating (or one that isn't a number)"
    if context is None:
        return None, NO_CONTEXT
    name, group = (cell(values.get(field)) for field in ("id", "group"))
    source, restricted = cell(row.get("source")), is_marked(row.get(RESTRICTED))
    return Rated(place, name or place, question, context, answer, group, rating, source, restricted), ""


def _number(value: object) -> float | None:
    """A finite number, or None."""
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float(cell(value))
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
