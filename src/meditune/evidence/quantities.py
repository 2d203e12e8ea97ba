"""Numbers in prose with their values and units, and rates such as "once a week", "twice daily" or "every 6 hours"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import isclose, prod

_DIGITS = r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|(?<![\w)])\.\d+"
_SMALL = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
)
_WORDS = {word: float(value) for value, word in enumerate(_SMALL.split(), 2)} | {"nineteen": 19.0}
_TENFOLD = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_TENS = {word: 10.0 * value for value, word in enumerate(_TENFOLD, 2)}
_ONES = {"one": 1.0} | {word: value for word, value in _WORDS.items() if value < 10}
_SPELLED = rf"(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_ONES)}))?|{'|'.join(sorted(_WORDS, key=len, reverse=True))}"
AMOUNT = rf"(?:{_DIGITS}|{_SPELLED})"
"""The pattern of a number, in digits or spelled out"""
_SCALES = {
    "mass": "kg 1e6 kilogram 1e6 g 1e3 gram 1e3 mg 1 milligram 1 µg 1e-3 μg 1e-3 mcg 1e-3 ug 1e-3 microgram 1e-3 "
    "ng 1e-6",
    "time": "year 365.25 yr 365.25 month 30.44 week 7 wk 7 day 1 d 1 hour 0.0416667 hr 0.0416667 h 0.0416667 "
    "minute 6.94444e-4 min 6.94444e-4 second 1.15741e-5 sec 1.15741e-5 s 1.15741e-5",
    "volume": "l 1e3 liter 1e3 litre 1e3 dl 100 ml 1 milliliter 1 millilitre 1 cc 1 µl 1e-3 μl 1e-3",
    "length": "km 1e6 m 1e3 meter 1e3 metre 1e3 cm 10 mm 1 µm 1e-3 μm 1e-3",
    "share": "% 1 percent 1 percentage 1",
    "fold": "fold 1 times 1",
    "substance": "mol 1e3 mmol 1 µmol 1e-3 μmol 1e-3 nmol 1e-6",
    "activity": "iu 1 unit 1",
}
"""The units of each dimension, each followed by its size in the base unit"""
_UNITS = {
    unit: (kind, float(size))
    for kind, text in _SCALES.items()
    for unit, size in zip(text.split()[::2], text.split()[1::2], strict=True)
}
_UNIT = "|".join(re.escape(unit) + ("s?" if len(unit) > 2 else "") for unit in sorted(_UNITS, key=len, reverse=True))
_PER = {
    **dict.fromkeys(("kg", "kilo", "kilogram"), _UNITS["kg"]),
    **dict.fromkeys(("m2", "m²", "square metre", "square meter"), ("surface", 1.0)),
    **{unit: _UNITS[unit] for unit in ("l", "liter", "litre", "dl", "ml", "min", "minute", "h", "hr", "hour")},
    **{unit: _UNITS[unit] for unit in ("d", "day", "wk", "week", "month", "year")},
    "dose": ("dose", 1.0),
}
"""Denominator of an amount -> its dimension and its size in the base unit"""
_OFTEN = {"hourly": "hour", "daily": "day", "weekly": "week", "monthly": "month"}
_PER_UNIT = "|".join(sorted(_PER, key=len, reverse=True))
# "ng ml" stands for "ng ml(-1)", whose exponent was lost; "mg L-dopa" isn't a concentration.
_PER_EACH = re.compile(
    rf"(?: ?/ ?|[- ](?:per|an?|for (?:each|every)|each|every) )(?P<of>{_PER_UNIT})(?!\w)"
    rf"|[ .·](?P<power>{_PER_UNIT})(?: ?\(-1\)|[-−]1|⁻¹)(?!\w)|[ .·](?P<bare>kg|[dm]?l)(?![\w-])"
    rf"| (?P<often>{'|'.join(_OFTEN)})(?!\w)",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    rf"(?<![\w.,])(?<![A-Za-z]-)(?:\bp(?:[- ]values?)?\s*(?P<p>[<>=≤≥])=?\s*)?"
    rf"(?P<value>{_DIGITS}|(?<![\w-])(?:{_SPELLED})(?!\w))"
    rf"(?: ?(?P<sign>%)|[ -]?(?P<unit>{_UNIT})(?!\w)|(?!\w|[.,]\d))",
    re.IGNORECASE,
)
_OF = re.compile(rf"({_DIGITS})\s*(?:/|of(?: the)?|out of(?: the)?)\s*({_DIGITS})", re.IGNORECASE)
_P = frozenset(("p<", "p>", "p="))
_P_LIMITS = frozenset((0.1, 0.05, 0.025, 0.01, 0.005, 0.001, 0.0005, 0.0001))
"""Usual limits for p-values; a sentence may compare a p-value with one of them although its source doesn't"""
_RANGE = re.compile(r"\s*(?:-|–|to|and)\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Number:
    """A number as a text states it."""

    value: float
    unit: str
    """The unit in lowercase and singular; empty if there is none; "p<", "p>" or "p=" for a p-value"""
    start: int
    end: int
    decimals: int
    per: tuple[str, ...] = ()
    """The denominators: ("kg", "day") for mg/kg/day"""

    @property
    def dimension(self) -> str:
        """The quantity that the unit measures ("mass", "time", "share" ...), or an empty string."""
        return "p" if self.unit in _P else _UNITS.get(self.unit, ("", 1.0))[0]

    @property
    def in_base_units(self) -> float:
        """The value in its dimension's base unit: milligrams, days, millilitres, millimetres, percent."""
        return self.value * _UNITS.get(self.unit, ("", 1.0))[1]

    @property
    def days(self) -> float:
        """The period in the denominators, in days (1 for mg/day); 0 if there is no period of an hour or longer."""
        return next((size for kind, size in self._bases().items() if kind == "time" and size > 0.04), 0.0)

    def same_value(self, other: Number) -> bool:
        """Return whether the values are equal, or this value is the other value rounded; units are ignored.

        A value halfway between two rounded values, such as 12.5, may be rounded to either.
        """
        if isclose(self.value, other.value, rel_tol=1e-9):
            return True
        half = 0.5 * 10.0**-self.decimals
        return other.decimals > self.decimals and abs(other.value - self.value) <= half * (1 + 1e-9)

    def agrees(self, other: Number) -> bool:
        """Return whether the other number supports this one, taking the units into account."""
        if self.dimension == other.dimension == "p":
            return self._holds_given(other)
        if self.dimension and other.dimension and self.dimension == other.dimension:
            if not self._same_base(other):
                return False
            rounded = self.same_value(other) and (self.unit, self._for(other)) == (other.unit, other._for(self))
            return rounded or isclose(
                self.in_base_units / self._for(other), other.in_base_units / other._for(self), rel_tol=1e-3
            )
        return self.same_value(other) and not self.clashes(other)

    def _holds_given(self, other: Number) -> bool:
        """Return whether the other p-value supports this one: p = 0.03 supports p < 0.05, but not p < 0.12."""
        if self.unit == other.unit and self.same_value(other):
            return True
        if self.unit == "p=" or self.value not in _P_LIMITS:
            return False
        beyond = other.value < self.value if self.unit == "p<" else other.value > self.value
        return beyond and other.unit in ("p=", self.unit)

    def clashes(self, other: Number) -> bool:
        """Return whether both numbers have units, but of different dimensions: mg and weeks, or mg and mg/kg."""
        if not self.dimension or not other.dimension:
            return False
        return self.dimension != other.dimension or not self._same_base(other)

    def has_another_unit_than(self, other: Number) -> bool:
        """Return whether both numbers have units that differ: mg and weeks, mg and g, or mg and mg/kg."""
        return self.clashes(other) or (bool(self.dimension and other.dimension) and self.unit != other.unit)

    def _same_base(self, other: Number) -> bool:
        """Return whether both have equal denominators; one may lack "dose", or else a period of a day or longer."""
        own_bases, other_bases = self._bases(), other._bases()
        lone = {
            kind: size
            for each in (own_bases, other_bases)
            for kind, size in each.items()
            if kind in own_bases.keys() ^ other_bases
        }
        if "dose" in lone and "time" in lone:
            return False
        return all(kind == "dose" or (kind == "time" and size >= 1) for kind, size in lone.items())

    def _bases(self) -> dict[str, float]:
        return dict(_PER[each] for each in self.per)

    def _for(self, other: Number) -> float:
        """Return the combined size of this number's denominators that have a counterpart in the other number."""
        return prod(size for kind, size in self._bases().items() if kind in other._bases())


def numbers(text: str) -> list[Number]:
    """Return the numbers in a text, in order; digits inside names (COX-2, B12) and "one", often a pronoun, don't count.

    If the first number of a range has no unit, it gets the unit of the second.
    """
    found = list(_found(text))
    for index in range(len(found) - 1):
        first, second = found[index], found[index + 1]
        if not first.unit and second.unit and _RANGE.fullmatch(text[first.end : second.start]):
            found[index] = replace(first, unit=second.unit, per=second.per)
    return found


def shares(text: str) -> list[Number]:
    """Return the percentages that follow from counts in the text: "45 of 60" is 75%."""
    found = []
    for match in _OF.finditer(text):
        part, total = (float(each.replace(",", "")) for each in match.groups())
        if 0 < part <= total:
            found.append(Number(100 * part / total, "%", match.start(), match.end(), 9))
    return found


def is_supported_number(number: Number, known: Iterable[Number]) -> bool:
    """Return whether one of the known numbers supports this one."""
    return any(number.agrees(each) for each in known)


def _found(text: str) -> Iterator[Number]:
    for match in _NUMBER.finditer(text):
        literal = match["value"].lower()
        start, end = match.span("value")
        value, decimals = amount(literal), len(literal.partition(".")[2])
        p = match["p"] and "p" + {"≤": "<", "≥": ">"}.get(match["p"], match["p"])
        unit = (match["unit"] or "").lower()
        unit = p or match["sign"] or (unit if unit in _UNITS else unit.removesuffix("s"))
        per, last = _per(text, match.end()) if unit and not p else ((), match.end())
        yield Number(value, unit, start, end if p else last, decimals, per)


def _per(text: str, start: int) -> tuple[tuple[str, ...], int]:
    """Return the denominators of an amount that ends at `start`, and the position after them."""
    found: list[str] = []
    while match := _PER_EACH.match(text, start):
        unit_name = (match["of"] or match["power"] or match["bare"] or match["often"]).lower()
        found.append(_OFTEN.get(unit_name, unit_name))
        start = match.end()
    return tuple(found), start


def amount(text: str) -> float:
    """Return the value of a text that matches AMOUNT."""
    text = text.lower()
    if text[0].isdigit() or text[0] == ".":
        return float(text.replace(",", ""))
    if text in _WORDS:
        return _WORDS[text]
    tens, _, ones = text.replace("-", " ").partition(" ")
    return _TENS[tens] + _ONES.get(ones, 0.0)


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
    """A rate, such as "twice a day", with its position in the text."""

    times: float | None
    """Number of times per period; None if the text gives only the period, as in "daily" or "75 mg/day"."""
    days: float
    """Length of the period in days"""
    start: int
    end: int

    def agrees(self, other: Rate) -> bool:
        """Return whether the other rate supports this one.

        If this rate has no `times`, only the periods must agree. If the other rate has none, it supports only "once".
        """
        if self.times is None or (other.times is None and self.times == 1):
            return isclose(self.days, other.days, rel_tol=0.02)
        return other.times is not None and isclose(self.times / self.days, other.times / other.days, rel_tol=0.02)


def rates(text: str, numbers: Iterable[Number]) -> list[Rate]:
    """Return the rates in a text, in order, including its `numbers` per hour or per longer period ("75 mg/day")."""
    found = [*_stated_rates(text)]
    taken = [(each.start, each.end) for each in found]
    for number in numbers:
        if number.days and all(number.end <= start or number.start >= end for start, end in taken):
            found.append(Rate(None, number.days, number.start, number.end))
    return sorted(found, key=lambda each: each.start)


def _stated_rates(text: str) -> Iterator[Rate]:
    for match in _RATE.finditer(text):
        place = match.span()
        if match["times"]:
            times = amount(match["count"]) if match["count"] else _TIMES[match["times"].lower()]
            yield Rate(times, _DAYS[match["period"].lower()], *place)
            continue
        days = _DAYS[(match["each"] or match["of"] or match["adverb"]).lower()]
        apart = 2.0 if match["other"] else amount(match["apart"]) if match["apart"] else 0.0
        if not apart:
            yield Rate(None, days, *place)
        elif days < 1 and 1 < apart < 24:
            # An interval in hours is converted to times a day: every 12 hours is twice a day.
            yield Rate(24 / apart, 1.0, *place)
        else:
            yield Rate(1.0, days * apart, *place)
