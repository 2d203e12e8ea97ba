"""How often something is done, as prose tells it: once a week, twice daily, every 6 hours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isclose

from meditune.faithfulness.numbers import AMOUNT, Number, amount

_DAYS = {
    **dict.fromkeys(("hour", "hourly"), 1 / 24),
    **dict.fromkeys(("day", "daily", "night", "nightly", "morning", "evening"), 1.0),
    **dict.fromkeys(("week", "weekly"), 7.0),
    **dict.fromkeys(("fortnight", "fortnightly"), 14.0),
    **dict.fromkeys(("month", "monthly"), 30.44),
    **dict.fromkeys(("year", "yearly", "annually"), 365.25),
}
_TIMES = {"once": 1.0, "twice": 2.0, "thrice": 3.0}
_PERIOD = "|".join(sorted(_DAYS, key=len, reverse=True))
_ADVERB = "|".join(sorted((each for each in _DAYS if each.endswith("ly")), key=len, reverse=True))
_EACH = r"(?:an?|per|each|every|in an?)"
_NO_UNIT = "for|in|within|after|of|over|during|until|once|twice|thrice|times"
_RATE = re.compile(
    rf"\b(?:(?P<times>once|twice|thrice|(?P<count>{AMOUNT}) ?(?:times|x))(?: ?/ ?|[ -](?:{_EACH}[ -])?)"
    rf"(?P<period>{_PERIOD})"
    rf"|(?:once )?(?:every|each) (?:(?P<other>other|second|alternate) |(?P<apart>{AMOUNT}) )?(?P<each>{_PERIOD})s?"
    rf"|(?:one|{AMOUNT})(?: (?!(?:{_NO_UNIT})\b)[a-z]+){{1,2}} (?:an?|per) (?P<of>{_PERIOD})"
    rf"|(?P<adverb>{_ADVERB}))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Rate:
    """How often, where it stands."""

    times: float | None
    """In each period; None where only the period is told: "daily", "75 mg/day"."""
    days: float
    """The period's"""
    start: int
    end: int

    def agrees(self, other: Rate) -> bool:
        """Whether the other bears this out. Once is what needn't be told; a source's times may be left out."""
        if self.times is None or (other.times is None and self.times == 1):
            return isclose(self.days, other.days, rel_tol=0.02)
        return other.times is not None and isclose(self.times / self.days, other.times / other.days, rel_tol=0.02)


def rates(text: str, numbers: Iterable[Number]) -> list[Rate]:
    """Those of a text, among them its numbers' that are per hour or longer."""
    found = [*_said(text)]
    taken = [(each.start, each.end) for each in found]
    for number in numbers:
        if number.days and all(number.end <= start or number.start >= end for start, end in taken):
            found.append(Rate(None, number.days, number.start, number.end))
    return sorted(found, key=lambda each: each.start)


def _said(text: str) -> Iterator[Rate]:
    for match in _RATE.finditer(text):
        place = match.span()
        if match["times"]:
            times = amount(match["count"]) if match["count"] else _TIMES[match["times"].lower()]
            yield Rate(times, _DAYS[match["period"].lower()], *place)
        elif match["each"]:
            yield _every(match, *place)
        else:
            yield Rate(None, _DAYS[(match["of"] or match["adverb"]).lower()], *place)


def _every(match: re.Match[str], start: int, end: int) -> Rate:
    """Several times a day where hours are between, as others may tell it: every 12 hours is twice a day."""
    days = _DAYS[match["each"].lower()]
    apart = 2.0 if match["other"] else amount(match["apart"]) if match["apart"] else 0.0
    if not apart:
        return Rate(None, days, start, end)
    if days < 1 and 1 < apart < 24:
        return Rate(24 / apart, 1.0, start, end)
    return Rate(1.0, days * apart, start, end)
