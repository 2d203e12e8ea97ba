"""Invented identifiers in the true ones' places, the same for the same person throughout a patient's texts.

Which one takes a place is decided by HMAC-SHA-256 of what stood there, keyed by a secret and the patient's group. So
nothing has to be kept, and without the secret nothing leads back. Dates of a patient move by the same number of weeks,
so that intervals and weekdays stay as they were.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import string
from collections.abc import Iterable

from meditune.phi import words
from meditune.phi.brackets import placeholder
from meditune.phi.shapes import PIECE, plain, stem
from meditune.phi.shifting import shifted
from meditune.phi.spans import PLACEHOLDERS, Kind, Span

_GIVEN = sorted(words.GIVEN - words.SURNAMES - words.EPONYMS - words.CITIES)
_SURNAMES = sorted(words.SURNAMES - words.GIVEN - words.EPONYMS - words.CITIES)
_CITIES = sorted(words.CITIES)
_STREETS = (
    "Alder",
    "Birch",
    "Cedar",
    "Elm",
    "Hazel",
    "Juniper",
    "Larch",
    "Linden",
    "Maple",
    "Poplar",
    "Rowan",
    "Willow",
)
_STREET_KIND = re.compile(
    r"(?<![^\W_])(?:street|st|avenue|ave|road|rd|boulevard|blvd|drive|dr|lane|ln|court|ct|place|pl|way|terrace|"
    r"circle|parkway|"
    r"pkwy|highway|hwy|square)(?![a-z])",
    re.IGNORECASE,
)
_SMALL_WORD = re.compile(r"[^\W\d_][\w'’-]*")
_FEWEST_WEEKS, _MOST_WEEKS = 8, 156
_OLDEST = "90"
"""Stands for every age over 89, as 45 CFR 164.514(b)(2)(i)(C) allows."""


class Surrogates:
    """Invented identifiers for one patient's group, made with `secret`."""

    def __init__(self, secret: bytes, group: str) -> None:
        self._key = hmac.digest(secret, group.encode(), hashlib.sha256)
        weeks = _FEWEST_WEEKS + self._number("weeks", "") % (_MOST_WEEKS - _FEWEST_WEEKS)
        self.days = 7 * weeks * (-1 if self._number("direction", "") % 2 else 1)
        """By how many days this group's dates move."""

    def replaced(self, text: str, spans: Iterable[Span]) -> str:
        """`text` with something invented for each of the spans, which are in order and don't overlap."""
        parts, done = [], 0
        for span in spans:
            parts += [text[done : span.start], self._instead(text[span.start : span.end], span.kind)]
            done = span.end
        return "".join([*parts, text[done:]])

    def _instead(self, written: str, kind: Kind) -> str:
        if kind == "name":
            return self._name(written)
        if kind == "date":
            return shifted(written, self.days) or f"[{PLACEHOLDERS[kind]}]"
        if kind == "age":
            return _OLDEST
        if kind == "bracket":
            return placeholder(written)
        if kind == "hospital":
            return f"{self._chosen(_SURNAMES, kind, written).title()} {written.split()[-1]}"
        if kind == "city":
            return _cased(self._chosen(_CITIES, kind, written.lower()), written)
        if kind == "address":
            number, _, rest = self._shaped(written, kind).partition(" ")
            return f"{number} {self._chosen(_STREETS, kind, written.lower())} {_last_word(rest)}".strip()
        if kind == "email":
            return f"{self._chosen(_SURNAMES, kind, written.lower())}@example.org"
        if kind == "url":
            return f"https://example.org/{self._number(kind, written) % 10**8:08}"
        if kind == "ip":
            return f"192.0.2.{self._number(kind, written) % 254 + 1}"
        return self._shaped(written, kind)

    def _name(self, written: str) -> str:
        """Each word another of its kind and case; the same word always the same, so "Mr. Doe" stays "Jane Doe"'s "
        "kin."""
        parts, done = [], 0
        for piece in (_SMALL_WORD if written.islower() else PIECE).finditer(written):
            word = piece[0]
            low = plain(word)
            parts.append(written[done : piece.start()])
            if len(low) == 1:
                parts.append(string.ascii_uppercase[self._number("initial", low) % 26] + word[1:])
            else:
                names = _GIVEN if low in words.GIVEN else _SURNAMES
                parts.append(_cased(self._chosen(names, "name", low), word) + word[len(stem(word)) :])
            done = piece.end()
        return "".join([*parts, written[done:]])

    def _shaped(self, written: str, kind: Kind) -> str:
        """Other digits for the digits and other letters for the letters."""
        plain_form = "".join(sign for sign in written.lower() if sign.isalnum())
        stream = _Stream(self._key, kind, plain_form)
        made = []
        for sign in written:
            if sign.isdecimal():
                made.append(str(stream.below(10)))
            elif sign.isalpha() and kind not in {"phone", "fax", "address"}:
                letter = string.ascii_lowercase[stream.below(26)]
                made.append(letter.upper() if sign.isupper() else letter)
            else:
                made.append(sign)
        return "".join(made)

    def _chosen(self, choices: Iterable[str], kind: str, value: str) -> str:
        options = [choice for choice in choices if choice.lower() != value]
        return options[self._number(kind, value) % len(options)]

    def _number(self, kind: str, value: str) -> int:
        return int.from_bytes(hmac.digest(self._key, f"{kind}\0{value}".encode(), hashlib.sha256)[:8])


class _Stream:
    """As many small numbers as are asked for, by HMAC in counter mode."""

    def __init__(self, key: bytes, kind: str, value: str) -> None:
        self._key, self._of, self._count = key, f"{kind}\0{value}\0", 0

    def below(self, bound: int) -> int:
        """The next one, from 0 to `bound` (not included)."""
        self._count += 1
        return int.from_bytes(hmac.digest(self._key, f"{self._of}{self._count}".encode(), hashlib.sha256)[:8]) % bound


def _cased(name: str, like: str) -> str:
    """`name` in capitals or small letters as `like` is, or with one capital in each word."""
    if like.isupper() and len(like) > 1:
        return name.upper()
    return name if like.islower() else name.title()


def _last_word(address: str) -> str:
    """The kind of street, where the address ends in one ("Street, Apt 4" keeps both)."""
    found = _STREET_KIND.search(address)
    return address[found.start() :] if found else "Street"
