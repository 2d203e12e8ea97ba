"""Spans of identifiers (positions and kinds, never the text), views of a text, and MIMIC's bracket placeholders.

The content of MIMIC's brackets, such as `[**2151-7-16**]` (Neamatullah et al., BMC Med Inform Decis Mak 8:32, 2008), is
invented. A model should learn neither this content nor the notation, so typed placeholders replace the brackets.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from html import unescape
from pathlib import Path

from meditune.config.data_options import Kind
from meditune.files import package_lines

_KINDS: dict[str, tuple[Kind, ...]] = {
    "NAME": ("name",),
    "DATE": ("date",),
    "AGE": ("age",),
    "PHONE": ("phone", "fax"),
    "CONTACT": ("email", "url", "ip"),
    "ID": ("ssn", "mrn", "health_plan", "account", "licence", "vehicle", "device", "id"),
    "LOCATION": ("address", "city", "zip"),
    "HOSPITAL": ("hospital",),
    "ORGANIZATION": ("organization",),
    "OTHER": ("bracket",),
}
PLACEHOLDERS = {kind: placeholder for placeholder, kinds in _KINDS.items() for kind in kinds}
"""Kind of identifier -> placeholder in a masked text; MIMIC's brackets get the same types of placeholders"""


@dataclass(frozen=True, order=True)
class Span:
    """The characters from `start` to `end` (exclusive) of a text, and the kind of identifier."""

    start: int
    end: int
    kind: Kind


def joined(spans: Iterable[Span]) -> list[Span]:
    """Return the spans in order, with overlapping spans merged, so that a mask covers all their characters.

    A merged span has the kind of its longest part; if lengths are equal, the kind of the part that begins first.
    """
    found: list[Span] = []
    longest = 0
    for span in sorted(spans, key=lambda each: each.start):
        length = span.end - span.start
        if found and span.start < found[-1].end:
            kind = span.kind if length > longest else found[-1].kind
            longest = max(longest, length)
            found[-1] = Span(found[-1].start, max(found[-1].end, span.end), kind)
        else:
            longest = length
            found.append(span)
    return found


def replaced(text: str, spans: Iterable[Span], replacement: Callable[[str, Kind], str]) -> str:
    """Return `text` with each span replaced by `replacement(written, kind)`. Spans are in order and don't overlap."""
    parts, done = [], 0
    for span in spans:
        parts += [text[done : span.start], replacement(text[span.start : span.end], span.kind)]
        done = span.end
    return "".join([*parts, text[done:]])


@cache
def _word_lists() -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for line in package_lines(Path(__file__).with_name("word_lists.txt")):
        name, _, words = line.partition(": ")
        found[name] = found.get(name, frozenset()).union(words.split())
    return found


def word_list(name: str) -> frozenset[str]:
    """Return one of the lists in word_lists.txt."""
    return _word_lists()[name]


def phrases(name: str) -> frozenset[str]:
    """Return one of the lists in word_lists.txt, with spaces instead of underscores."""
    return frozenset(word.replace("_", " ") for word in word_list(name))


FIELD_KINDS: tuple[Kind, ...] = ("date", "phone", "id", "zip", "city", "address", "hospital", "age", "name")


def field_names(kind: Kind) -> frozenset[str]:
    """Return the names that a field with an identifier of this kind can have, in lowercase."""
    return phrases(f"{kind}_fields")


_INVISIBLE = r"[\x00-\x08\x0b\x0e-\x1f\x7f\xad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]+"
_HIDING = re.compile(rf"{_INVISIBLE}|&(?:#\d{{1,7}}|#[xX][0-9a-fA-F]{{1,6}}|[A-Za-z]{{2,8}}\d{{0,2}});")
"""Invisible characters and HTML entities, which change the positions of the characters behind them"""
_HIDING_OR_DECOMPOSED = re.compile(rf"[^\W\d_][\u0300-\u036f]+|{_HIDING.pattern}")
_PLAIN = {
    **dict.fromkeys([0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " "),
    **dict.fromkeys([0x2028, 0x2029], "\n"),
    **dict.fromkeys([0x2010, 0x2011, 0x2012, 0x2013, 0x2212, 0xFE63], "-"),
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # Full-width letters, digits and signs
}
_FOLDING = str.maketrans("ÆÐØßæðøþĐđĦħıĸŁłŊŋŒœŦŧ", "ADOsadotDdHhikLlNnOoTt") | {
    code: unicodedata.normalize("NFD", chr(code))[0]
    for code in (*range(0xC0, 0x250), *range(0x1E00, 0x1F00))
    if unicodedata.decomposition(chr(code))
}  # Letters with accents -> letters without
_DASH = re.compile(r"(?<=\d)[\u2014\u2015](?=\d)")  # Between words, a long dash separates parts of a sentence


def normalized(text: str) -> tuple[str, Sequence[int] | None]:
    """Return `text` as the finders search it, and the position in `text` of each of its characters and of its end.

    Spaces, hyphens and full-width characters become ASCII, HTML entities become characters, and invisible characters
    are removed. Letters with combining accents become one character, if Unicode has it. The positions are None if they
    are unchanged.
    """
    parts: list[str] = []
    places: list[int] = []
    done = 0
    pattern = _HIDING if unicodedata.is_normalized("NFC", text) else _HIDING_OR_DECOMPOSED
    for found in pattern.finditer(text):
        if found[0][0].isalpha():
            character = unicodedata.normalize("NFC", found[0])
        else:
            character = re.sub(_INVISIBLE, "", unescape(found[0])) if found[0].startswith("&") else ""
        places += [*range(done, found.start()), *([found.start()] * len(character))]
        parts += [text[done : found.start()], character]
        done = found.end()
    places += range(done, len(text) + 1) if parts else ()
    plain = "".join([*parts, text[done:]])
    return plain if plain.isascii() else _DASH.sub("-", plain.translate(_PLAIN)), places or None


def folded(text: str) -> str:
    """Return the text with unaccented Latin letters ("Zürich" becomes "Zurich"), with unchanged positions."""
    return text if text.isascii() else text.translate(_FOLDING)


_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True)
class View:
    """A text to search. For speed, the finders start at digits or capitals, and then check the surrounding text."""

    text: str

    @cached_property
    def low(self) -> str:
        """Return the text in lowercase with unchanged positions: a letter that would become two stays uppercase."""
        low = self.text.lower()
        if len(low) == len(self.text):
            return low
        return "".join(letter if len(letter.lower()) != 1 else letter.lower() for letter in self.text)

    @cached_property
    def folded(self) -> View:
        """Return a view of the text with unaccented Latin letters, with unchanged positions."""
        return self if self.text.isascii() else View(folded(self.text))

    @cached_property
    def digits(self) -> list[tuple[int, int]]:
        """Return the start and end of each run of digits."""
        return [found.span() for found in _DIGITS.finditer(self.text)]

    @cached_property
    def contains(self) -> Callable[[re.Pattern[str]], bool]:
        """Return a function that says if a pattern matches in the lowercase text; it searches each pattern once."""
        return cache(lambda pattern: bool(pattern.search(self.low)))

    def spans(self, pattern: re.Pattern[str], kind: Kind, group: int | str = 0, *, low: bool = False) -> Iterator[Span]:
        """Yield the span of a group of each match in the text; with `low`, the lowercase text is searched."""
        for found in pattern.finditer(self.low if low else self.text):
            yield Span(*found.span(group), kind)

    def before(self, place: int, length: int) -> str:
        """Return the `length` characters before `place`, in lowercase."""
        return self.low[max(0, place - length) : place]

    def has(self, *parts: str) -> bool:
        """Return True if the text contains any of these lowercase strings, in any letter case."""
        return any(part in self.low for part in parts)

    def word_start(self, place: int, most: int = 12) -> int:
        """Return the start of the letters, digits and hyphens directly before `place`, at most `most` of them."""
        text, start = self.text, place
        while start and place - start < most and (text[start - 1].isalnum() or text[start - 1] == "-"):
            start -= 1
        return start


# No real bracket is longer than this limit, which stops an unclosed bracket from including the rest of the note.
_BRACKET = re.compile(r"\[\*\*([^\[\]]{0,120}?)\*\*\]")

# The first matching pattern decides: "Hospital Unit Name" is a hospital, not a name.
_TYPES = tuple(
    (placeholder, re.compile(pattern))
    for placeholder, pattern in (
        ("AGE", r"\bage\b"),
        ("CONTACT", r"e-?mail|\burl\b|contact info"),
        ("PHONE", r"telephone|\bfax\b|pager|\bphone"),
        ("HOSPITAL", r"hospital|\bward ?name|clinic"),
        (
            "ID",
            r"medical record|\bmrn\b|social security|\bssn\b|identifier|(unit|job|clip|serial|provider|account|"
            r"\bmd|record|certificate|license|device|bed|room) number",
        ),
        (
            "LOCATION",
            r"location|address|street|\bstate\b|country|\bcity\b|\btown\b|zip|p\.? ?o\.? box|apartment|"
            r"university|college|company|nation|landmark",
        ),
        ("DATE", r"\bdate|month|\byear|\bday\b|holiday|season|^[-/\d]*\d[-/\d]*$"),
        ("NAME", r"name|initials?|dictator|attending|doctor|physician|\bpatient\b|known"),
    )
)


def placeholders(text: str) -> str:
    """Return `text` with every bracket replaced by a typed placeholder.

    The placeholders are [DATE], [NAME], [HOSPITAL], [LOCATION], [PHONE], [CONTACT], [AGE], [ID] and [OTHER].
    """
    return _BRACKET.sub(lambda bracket: placeholder(bracket[0]), text)


def placeholder(bracket: str) -> str:
    """Return the placeholder for a bracket, such as `[DATE]`."""
    inside = " ".join(bracket.strip("[]*").split()).casefold()
    if re.fullmatch(r"\d{5,}", inside):
        return "[ID]"
    for type_, pattern in _TYPES:
        if pattern.search(inside):
            return f"[{type_}]"
    return "[OTHER]"


def find(text: str) -> Iterator[Span]:
    """Yield every bracket in `text`."""
    yield from View(text).spans(_BRACKET, "bracket")
