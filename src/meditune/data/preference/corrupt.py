"""Answers made unfaithful in one controlled way: a number swapped, a negation or a direction turned, another's answer.

Each corruption leaves fluent text, so that what tells the two answers apart is whether the sources bear them out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from meditune.data.example import Example
from meditune.recipe import Corruption

_NUMBER = re.compile(r"(?<![\w.,-])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
_AUXILIARY = r"is|are|was|were|do|does|did|can|could|may|might|must|should|has|have|had|will|would"
_NEGATED = re.compile(
    rf"\b(?:(?P<plain>{_AUXILIARY})(?: not\b|n't\b|n’t\b)|cannot\b|can['’]t\b|no(?= [a-z]))", re.IGNORECASE
)
_NEGATABLE = re.compile(rf"\b(?:{_AUXILIARY})\b(?! not\b|['’]t)", re.IGNORECASE)
_OPPOSITES = (
    "increase/decrease increases/decreases increased/decreased increasing/decreasing higher/lower high/low more/less "
    "greater/smaller better/worse improve/worsen improves/worsens improved/worsened improving/worsening "
    "improvement/deterioration reduce/raise reduces/raises reduced/raised reducing/raising reduction/rise rose/fell "
    "positive/negative positively/negatively effective/ineffective safe/unsafe beneficial/harmful superior/inferior "
    "longer/shorter long/short early/late earlier/later before/after significant/insignificant "
    "significantly/insignificantly likely/unlikely feasible/infeasible useful/useless helps/harms help/harm "
    "strong/weak common/rare frequent/infrequent necessary/unnecessary appropriate/inappropriate "
    "adequate/inadequate sufficient/insufficient reliable/unreliable accurate/inaccurate similar/different"
)
_PAIRS = [(pair.partition("/")[0], pair.partition("/")[2]) for pair in _OPPOSITES.split()]
OPPOSITE = dict(_PAIRS) | {second: first for first, second in _PAIRS}
"""Direction words, each with the one that turns a finding round"""
_DIRECTION = re.compile(rf"\b(?:{'|'.join(sorted(OPPOSITE, key=len, reverse=True))})\b", re.IGNORECASE)


def corrupt(kind: Corruption, example: Example, others: Sequence[Example], chance: random.Random) -> str | None:
    """The example's answer, corrupted in that way by a seeded choice; None where it offers nothing to corrupt.

    `others` are the examples whose answers `other` may take: those of another group that say something else.
    """
    if kind == "other":
        return _another(example, others, chance)
    return {"number": _number, "negation": _negation, "direction": _direction}[kind](example, chance)


def _number(example: Example, chance: random.Random) -> str | None:
    """One number replaced by another one of the sources or the answer, or else by a multiple of it."""
    text, found = example.answer, list(_NUMBER.finditer(example.answer))
    if not found:
        return None
    match = chance.choice(found)
    said, decimals = match[0], _decimals(match[0])
    known = " ".join([text, *(passage.text for passage in example.context)])
    candidates = sorted(
        {
            number
            for number in _NUMBER.findall(known)
            if _decimals(number) == decimals and _value(number) != _value(said)
        }
    )
    new = chance.choice(candidates) if candidates else f"{_value(said) * chance.choice((2, 3)) or 1:.{decimals}f}"
    return _replaced(text, match, new)


def _negation(example: Example, chance: random.Random) -> str | None:
    """One negation taken away; where there is none, "not" put after one auxiliary verb."""
    text, negated = example.answer, list(_NEGATED.finditer(example.answer))
    if negated:
        match = chance.choice(negated)
        plain = match["plain"] or ("can" if len(match[0]) > 2 else "some")
        return _replaced(text, match, _cased(plain, match[0]))
    found = list(_NEGATABLE.finditer(text))
    if not found:
        return None
    match = chance.choice(found)
    return _replaced(text, match, f"{match[0]}not" if match[0].lower() == "can" else f"{match[0]} not")


def _direction(example: Example, chance: random.Random) -> str | None:
    found = list(_DIRECTION.finditer(example.answer))
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


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
