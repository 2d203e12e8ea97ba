"""The Pair record for preference tuning, and pairs from a user's file, from rated answers and from corrupted answers.

If two answers to the same question are rated, the answer with the higher rating is preferred; KTO learns from thumbs up
and down instead. A corrupted answer is fluent but unfaithful in one controlled way, so that the pair's answers differ
only in whether the sources support them.
"""

from __future__ import annotations

import math
import random
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from meditune.config.data_options import Style
from meditune.config.training_options import CORRUPTIONS, Corruption, PreferenceSpec
from meditune.data.example import STYLE, Example, Passage, Turn
from meditune.data.read_sources import RESTRICTED, is_marked, is_restricted
from meditune.data.readers.tables import LAYOUTS, Rejects, Row
from meditune.data.readers.user_files import (
    NO_CONTEXT,
    cell,
    group_of,
    passages,
    records,
    stored_turns,
    with_known_names,
)
from meditune.data.splits import question_key
from meditune.evidence.lexical_features import DIRECTION, NEGATABLE, NEGATED, NUMBER, OPPOSITE, value

OWN, RATED = "own", "rated"
UP, DOWN = "up", "down"


class Pair(BaseModel):
    """A question with a preferred and a rejected answer, or with a single answer that was rated thumbs up or down."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    """Unique in a run; for an automatically built pair, the example's id and the kind"""
    question: str = Field(min_length=1)
    context: tuple[Passage, ...] = ()
    chosen: str
    rejected: str
    group: str = Field(min_length=1)
    kind: str
    """Origin of the pair (`own`, `rated`, or the kind of corruption); for a single answer, `up` or `down`"""
    style: Style | None = None
    """Style of both answers, if the question's source has two styles"""
    source: str = ""
    """Source of the question; empty if only the file is known"""
    restricted: bool = False
    """True if the licence forbids sharing the question"""
    turns: tuple[Turn, ...] | None = None
    """Earlier messages, if the question is the last message of a conversation"""

    @model_validator(mode="after")
    def _has_an_answer(self) -> Pair:
        if not self.answers:
            raise ValueError("a pair needs a chosen or a rejected answer")
        return self

    @property
    def answers(self) -> dict[str, str]:
        """Return name -> text for each answer that the pair has: `chosen`, then `rejected`."""
        return {name: text for name, text in (("chosen", self.chosen), ("rejected", self.rejected)) if text}

    def single_answers(self) -> list[Pair]:
        """Return the pair's two answers as thumbs up and thumbs down; a single answer is returned unchanged."""
        if len(self.answers) == 1:
            return [self]
        up = self.model_copy(update={"id": f"{self.id}/{UP}", "rejected": "", "kind": UP})
        return [up, self.model_copy(update={"id": f"{self.id}/{DOWN}", "chosen": "", "kind": DOWN})]

    def example(self) -> Example:
        """Return an Example with the question and the chosen answer, or the rejected answer if no answer was chosen."""
        mark = {RESTRICTED: True} if self.restricted else {}
        return Example(
            id=self.id,
            source=self.source or OWN,
            question=self.question,
            context=self.context,
            answer=self.chosen or self.rejected,
            group=self.group,
            meta=mark | ({STYLE: self.style} if self.style else {}),
            turns=self.turns,
        )


SOURCE = "pairs"


def from_rows(
    rows: Iterable[Row], rejects: Rejects, fields: Mapping[str, str] | None, name: str, no_rows: str
) -> Iterator[Pair]:
    """Yield pairs from rows with the columns question, chosen and rejected. Raises DataError like `records`.

    Optional columns are context, group, id, source, restricted and turns.
    """
    yield from records(rows, rejects, _pair, SOURCE, name, no_rows, fields, LAYOUTS["pairs"])


def _asked(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a Pair or Rated that say what was asked; the context is None if its format is unknown."""
    others = with_known_names(others)
    return {
        "question": cell(values.get("question")),
        "context": passages(values.get("context")),
        "group": cell(values.get("group")),
        "source": cell(others.get("source")),
        "restricted": is_marked(others.get(RESTRICTED)),
        "turns": stored_turns(others.get("turns")),
    }


def _pair(values: Mapping[str, Any], others: Mapping[str, Any], fallback_id: str) -> Pair | str:
    """Return the pair in a row, or the reason for rejecting the row."""
    asked = _asked(values, others)
    chosen, rejected = (cell(values.get(field)) for field in ("chosen", "rejected"))
    if not asked["question"]:
        return "no question"
    if not chosen or not rejected:
        return f"no {'rejected' if chosen else 'chosen'} answer (or it isn't text)"
    if " ".join(chosen.split()) == " ".join(rejected.split()):
        return "chosen and rejected answers are the same"
    if asked["context"] is None:
        return NO_CONTEXT
    asked["group"] = group_of(asked["group"], asked["question"])
    id = f"{SOURCE}:{cell(values.get('id')) or fallback_id}"
    return Pair(id=id, chosen=chosen, rejected=rejected, kind=OWN, **asked)


THUMBS = {"up": 1.0, "true": 1.0, "1": 1.0, "+1": 1.0, "down": -1.0, "false": -1.0, "-1": -1.0}
"""Rating in lowercase -> 1 for thumbs up, -1 for thumbs down"""
UNKNOWN_THUMB = "unknown rating"
MARGIN, PER_QUESTION = 1.0, 10
"""Minimum difference between the ratings in a pair, and maximum number of pairs per question"""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Rated:
    """An answer and one of its ratings."""

    id: str
    """Position in the file, which is unique"""
    name: str
    """Id of the answer in the file, which is the same for all ratings of the answer"""
    question: str
    context: tuple[Passage, ...]
    answer: str
    group: str
    rating: float
    """Higher is better; 1 or -1 for thumbs up or down"""
    source: str = ""
    restricted: bool = False
    turns: tuple[Turn, ...] | None = None

    @property
    def asked(self) -> tuple[Any, ...]:
        """Return a key of the question; only answers with equal keys may be compared."""
        return question_key(self.question), self.context, self.turns, self.group

    def pair(self, id: str, kind: str, chosen: str, rejected: str, restricted: bool) -> Pair:
        """Return a pair about this question."""
        return Pair(
            id=f"{SOURCE}:{id}",
            question=self.question,
            context=self.context,
            chosen=chosen,
            rejected=rejected,
            group=group_of(self.group, self.question),
            source=self.source,
            restricted=restricted,
            turns=self.turns,
            kind=kind,
        )


def rated_from_rows(
    rows: Iterable[Row],
    rejects: Rejects,
    fields: Mapping[str, str] | None,
    name: str,
    no_rows: str,
    as_thumbs: bool = False,
) -> Iterator[Rated]:
    """Yield ratings from rows with columns for question, answer and rating. Raises DataError like `records`."""
    known: dict[str, tuple[Any, ...]] = {}

    def make(values: Mapping[str, Any], others: Mapping[str, Any], place: str) -> Rated | str:
        rated = _rated(values, others, place, as_thumbs)
        if isinstance(rated, Rated):
            same = (rated.asked, rated.answer)
            if known.setdefault(rated.name, same) != same:
                return "the id is already used for another answer"
        return rated

    layout = LAYOUTS["thumbs" if as_thumbs else "ratings"]
    yield from records(rows, rejects, make, SOURCE, name, no_rows, fields, layout)


def paired(
    ratings: Iterable[Rated], seed: int, rejects: Rejects, margin: float = MARGIN, per_question: int = PER_QUESTION
) -> list[Pair]:
    """Return up to `per_question` seeded random pairs of answers per question; mean ratings differ by `margin` or more.

    Only answers to the same question with the same context and group are paired. Answers that can't be paired are
    counted in `rejects`.
    """
    asked: dict[Any, dict[str, list[Rated]]] = defaultdict(lambda: defaultdict(list))
    for rated in ratings:
        asked[rated.asked][" ".join(rated.answer.split())].append(rated)
    pairs: list[Pair] = []
    for answers in asked.values():
        again = sum(map(len, answers.values())) - len(answers)
        rejects.count_only(SOURCE, "further ratings of the same answer (averaged)", again)
        means = [replace(each[0], rating=sum(r.rating for r in each) / len(each)) for each in answers.values()]
        if len(means) == 1:
            rejects.count_only(SOURCE, "answers without another answer for the same question, context and group")
        else:
            pairs += _of_question(means, margin, per_question, seed, rejects)
    return pairs


def _of_question(answers: Sequence[Rated], margin: float, per_question: int, seed: int, rejects: Rejects) -> list[Pair]:
    """Return pairs of answers to one question; pairs are sampled by index, so that they needn't all be listed."""
    ranked = sorted(answers, key=lambda each: each.rating)
    ratings = [each.rating for each in ranked]
    below = [bisect_right(ratings, rating - margin + _ROUNDING) for rating in ratings]
    ends = list(accumulate(below))
    above = ratings[-1] - margin + _ROUNDING
    unpaired = sum(not count and rating > above for count, rating in zip(below, ratings, strict=True))
    rejects.count_only(SOURCE, "answers rated too close to all other answers to their question", unpaired)
    rejects.count_only(SOURCE, "pairs beyond the maximum for one question", max(0, ends[-1] - per_question))
    chance = random.Random(f"{seed}/rated/{ranked[0].question}")
    pairs = []
    for number in sorted(chance.sample(range(ends[-1]), min(ends[-1], per_question))):
        place = bisect_right(ends, number)
        better, worse = ranked[place], ranked[ends[place] - 1 - number]
        restricted = better.restricted or worse.restricted
        pairs.append(better.pair(f"{better.name}>{worse.name}", RATED, better.answer, worse.answer, restricted))
    return pairs


def thumbs(ratings: Iterable[Rated], rejects: Rejects) -> list[Pair]:
    """Return each rated answer as thumbs up or down, by the majority of its ratings; ties are counted in `rejects`."""
    answers: dict[Any, list[Rated]] = defaultdict(list)
    for rated in ratings:
        answers[rated.asked, " ".join(rated.answer.split())].append(rated)
    pairs = []
    for first, *further in answers.values():
        rejects.count_only(SOURCE, "further ratings of the same answer (the majority counts)", len(further))
        total = first.rating + sum(each.rating for each in further)
        if not total:
            rejects.count_only(SOURCE, "answers with as many thumbs up as thumbs down")
            continue
        restricted = any(each.restricted for each in (first, *further))
        up, down = (first.answer, "") if total > 0 else ("", first.answer)
        pairs.append(first.pair(first.name, UP if total > 0 else DOWN, up, down, restricted))
    return pairs


def _rated(values: Mapping[str, Any], others: Mapping[str, Any], place: str, as_thumbs: bool) -> Rated | str:
    """Return the rating in a row, or the reason for rejecting the row."""
    asked, answer, stated = _asked(values, others), cell(values.get("answer")), cell(values.get("rating"))
    rating = THUMBS.get(stated.lower().removesuffix(".0")) if as_thumbs else _finite(values.get("rating"))
    if not asked["question"]:
        return "no question"
    if not answer:
        return "no answer (or the answer isn't text)"
    if rating is None and as_thumbs:
        return f"{UNKNOWN_THUMB} {stated.lower()[:40]!r}" if stated else "no rating"
    if rating is None:
        return "no rating (or the rating isn't a number)"
    if asked["context"] is None:
        return NO_CONTEXT
    return Rated(place, cell(values.get("id")) or place, answer=answer, rating=rating, **asked)


def _finite(value: object) -> float | None:
    """Return the value as a finite number, or None."""
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float(cell(value))
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def corrupt(kind: Corruption, example: Example, others: Sequence[Example], rng: random.Random) -> str | None:
    """Return the answer with one random corruption of this kind, or None if it can't be corrupted in this way.

    For the kind `other`, return the answer of a random example from another group.
    """
    if kind == "other":
        return _another(example, others, rng)
    return {"number": _number, "negation": _negation, "direction": _direction}[kind](example, rng)


def _number(example: Example, rng: random.Random) -> str | None:
    """Return the answer with one number replaced by another from the sources or the answer, or by a multiple of it."""
    match = _any_match(NUMBER, example.answer, rng)
    if not match:
        return None
    number, decimals = match[0], len(match[0].partition(".")[2])
    known = NUMBER.findall(" ".join([example.answer, *(passage.text for passage in example.context)]))
    candidates = {each for each in known if len(each.partition(".")[2]) == decimals and value(each) != value(number)}
    if candidates:
        return _replaced(match, rng.choice(sorted(candidates)))
    return _replaced(match, f"{value(number) * rng.choice((2, 3)) or 1:.{decimals}f}")


def _negation(example: Example, rng: random.Random) -> str | None:
    """Return the answer without one of its negations; if it has none, with "not" after an auxiliary verb."""
    if match := _any_match(NEGATED, example.answer, rng):
        plain = match["plain"] or ("can" if len(match[0]) > 2 else "some")
        return _replaced(match, _cased(plain, match[0]))
    match = _any_match(NEGATABLE, example.answer, rng)
    return match and _replaced(match, f"{match[0]}not" if match[0].lower() == "can" else f"{match[0]} not")


def _direction(example: Example, rng: random.Random) -> str | None:
    match = _any_match(DIRECTION, example.answer, rng)
    return match and _replaced(match, _cased(OPPOSITE[match[0].lower()], match[0]))


def _any_match(pattern: re.Pattern[str], text: str, rng: random.Random) -> re.Match[str] | None:
    found = list(pattern.finditer(text))
    return rng.choice(found) if found else None


def _replaced(match: re.Match[str], new: str) -> str:
    return match.string[: match.start()] + new + match.string[match.end() :]


def _another(example: Example, others: Sequence[Example], rng: random.Random) -> str | None:
    own = example.answer.casefold().split()
    for _ in range(20):
        other = rng.choice(others)
        if other.group != example.group and other.answer.casefold().split() != own:
            return other.answer
    return None


def _cased(word: str, template: str) -> str:
    """Return the word with an initial capital if `template` has one."""
    return word[:1].upper() + word[1:] if template[:1].isupper() else word


def build(examples: Sequence[Example], spec: PreferenceSpec, seed: int) -> tuple[list[Pair], int]:
    """Return up to `spec.per_example` pairs for each example, and the number of answers without a pair.

    The kinds of corruption that have been used least so far are tried first.
    """
    answered = [example for example in examples if example.answer.strip()]
    counts: Counter[Corruption] = Counter()
    pairs: list[Pair] = []
    without_pair = 0
    for example in answered:
        chance = random.Random(f"{seed}/pairs/{example.id}")
        before = len(pairs)
        for kind in sorted(CORRUPTIONS, key=lambda kind: counts[kind]):
            rejected = corrupt(kind, example, answered, chance)
            if rejected is None:
                continue
            counts[kind] += 1
            pairs.append(
                Pair(
                    id=f"{example.id}/{kind}",
                    question=example.question,
                    context=example.context,
                    chosen=example.answer,
                    rejected=rejected,
                    group=example.group,
                    style=example.style,
                    source=example.source,
                    restricted=is_restricted(example),
                    turns=example.turns,
                    kind=kind,
                )
            )
            if len(pairs) - before == spec.per_example:
                break
        without_pair += len(pairs) == before
    return pairs, without_pair
