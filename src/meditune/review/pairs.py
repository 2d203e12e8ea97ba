"""Ratings as pairs of a better and a worse answer, for preference tuning (train.preference.path)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.data.preference.own import SOURCE
from meditune.data.preference.pair import OWN, Pair
from meditune.data.preference.rated import Rated as RatedAnswer
from meditune.data.preference.rated import paired
from meditune.data.rejects import Rejects
from meditune.errors import DataError
from meditune.files import write_jsonl
from meditune.recipe import RatedSpec
from meditune.review.common import SEED
from meditune.review.ratingset import Origin, RatingSet
from meditune.review.results import item_scores, overall, read_rated
from meditune.review.store import Note, Store


@dataclass(frozen=True)
class Made:
    """What was written, and what gave no pair."""

    rated: int
    corrected: int
    left_out: dict[str, int]


def write_pairs(folder: Path, path: Path, margin: float, per_question: int) -> Made:
    """Write pairs as JSON Lines that train.preference.path reads; returns how many came about how.

    An answer's rating is the mean score over its axes on a scale from 1 to 5, so `margin` 1 is a quarter of the way
    from worst to best. Whoever wrote a better answer prefers it to the one that was shown. Raises DataError where there
    is nothing to make pairs of.
    """
    rated = read_rated(folder)
    scores = overall(rated, item_scores(rated))
    answers = list(_answers(rated.set, rated.key, scores))
    rejects = Rejects()
    pairs = paired(answers, RatedSpec(margin=margin, per_question=per_question), SEED, rejects)
    corrected = list(_corrected(rated.set, rated.key, Store(folder).notes(), rejects))
    left_out = rejects.counts().get(SOURCE, {})
    if not pairs and not corrected:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "nothing was rated on every line"
        raise DataError(f"{folder}: no pair can be made of its ratings ({why}). Lower --margin, or rate more.")
    # The reader puts its prefix before ids, and says itself how a pair came about.
    rows = (pair.model_dump(mode="json", exclude={"kind"}) for pair in (*pairs, *corrected))
    write_jsonl(path, (row | {"id": row["id"].removeprefix(f"{SOURCE}:")} for row in rows), private=True)
    return Made(len(pairs), len(corrected), left_out)


def _answers(rating_set: RatingSet, key: dict[str, Origin], scores: dict[str, float | None]) -> Iterator[RatedAnswer]:
    for item in rating_set.items.values():
        score = scores.get(item.id)
        if score is not None and item.answer:
            asked = (item.question, item.context, item.answer, _group(key[item.id]))
            yield RatedAnswer(item.id, item.id, *asked, 1 + 4 * score / 100, **_terms(key[item.id]))


def _corrected(
    rating_set: RatingSet, key: dict[str, Origin], notes: Iterable[Note], rejects: Rejects
) -> Iterator[Pair]:
    for number, note in enumerate(notes, start=1):
        item, better = rating_set.items.get(note.item), note.better.strip()
        if item is None or not better:
            continue
        if not item.answer or " ".join(better.split()) == " ".join(item.answer.split()):
            reason = "better answers to an empty answer" if not item.answer else "better answers that change nothing"
            rejects.count_only(SOURCE, reason, 1)
            continue
        yield Pair(
            id=f"{SOURCE}:{item.id}-corrected-{number}",
            question=item.question,
            context=item.context,
            chosen=better,
            rejected=item.answer,
            group=_group(key[item.id]),
            kind=OWN,
            **_terms(key[item.id]),
        )


def _group(origin: Origin) -> str:
    return origin.group.partition("/")[2]


def _terms(origin: Origin) -> dict[str, Any]:
    """Where a question comes from, and whether it may be passed on."""
    return {"source": origin.group.partition("/")[0], "restricted": origin.restricted}
