"""MIMIC's de-identification brackets, such as `[**2151-7-16**]`, as typed placeholders.

The brackets come from the de-identification software of Neamatullah et al., "Automated de-identification of
free-text medical records", BMC Med Inform Decis Mak 8:32, 2008. What they name is made up (dates are shifted,
numbers are arbitrary); a model should learn neither the numbers nor the bracket notation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from meditune.phi.spans import Span

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
