"""What the detector finds: places in a text and the kind of identifier there, never its wording."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meditune.identifiers import KINDS, Kind

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
"""What stands in a masked text. The same few types as those of MIMIC's brackets (`brackets.py`)."""


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
