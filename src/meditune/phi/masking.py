"""Placeholders in the identifiers' places."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from meditune.phi.brackets import placeholder
from meditune.phi.detect import find
from meditune.phi.spans import PLACEHOLDERS, Kind, Span


def mask(text: str, kinds: Collection[Kind] | None = None) -> str:
    """`text` with [NAME], [DATE] and the like where an identifier of these kinds (all unless given) stood."""
    return masked(text, find(text, kinds))


def masked(text: str, spans: Iterable[Span]) -> str:
    """`text` with a placeholder for each of the spans, which are in order and don't overlap."""
    parts, done = [], 0
    for span in spans:
        parts += [text[done : span.start], _placeholder(text, span)]
        done = span.end
    return "".join([*parts, text[done:]])


def _placeholder(text: str, span: Span) -> str:
    if span.kind == "bracket":
        return placeholder(text[span.start : span.end])
    return f"[{PLACEHOLDERS[span.kind]}]"
