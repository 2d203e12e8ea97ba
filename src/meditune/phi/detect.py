"""The detector: every identifier of a text, by rules."""

from __future__ import annotations

from collections.abc import Callable, Collection

from meditune.phi import brackets, closer, dates, names, numbers, places, reach
from meditune.phi.spans import Kind, Span, joined
from meditune.phi.studies import Passages
from meditune.phi.view import View

_OF_STUDIES = frozenset({"date", "age", "hospital", "city"})
"""Kinds that aren't one person's where a passage tells of many."""
_OF_ORGANIZATIONS = frozenset({"phone", "fax", "email", "url", "address", "city", "zip", "hospital"})
"""Kinds that aren't one person's where a passage says how to reach an organization."""

_NUMBERS = frozenset({"ssn", "mrn", "health_plan", "account", "licence", "vehicle", "device"})
_ONE_PERSONS = frozenset({"name", "age", "id", *_NUMBERS})
"""Kinds that are always somebody's own, and so tell that a text is about one person."""


def find(text: str, kinds: Collection[Kind] | None = None) -> list[Span]:
    """The identifiers in `text`, in order and without overlap; of these kinds only, or of all.

    Takes time in proportion to the text, whatever is in it.
    """
    view = View(text)
    passages = Passages(view)
    found: list[Span] = [
        *brackets.find(text),
        *numbers.find(view),
        *reach.find(view),
        *dates.find(view),
        *places.find(view),
        *names.find(view),
    ]
    if _is_a_record(found, passages):
        passages = passages.of_a_record()
        found = [*found, *closer.find(view, found)]
        found += names.again(view, [span for span in found if span.kind == "name"])
    return joined(span for span in found if (kinds is None or span.kind in kinds) and not _is_nobodys(span, passages))


def _is_a_record(found: list[Span], passages: Passages) -> bool:
    """Whether this is a note on one person: somebody is named or numbered in it."""
    own = sum(span.kind in _ONE_PERSONS for span in found)
    return any(span.kind in _NUMBERS for span in found) or (own > 1 and passages.has_one)


def _is_nobodys(span: Span, passages: Passages) -> bool:
    judged: tuple[tuple[frozenset[str], Callable[[int], bool]], ...] = (
        (_OF_STUDIES, passages.of_many),
        (_OF_ORGANIZATIONS, passages.of_organization),
    )
    return any(span.kind in kinds and judge(span.start) for kinds, judge in judged)
