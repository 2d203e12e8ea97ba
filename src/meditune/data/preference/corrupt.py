"""Answers made unfaithful in one controlled way: a number swapped, a negation or a direction turned, another's answer.

Each corruption leaves fluent text, so that what tells the two answers apart is whether the sources bear them out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from meditune.data.example import Example
from meditune.faithfulness.wording import DIRECTION, NEGATABLE, NEGATED, NUMBER, OPPOSITE, value
from meditune.recipe import Corruption


def corrupt(kind: Corruption, example: Example, others: Sequence[Example], chance: random.Random) -> str | None:
    """The example's answer, corrupted in that way by a seeded choice; None where it offers nothing to corrupt.

    `others` are the examples whose answers `other` may take: those of another group that say something else.
    """
    if kind == "other":
        return _another(example, others, chance)
    return {"number": _number, "negation": _negation, "direction": _direction}[kind](example, chance)


def _number(example: Example, chance: random.Random) -> str | None:
    """One number replaced by another one of the sources or the answer, or else by a multiple of it."""
    text, found = example.answer, list(NUMBER.finditer(example.answer))
    if not found:
        return None
    match = chance.choice(found)
    said, decimals = match[0], _decimals(match[0])
    known = " ".join([text, *(passage.text for passage in example.context)])
    candidates = sorted(
        {number for number in NUMBER.findall(known) if _decimals(number) == decimals and value(number) != value(said)}
    )
    new = chance.choice(candidates) if candidates else f"{value(said) * chance.choice((2, 3)) or 1:.{decimals}f}"
    return _replaced(text, match, new)


def _negation(example: Example, chance: random.Random) -> str | None:
    """One negation taken away; where there is none, "not" put after one auxiliary verb."""
    text, negated = example.answer, list(NEGATED.finditer(example.answer))
    if negated:
        match = chance.choice(negated)
        plain = match["plain"] or ("can" if len(match[0]) > 2 else "some")
        return _replaced(text, match, _cased(plain, match[0]))
    found = list(NEGATABLE.finditer(text))
    if not found:
        return None
    match = chance.choice(found)
    return _replaced(text, match, f"{match[0]}not" if match[0].lower() == "can" else f"{match[0]} not")


def _direction(example: Example, chance: random.Random) -> str | None:
    found = list(DIRECTION.finditer(example.answer))
    if not found:
        return None
    match = chance.choice(found)
    return _replaced(example.answer, match, _cased(OPPOSITE[match[0].lower()], match[0]))


def _another(example: Example, others: Sequence[Example], chance: random.Random) -> str | None:
    mine = _plain(example.answer)
    for _ in range(20):
        other = chance.choice(others)
        if other.group != example.group and _plain(other.answer) != mine:
            return other.answer
    return None


def _replaced(text: str, match: re.Match[str], new: str) -> str:
    return text[: match.start()] + new + text[match.end() :]


def _cased(word: str, like: str) -> str:
    """The word with a capital where `like` has one."""
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
