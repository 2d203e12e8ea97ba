"""What raters made of known items, who rates carelessly, and what is left when those raters are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meditune.data.decisions import VERDICTS
from meditune.errors import DataError
from meditune.review.annotate.key import Row, row_of
from meditune.review.axes import VERDICT
from meditune.review.common import in_dispute
from meditune.review.disputes import Dispute
from meditune.review.rated import Rated, read_rated_as
from meditune.review.store import Rater
from meditune.review.tasks import VALIDATE

ENOUGH = 4
"""Known items from which on a rater's share of them says something"""
LEAST = 0.7
"""Share of known items that a careful rater gets right"""


@dataclass(frozen=True)
class Careful:
    """One rater on the known items."""

    rater: Rater
    judged: int
    right: int

    @property
    def careless(self) -> bool:
        """Whether too many known items were judged wrongly."""
        return self.judged >= ENOUGH and self.right < LEAST * self.judged


@dataclass(frozen=True)
class Checked:
    """A set's ratings without those of the raters who are left out."""

    rated: Rated[Row]
    careful: list[Careful]
    """Everybody who rated, those left out too"""
    left_out: list[Rater]


def read_checked(folder: Path, without: Sequence[str] = (), without_careless: bool = False) -> Checked:
    """The set in `folder`; `without` names raters whose words don't count, by name or code.

    Raises DataError where there is no whole set of this kind, or nobody of such a name rated.
    """
    rated = read_rated_as(folder, VALIDATE, row_of)
    careful = [_careful(rated, rated.raters[id]) for id in dict.fromkeys(rating.rater for rating in rated.first)]
    left_out = {each.rater.id for each in careful if without_careless and each.careless}
    for name in without:
        found = [
            each.rater.id
            for each in careful
            if name.casefold() in (each.rater.name.casefold(), each.rater.code.casefold())
        ]
        if not found:
            there = ", ".join(f"{each.rater.name} ({each.rater.code})" for each in careful) or "nobody"
            raise DataError(f"{folder}: no rater {name!r}. Rated by: {there}.")
        left_out |= set(found)
    return Checked(rated.without(left_out), careful, [rated.raters[id] for id in rated.raters if id in left_out])


def open_disputes(folder: Path, without: Sequence[str], without_careless: bool) -> list[Dispute]:
    """Rows of the data on which raters disagree; known items need nobody to settle them."""
    rated = read_checked(folder, without, without_careless).rated
    return [each for each in in_dispute(rated) if not rated.key[each.item].known]


def _careful(rated: Rated[Row], rater: Rater) -> Careful:
    known = [
        VERDICTS[rating.option - 1] in rated.key[rating.item].expected
        for rating in rated.first
        if rating.rater == rater.id and rating.axis == VERDICT.name
        if rating.option is not None and rated.key[rating.item].known
    ]
    return Careful(rater, len(known), sum(known))
