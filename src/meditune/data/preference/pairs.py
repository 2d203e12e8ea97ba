"""The Pair record of preference tuning, pairs from the rows of a user's file, and pairs from corrupted answers.

A corrupted answer is unfaithful in one controlled way: a number is replaced, a negation or direction is reversed, or it
is the answer to another question. The text stays fluent, so that only the support by the sources distinguishes the two
answers.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from meditune.config.data_options import Style
from meditune.config.training_options import Corruption, PreferenceSpec
from meditune.data.example import STYLE, Example, Passage, Turn
from meditune.data.read_sources import RESTRICTED, is_marked, is_restricted
from meditune.data.readers.tables import Rejects, Row
from meditune.data.readers.user_files import GUESSES, NO_CONTEXT, cell, group_of, passages, records, stored_turns
from meditune.errors import DataError
from meditune.evidence.words import DIRECTION, NEGATABLE, NEGATED, NUMBER, OPPOSITE, value
from meditune.files import numbered_jsonl, write_jsonl

OWN = "own"
"""The kind of a pair read from a user's file"""
RATED = "rated"
"""The kind of a pair of rated answers"""
UP, DOWN = "up", "down"
"""The kinds of a single answer with thumbs up or down"""


class Pair(BaseModel):
    """A question with a preferred and a rejected answer, or with one of them: an answer with thumbs up or down."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    """Unique in a run; for an automatic pair, the example's id and the kind"""
    question: str = Field(min_length=1)
    context: tuple[Passage, ...] = ()
    chosen: str
    """Empty for thumbs down"""
    rejected: str
    """Empty for thumbs up"""
    group: str = Field(min_length=1)
    """Pairs of a group are never in both training and evaluation"""
    kind: str
    """Origin of the pair: `own`, `rated`, the kind of corruption, or for a single answer `up` or `down`"""

    style: Style | None = None
    """Style of both answers, if the question's source has two styles"""
    source: str = ""
    """Source of the question; empty if only its file is known"""
    restricted: bool = False
    """True if the licence forbids sharing the question"""
    turns: tuple[Turn, ...] | None = None
    """Earlier messages, if the question is the last one of a conversation"""

    @model_validator(mode="after")
    def _has_an_answer(self) -> Pair:
        if not self.answers:
            raise ValueError("a pair needs a chosen or a rejected answer")
        return self

    @property
    def answers(self) -> dict[str, str]:
        """The answers that the pair has: `chosen`, then `rejected`."""
        return {name: text for name, text in (("chosen", self.chosen), ("rejected", self.rejected)) if text}

    def single_answers(self) -> list[Pair]:
        """Return the pair's answers as thumbs up and thumbs down; a single answer stays as it is."""
        if len(self.answers) == 1:
            return [self]
        up = self.model_copy(update={"id": f"{self.id}/{UP}", "rejected": "", "kind": UP})
        return [up, self.model_copy(update={"id": f"{self.id}/{DOWN}", "chosen": "", "kind": DOWN})]

    def example(self) -> Example:
        """Return the question with its preferred answer, or else its only answer, as an Example."""
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


def write_pairs(path: Path, pairs: Iterable[Pair]) -> int:
    """Write pairs as JSON Lines and return their number."""
    return write_jsonl(path, (pair.model_dump(mode="json") for pair in pairs))


def read_pairs(path: Path) -> list[Pair]:
    """Return the pairs written by `write_pairs`. Raises DataError with the line of an invalid record."""
    pairs = []
    for number, row in numbered_jsonl(path):
        try:
            pairs.append(Pair.model_validate(row))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not a Pair record: {error}") from error
    return pairs


SOURCE = "pairs"
COLUMNS = {field: GUESSES[field] for field in ("id", "question", "context", "group")} | {
    "chosen": ("chosen", "preferred", "better", "accepted"),
    "rejected": ("rejected", "dispreferred", "worse"),
}
NEEDED = (("question",), ("chosen",), ("rejected",))


def from_rows(
    rows: Iterable[Row], rejects: Rejects, fields: Mapping[str, str] | None, name: str, no_rows: str
) -> Iterator[Pair]:
    """Yield pairs from (place, columns) with the columns question, chosen and rejected.

    The columns context, group, id, `source` (where the question comes from), `restricted` (may not be shared) and
    `turns` (earlier messages, each with `role` and `text`) are optional. `fields` maps fields to columns with other
    names; `name` is the prefix of generated ids. Rows without a required value, with two equal answers, or with a
    repeated id go to `rejects`. Raises DataError if a required column is missing, and with the message `no_rows` if
    there are no rows.
    """
    yield from records(rows, rejects, _pair, SOURCE, name, no_rows, fields, guesses=COLUMNS, needed=NEEDED)


def _pair(row: Mapping[str, Any], columns: Mapping[str, str], fallback_id: str) -> tuple[Pair | None, str]:
    """Return the row as a Pair, or None and the reason for rejecting it."""
    values = {field: row.get(column) for field, column in columns.items()}
    question, chosen, rejected = (cell(values.get(field)) for field in ("question", "chosen", "rejected"))
    context = passages(values.get("context"))
    if not question:
        return None, "no question"
    if not chosen or not rejected:
        return None, f"no {'rejected' if chosen else 'chosen'} answer (or it isn't text)"
    if " ".join(chosen.split()) == " ".join(rejected.split()):
        return None, "chosen and rejected answers are the same"
    if context is None:
        return None, NO_CONTEXT
    return Pair(
        id=f"{SOURCE}:{cell(values.get('id')) or fallback_id}",
        question=question,
        context=context,
        chosen=chosen,
        rejected=rejected,
        group=group_of(cell(values.get("group")), question),
        source=cell(row.get("source")),
        restricted=is_marked(row.get(RESTRICTED)),
        turns=stored_turns(row.get("turns")),
        kind=OWN,
    ), ""


def corrupt(kind: Corruption, example: Example, others: Sequence[Example], rng: random.Random) -> str | None:
    """Return the example's answer with one random corruption of this kind; None if there is nothing to corrupt.

    `others` are the examples from which the kind `other` takes an answer: one from another group with another text.
    """
    if kind == "other":
        return _another(example, others, rng)
    return {"number": _number, "negation": _negation, "direction": _direction}[kind](example, rng)


def _number(example: Example, rng: random.Random) -> str | None:
    """Replace one number by another from the sources or the answer, or by a multiple of itself."""
    text, found = example.answer, list(NUMBER.finditer(example.answer))
    if not found:
        return None
    match = rng.choice(found)
    number, decimals = match[0], _decimals(match[0])
    known = " ".join([text, *(passage.text for passage in example.context)])
    candidates = sorted(
        {each for each in NUMBER.findall(known) if _decimals(each) == decimals and value(each) != value(number)}
    )
    new = rng.choice(candidates) if candidates else f"{value(number) * rng.choice((2, 3)) or 1:.{decimals}f}"
    return _replaced(text, match, new)


def _negation(example: Example, rng: random.Random) -> str | None:
    """Remove one negation; if there is none, insert "not" after an auxiliary verb."""
    text, negated = example.answer, list(NEGATED.finditer(example.answer))
    if negated:
        match = rng.choice(negated)
        plain = match["plain"] or ("can" if len(match[0]) > 2 else "some")
        return _replaced(text, match, _cased(plain, match[0]))
    found = list(NEGATABLE.finditer(text))
    if not found:
        return None
    match = rng.choice(found)
    return _replaced(text, match, f"{match[0]}not" if match[0].lower() == "can" else f"{match[0]} not")


def _direction(example: Example, rng: random.Random) -> str | None:
    found = list(DIRECTION.finditer(example.answer))
    if not found:
        return None
    match = rng.choice(found)
    return _replaced(example.answer, match, _cased(OPPOSITE[match[0].lower()], match[0]))


def _another(example: Example, others: Sequence[Example], rng: random.Random) -> str | None:
    own_answer = _plain(example.answer)
    for _ in range(20):
        other = rng.choice(others)
        if other.group != example.group and _plain(other.answer) != own_answer:
            return other.answer
    return None


def _replaced(text: str, match: re.Match[str], new: str) -> str:
    return text[: match.start()] + new + text[match.end() :]


def _cased(word: str, template: str) -> str:
    """Return the word with an initial capital if `template` has one."""
    return word[:1].upper() + word[1:] if template[:1].isupper() else word


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def build(examples: Sequence[Example], spec: PreferenceSpec, seed: int) -> tuple[list[Pair], int]:
    """Return up to `spec.per_example` pairs for each example with an answer, and the number of examples without a pair.

    Of the kinds that an answer allows, the rarest so far are used first, to balance the kinds. The kind `other` takes
    answers from these examples only.
    """
    answered = [example for example in examples if example.answer.strip()]
    counts: Counter[Corruption] = Counter()
    pairs: list[Pair] = []
    without_pair = 0
    for example in answered:
        chance = random.Random(f"{seed}/pairs/{example.id}")
        before = len(pairs)
        for kind in sorted(dict.fromkeys(spec.corruptions), key=lambda kind: counts[kind]):
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
