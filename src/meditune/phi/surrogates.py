"""Surrogates: invented identifiers that replace the real ones consistently in all texts of a patient.

Surrogates are derived from the original text by HMAC-SHA-256, keyed by a secret and the patient's group, so that none
has to be stored. All dates of a patient are shifted by the same number of weeks, which preserves intervals and
weekdays. The secret stays on this machine and is never stored with the data, because anyone who has the secret can test
guesses.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
import re
import secrets
import string
from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import date, timedelta
from functools import partial
from typing import TypeVar

from meditune.config.data_options import Kind
from meditune.errors import DataError
from meditune.files import cache_folder, write_bytes
from meditune.phi import name_words
from meditune.phi.name_words import PIECE, plain, stem
from meditune.phi.spans import PLACEHOLDERS, Span, normalized, placeholder, replaced, word_list

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_MIDDLE = 15  # Day used for a date without a day
_ANY_YEAR = 2000  # Year used for a date without one; a leap year, so that February 29 is valid
_WORD = re.compile(r"[A-Za-z]{3,}")
_NUMBERS = re.compile(r"\d+")
_SUFFIXES = {1: "st", 2: "nd", 3: "rd"}
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_DAYS = re.compile(rf"({_DAY})( ?[-–/] ?| to | and )((?:the )?{_DAY})(?![\w/])")


def shift_date(written: str, days: int, day_first: bool = False) -> str | None:
    """Return the date `days` later in the same format ("3/14/2012", "14-MAR-12", "March 14th").

    In a range such as "March 3-5", each day is shifted, and gets its own month if the months differ. A date without a
    year counts as a date in a leap year. With `day_first`, 3/4/2012 is a date in April. Returns None for a holiday or
    any other text that can't be parsed.
    """
    word = _month_in(written)
    numbers = [each[0] for each in _NUMBERS.finditer(written)]
    try:
        if word:
            return _worded(written, word, numbers, days)
        if len(numbers) == 1 and len(numbers[0]) == 8:
            moved = date(int(numbers[0][:4]), int(numbers[0][4:6]), int(numbers[0][6:])) + timedelta(days)
            return f"{moved:%Y%m%d}"
        return _numeric(written, numbers, days, day_first)
    except (ValueError, OverflowError):
        return None


def _numeric(written: str, numbers: list[str], days: int, day_first: bool) -> str | None:
    order = _order(numbers, day_first)
    if order is None:
        return None
    parts = dict(zip(order, numbers, strict=True))
    year = _full_year(parts["year"]) if "year" in parts else _ANY_YEAR
    moved = date(year, int(parts["month"]), int(parts.get("day", _MIDDLE))) + timedelta(days)
    values = {"year": moved.year, "month": moved.month, "day": moved.day}
    zeros = order[0] == "year" or any(number.startswith("0") for number in numbers)
    return _written_like(
        written, [_padded(values[name], "0" if zeros and name != "year" else parts[name]) for name in order]
    )


def _order(numbers: list[str], day_first: bool) -> tuple[str, ...] | None:
    if len(numbers) == 3 and len(numbers[0]) == 4:
        return ("year", "month", "day")
    if len(numbers) == 2 and len(numbers[1]) == 4:
        return ("month", "year")
    if len(numbers) not in {2, 3}:
        return None
    is_day_first = int(numbers[0]) > 12 or (day_first and int(numbers[1]) <= 12)
    return (*(("day", "month") if is_day_first else ("month", "day")), "year")[: len(numbers)]


def _are_day_first(dates: Iterable[str]) -> bool:
    """Return True if some of the dates can only have the day first ("25/04/2023") and none only the month first."""
    numbers = [_NUMBERS.findall(written)[:2] for written in dates if not _month_in(written)]
    pairs = [(int(each[0]), int(each[1])) for each in numbers if len(each) == 2 and max(map(len, each)) < 3]
    return any(first > 12 for first, _ in pairs) and not any(second > 12 for _, second in pairs)


def _month_in(written: str) -> str | None:
    return next((each[0] for each in _WORD.finditer(written) if _month_of(each[0])), None)


def _worded(written: str, word: str, numbers: list[str], days: int) -> str:
    years = [number for number in numbers if len(number) == 4]
    before = written.index(word)
    rest = [number for number in numbers if len(number) < 4]
    ends_in_year = re.search(rf"(?:['’]|{word}[.,]{{0,2}}[ -]?)\d\d$", written)
    short_year = not years and len(rest) > 1 and ends_in_year and rest[-1]
    if not years and len(rest) == 1 and "'" in written.replace("’", "'"):
        short_year = rest[0]
    year = int(years[0]) if years else _full_year(short_year) if short_year else _ANY_YEAR
    each = rest[:-1] if short_year else rest
    month = _month_of(word)
    days_moved = [date(year, month, int(number)) + timedelta(days) for number in each]
    first = days_moved[0] if days_moved else date(year, month, _MIDDLE) + timedelta(days)
    if days_moved and days_moved[-1].month != first.month and (found := _DAYS.search(written)):
        each_alone = [written[: found.start()] + day + written[found.end() :] for day in (found[1], found[3])]
        return found[2].join(_worded(alone, word, _NUMBERS.findall(alone), days) for alone in each_alone)
    values = [_padded(moved.day, number) for moved, number in zip(days_moved, each, strict=True)]
    if years or short_year:
        values.append(_padded(first.year, years[0] if years else str(short_year)))
    numbered = _written_like(written, values)
    name = _MONTHS[first.month - 1]
    short = len(word) < 5 and word.lower() not in {"june", "july", "may"}
    cased = name[:3] if short else name
    cased = cased.upper() if word.isupper() else cased.lower() if word.islower() else cased
    place = numbered.index(word, max(0, before - 4)) if word in numbered else numbered.index(word)
    spelled = numbered[:place] + cased + numbered[place + len(word) :]

    def ordinal(found: re.Match[str]) -> str:
        day = int(found[1])
        return found[1] + ("th" if 10 < day % 100 < 14 else _SUFFIXES.get(day % 10, "th"))

    return re.sub(r"(\d{1,2})(?:st|nd|rd|th)(?![a-z])", ordinal, spelled)


def _written_like(written: str, values: list[str]) -> str:
    """Return `written` with its numbers replaced by `values`, in order."""
    left = iter(values)
    return _NUMBERS.sub(lambda found: next(left, found[0]), written)


def _padded(value: int, like: str) -> str:
    """Return the value with as many digits as `like`, if `like` has a leading zero or the value is a year."""
    if value > 99:
        return str(value) if len(like) == 4 else f"{value % 100:02}"
    return f"{value:02}" if like.startswith("0") else str(value)


def _full_year(written: str) -> int:
    year = int(written)
    if len(written) > 2:
        return year
    return 1900 + year if year > 50 else 2000 + year


def _month_of(word: str) -> int:
    low = word.lower()
    return next((number for number, name in enumerate(_MONTHS, start=1) if name[:3].lower() == low[:3]), 0)


_GIVEN = sorted(name_words.GIVEN - name_words.SURNAMES - name_words.EPONYMS - name_words.CITIES)
_SURNAMES = sorted(name_words.SURNAMES - name_words.GIVEN - name_words.EPONYMS - name_words.CITIES)
_CITIES = sorted(name_words.CITIES)
_STREETS = (
    *("Alder", "Birch", "Cedar", "Elm", "Hazel", "Juniper"),
    *("Larch", "Linden", "Maple", "Poplar", "Rowan", "Willow"),
)
_STREET_KIND = re.compile(
    r"(?<![^\W_])(?:street|st|avenue|ave|road|rd|boulevard|blvd|drive|dr|lane|ln|court|ct|place|pl|way|terrace|terr?|"
    r"circle|cir|parkway|pkwy|highway|hwy|square|sq|trail|trl|loop|alley|plaza|crescent|close|turnpike|pike|row|path|"
    r"run|gardens|heights)(?![a-z'’-])\.?",
    re.IGNORECASE,
)
_UNIT = re.compile(
    r",?[ \n](?:apt|apartment|unit|suite|ste|floor|fl|room|rm|bldg|#)\.? ?#?[a-z0-9-]{1,6}$", re.IGNORECASE
)
_FACILITIES = word_list("facilities")
_AFTER_FACILITY = re.compile(r"\s(?:of|at|for)\s", re.IGNORECASE)
_SMALL_WORD = re.compile(r"[^\W\d_][\w'’-]*")
_MIN_WEEKS, _MAX_WEEKS = 8, 156
_MAX_AGE = "90"  # Replacement for every age over 89, as 45 CFR 164.514(b)(2)(i)(C) permits


Field = TypeVar("Field", bound=Hashable)


class Surrogates:
    """Surrogates for one patient's group, derived from `secret`."""

    def __init__(self, secret: bytes, group: str) -> None:
        self._key = hmac.digest(secret, group.encode(), hashlib.sha256)
        weeks = _MIN_WEEKS + self._number("weeks", "") % (_MAX_WEEKS - _MIN_WEEKS)
        self.days = 7 * weeks * (-1 if self._number("direction", "") % 2 else 1)
        """Number of days by which dates are shifted"""

    def replaced_in(self, texts: Mapping[Field, str], spans: Mapping[Field, Sequence[Span]]) -> dict[Field, str]:
        """Return field -> text with a surrogate for each of the field's spans, which are in order and don't overlap.

        The dates in all the fields show together whether the day or the month comes first.
        """
        each = ((texts[name], span) for name, found in spans.items() for span in found)
        dates = (normalized(text[span.start : span.end])[0] for text, span in each if span.kind == "date")
        instead = partial(self._instead, day_first=_are_day_first(dates))
        return {name: replaced(texts[name], found, instead) for name, found in spans.items()}

    def _instead(self, written: str, kind: Kind, day_first: bool) -> str:
        written, _ = normalized(written)
        if kind == "name":
            return self._name(written)
        if kind == "date":
            return shift_date(written, self.days, day_first) or f"[{PLACEHOLDERS[kind]}]"
        if kind == "age":
            return _MAX_AGE
        if kind == "bracket":
            return placeholder(written)
        if kind == "hospital":
            facility = _AFTER_FACILITY.split(written)[0].split()[-1]
            ending = facility if facility.lower() in _FACILITIES else "Hospital"
            return f"{self._chosen(_SURNAMES, kind, written).title()} {ending}"
        if kind == "organization":
            ending = "School" if "school" in written.lower() else "Company"
            return f"{self._chosen(_SURNAMES, kind, written).title()} {ending}"
        if kind == "city":
            return _cased(self._chosen(_CITIES, kind, written.lower()), written)
        if kind == "address":
            return self._address(written)
        if kind == "email":
            return f"{self._chosen(_SURNAMES, kind, written.lower())}@example.org"
        if kind == "url":
            return f"https://example.org/{self._number(kind, written) % 10**8:08}"
        if kind == "ip":
            return f"192.0.2.{self._number(kind, written) % 254 + 1}"
        return self._shaped(written, kind)

    def _address(self, written: str) -> str:
        """Return an address with another number and street; only the word for "street" and the unit's word remain."""
        shaped = self._shaped(written, "address")
        unit = _UNIT.search(shaped)
        number = f"{shaped.split()[0]} " if shaped[0].isdecimal() else ""
        endings = _STREET_KIND.findall(shaped[: unit.start() if unit else None])
        street = f"{self._chosen(_STREETS, 'address', written.lower())} {endings[-1] if endings else 'Street'}"
        return f"{number}{street}{unit[0] if unit else ''}"

    def _name(self, written: str) -> str:
        """Return the name with each word replaced by a word of the same kind and case.

        Equal words get equal surrogates ("Mr. Doe" and "Jane Doe").
        """
        parts, done = [], 0
        for piece in (_SMALL_WORD if written.islower() else PIECE).finditer(written):
            word = piece[0]
            low = plain(word)
            parts.append(written[done : piece.start()])
            if len(low) == 1:
                parts.append(string.ascii_uppercase[self._number("initial", low) % 26] + word[1:])
            else:
                names = _GIVEN if low in name_words.GIVEN else _SURNAMES
                parts.append(_cased(self._chosen(names, "name", low), word) + word[len(stem(word)) :])
            done = piece.end()
        return "".join([*parts, written[done:]])

    def _shaped(self, written: str, kind: Kind) -> str:
        """Return the text with pseudorandom digits and letters in place of its digits and letters.

        In phone and fax numbers and in addresses, only digits are replaced.
        """
        # Pseudorandom numbers: HMAC in counter mode
        value = "".join(sign for sign in written.lower() if sign.isalnum())
        stream = (self._number(kind, f"{value}\0{count}") for count in itertools.count(1))
        characters = []
        for sign in written:
            if sign.isdecimal():
                characters.append(str(next(stream) % 10))
            elif sign.isalpha() and kind not in {"phone", "fax", "address"}:
                letter = string.ascii_lowercase[next(stream) % 26]
                characters.append(letter.upper() if sign.isupper() else letter)
            else:
                characters.append(sign)
        return "".join(characters)

    def _chosen(self, choices: Iterable[str], kind: str, value: str) -> str:
        options = [choice for choice in choices if choice.lower() != value]
        return options[self._number(kind, value) % len(options)]

    def _number(self, kind: str, value: str) -> int:
        return int.from_bytes(hmac.digest(self._key, f"{kind}\0{value}".encode(), hashlib.sha256)[:8])


def _cased(name: str, like: str) -> str:
    """Return `name` in the case of `like`: uppercase, lowercase or title case."""
    if like.isupper() and len(like) > 1:
        return name.upper()
    return name if like.islower() else name.title()


VARIABLE = "MEDITUNE_PHI_SECRET"
_MIN_SECRET_CHARACTERS = 16


def surrogate_secret() -> bytes:
    """Return the secret from MEDITUNE_PHI_SECRET, or from the cache folder, where it is created on first use.

    Anyone who has the secret can test guesses of names, so don't store or share it with the surrogates. Raises
    DataError if the secret is too short.
    """
    given = os.environ.get(VARIABLE)
    file = cache_folder("phi") / "secret"
    if given is None:
        if not file.is_file():
            write_bytes(file, secrets.token_hex(32).encode(), private=True)
        given = file.read_text(encoding="ascii").strip()
    if len(given) < _MIN_SECRET_CHARACTERS:
        where = VARIABLE if VARIABLE in os.environ else str(file)
        raise DataError(f"{where}: the secret for surrogates must have at least {_MIN_SECRET_CHARACTERS} characters.")
    return given.encode()
