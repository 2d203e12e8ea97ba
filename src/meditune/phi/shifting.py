"""Dates moved by a number of days, in the format they came in."""

from __future__ import annotations

import re
from datetime import date, timedelta

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_MIDDLE = 15
"""Stands for the day of a date that names only a month."""
_ANY_YEAR = 2000
"""Stands for a year that isn't given; a leap year, so that February 29 is a date."""
_WORD = re.compile(r"[A-Za-z]{3,}")
_NUMBERS = re.compile(r"\d+")
_SUFFIXES = {1: "st", 2: "nd", 3: "rd"}


def shifted(written: str, days: int) -> str | None:
    """The date `days` later, written likewise ("3/14/2012", "14-MAR-12", "March 14th"); None for a holiday or anything
    else that can't be read.

    Of a range such as "March 3-5" each day is moved. Without a year, that of a leap year is taken for it.
    """
    word = next((each[0] for each in _WORD.finditer(written) if _month_of(each[0])), None)
    numbers = [each[0] for each in _NUMBERS.finditer(written)]
    try:
        if word:
            return _worded(written, word, numbers, days)
        if len(numbers) == 1 and len(numbers[0]) == 8:
            moved = date(int(numbers[0][:4]), int(numbers[0][4:6]), int(numbers[0][6:])) + timedelta(days)
            return f"{moved:%Y%m%d}"
        return _numeric(written, numbers, days)
    except (ValueError, OverflowError):
        return None


def _numeric(written: str, numbers: list[str], days: int) -> str | None:
    order = _order(numbers)
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


def _order(numbers: list[str]) -> tuple[str, ...] | None:
    if len(numbers) == 3:
        if len(numbers[0]) == 4:
            return ("year", "month", "day")
        return ("month", "day", "year") if int(numbers[0]) <= 12 else ("day", "month", "year")
    if len(numbers) == 2:
        return ("month", "year") if len(numbers[1]) == 4 else ("month", "day")
    return None


def _worded(written: str, word: str, numbers: list[str], days: int) -> str:
    years = [number for number in numbers if len(number) == 4]
    before = written.index(word)
    rest = [number for number in numbers if len(number) < 4]
    short_year = not years and len(rest) > 1 and re.search(r"['’]\d\d$|[A-Za-z.]-? ?\d\d$", written) and rest[-1]
    if not years and len(rest) == 1 and "'" in written.replace("’", "'"):
        short_year = rest[0]
    year = int(years[0]) if years else _full_year(short_year) if short_year else _ANY_YEAR
    each = rest[:-1] if short_year else rest
    month = _month_of(word)
    days_moved = [date(year, month, int(number)) + timedelta(days) for number in each]
    first = days_moved[0] if days_moved else date(year, month, _MIDDLE) + timedelta(days)
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
    return re.sub(r"(\d{1,2})(?:st|nd|rd|th)(?![a-z])", lambda found: found[1] + _suffix(int(found[1])), spelled)


def _written_like(written: str, values: list[str]) -> str:
    """`written` with its numbers, from the first on, replaced by `values`."""
    left = iter(values)
    return _NUMBERS.sub(lambda found: next(left, found[0]), written)


def _padded(value: int, like: str) -> str:
    """As many digits as `like` has, where it has a leading zero or is a year."""
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


def _suffix(day: int) -> str:
    return "th" if 10 < day % 100 < 14 else _SUFFIXES.get(day % 10, "th")
