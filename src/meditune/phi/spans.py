"""What the detector finds: places in a text and the kind of identifier there, never its wording.

A text as the finders look at it: in small letters too, and where its digits are.

MIMIC's de-identification brackets, such as `[**2151-7-16**]`, as typed placeholders.

The brackets come from the de-identification software of Neamatullah et al., "Automated de-identification of
free-text medical records", BMC Med Inform Decis Mak 8:32, 2008. What they name is made up (dates are shifted,
numbers are arbitrary); a model should learn neither the numbers nor the bracket notation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from meditune.config.data_options import KINDS, Kind

__all__ = ["KINDS", "PLACEHOLDERS", "Kind", "Span", "joined"]

PLACEHOLDERS: dict[Kind, str] = {
    "name": "NAME",
    "date": "DATE",
    "age": "AGE",
    "phone": "PHONE",
    "fax": "PHONE",
    "email": "CONTACT",
    "url": "CONTACT",
    "ip": "CONTACT",
    "ssn": "ID",
    "mrn": "ID",
    "health_plan": "ID",
    "account": "ID",
    "licence": "ID",
    "vehicle": "ID",
    "device": "ID",
    "address": "LOCATION",
    "city": "LOCATION",
    "zip": "LOCATION",
    "hospital": "HOSPITAL",
    "id": "ID",
    "bracket": "OTHER",
}
"""What stands in a masked text. The same few types as those of MIMIC's brackets (`find` below)."""


@dataclass(frozen=True, order=True)
class Span:
    """Characters `start` to `end` (not included) of a text."""

    start: int
    end: int
    kind: Kind


def joined(spans: Iterable[Span]) -> list[Span]:
    """The spans in order, those that overlap as one, so that no character of either is left; of the longer one's kind.

    Of equally long ones the first given names the kind.
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


_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True)
class View:
    """One text. The finders go from digits or capitals to what stands around them, which is quick: both are few."""

    text: str

    @cached_property
    def low(self) -> str:
        """The text in small letters, every character in its place (letters that would become two stay large)."""
        low = self.text.lower()
        if len(low) == len(self.text):
            return low
        return "".join(letter if len(letter.lower()) != 1 else letter.lower() for letter in self.text)

    @cached_property
    def digits(self) -> list[tuple[int, int]]:
        """Start and end of each run of digits."""
        return [found.span() for found in _DIGITS.finditer(self.text)]

    def before(self, place: int, length: int) -> str:
        """So many characters before `place`, in small letters."""
        return self.low[max(0, place - length) : place]

    def has(self, *parts: str) -> bool:
        """Whether any of these stands anywhere in the text, small or large."""
        return any(part in self.low for part in parts)

    def word_start(self, place: int, most: int = 12) -> int:
        """Where the letters, digits and hyphens begin that lead up to `place`, at most so many."""
        text, start = self.text, place
        while start and place - start < most and (text[start - 1].isalnum() or text[start - 1] == "-"):
            start -= 1
        return start


# Longer than any real bracket, so that an unclosed one doesn't swallow the note.
_BRACKET = re.compile(r"\[\*\*([^\[\]]{0,120}?)\*\*\]")

# The first that matches gives the type: "Hospital Unit Name" is a hospital, not a name.
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
    """`text` with every bracket replaced by [DATE], [NAME], [HOSPITAL], [LOCATION], [PHONE], [CONTACT], [AGE], [ID]
    or [OTHER].
    """
    return _BRACKET.sub(lambda bracket: placeholder(bracket[0]), text)


def placeholder(bracket: str) -> str:
    """What stands for one bracket, such as `[DATE]`."""
    inside = " ".join(bracket.strip("[]*").split()).casefold()
    if re.fullmatch(r"\d{5,}", inside):
        return "[ID]"
    for type_, pattern in _TYPES:
        if pattern.search(inside):
            return f"[{type_}]"
    return "[OTHER]"


def find(text: str) -> Iterator[Span]:
    """Every bracket of `text`."""
    for bracket in _BRACKET.finditer(text):
        yield Span(bracket.start(), bracket.end(), "bracket")
