"""The texts of one row, looked at together: what one field tells (a name, a column's heading) helps to read another."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from meditune.phi.engines import Engine
from meditune.phi.spans import Kind, Span

_GAP = "\n\n"


def found_in(
    fields: Mapping[str, str], find: Engine, kinds: Collection[Kind] | None, headed: Collection[str] = ()
) -> dict[str, list[Span]]:
    """The spans of each field, as places in it.

    Those `headed` are read with the last part of their name before them, so that a column "MRN" or "patient_name" says
    what its values are. A span across fields is cut where they meet.
    """
    heads = {name: f"{name.rpartition('.')[2].replace('_', ' ')}: " if name in headed else "" for name in fields}
    # What has a heading comes first: a column "patient_name" says whom the other texts name.
    ordered = sorted(fields.items(), key=lambda field: field[0] not in headed)
    found = find(_GAP.join(heads[name] + text for name, text in ordered), kinds or None)
    result: dict[str, list[Span]] = {}
    place = 0
    for name, text in ordered:
        start = place + len(heads[name])
        result[name] = _within(found, start, start + len(text))
        place = start + len(text) + len(_GAP)
    return result


def _within(spans: Sequence[Span], start: int, end: int) -> list[Span]:
    return [
        Span(max(span.start, start) - start, min(span.end, end) - start, span.kind)
        for span in spans
        if span.start < end and span.end > start
    ]
