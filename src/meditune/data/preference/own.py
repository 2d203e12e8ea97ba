"""A user's own pairs out of the rows of a file, such as exported feedback."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from meditune.data.columns import GUESSES
from meditune.data.preference.pair import OWN, Pair
from meditune.data.records import NO_CONTEXT, cell, group_of, passages, records
from meditune.data.rejects import Rejects
from meditune.data.restrictions import RESTRICTED, is_marked
from meditune.data.tables import Row

SOURCE = "pairs"
COLUMNS = {field: GUESSES[field] for field in ("id", "question", "context", "group")} | {
    "chosen": ("chosen", "preferred", "better", "accepted"),
    "rejected": ("rejected", "dispreferred", "worse"),
}
NEEDED = (("question",), ("chosen",), ("rejected",))


def from_rows(
    found: Iterable[Row], rejects: Rejects, fields: Mapping[str, str] | None, name: str, no_rows: str
) -> Iterator[Pair]:
    """Pairs from (place, columns) with the columns question, chosen and rejected; context, group, id may be there too,
    and `source` and `restricted`, which say where the question comes from and whether it may be passed on.

    `fields` maps fields to columns with other names; `name` begins the ids of rows without one. Rows without one of
    the three, with two equal answers, or with an id that was used before go to `rejects`. Raises DataError where a
    needed column is missing, and with `no_rows` where there are none.
    """
    yield from records(found, rejects, _pair, SOURCE, name, no_rows, fields, guesses=COLUMNS, needed=NEEDED)


def _pair(row: Mapping[str, Any], columns: Mapping[str, str], fallback_id: str) -> tuple[Pair | None, str]:
    """The row as a Pair, or None and the reason why not."""
    values = {field: row.get(column) for field, column in columns.items()}
    question, chosen, rejected = (cell(values.get(field)) for field in ("question", "chosen", "rejected"))
    context = passages(values.get("context"))
    if not question:
        return None, "no question"
    if not chosen or not rejected:
        return None, f"no {'rejected' if chosen else 'chosen'} answer (or one that isn't text)"
    if " ".join(chosen.split()) == " ".join(rejected.split()):
        return None, "chosen and rejected are the same"
    if context is None:
        return None, NO_CONTEXT
    return Pair(
        id=f"{SOURCE}:{cell(values.get('id')) or fallback_id}",
        question=question,
        context=context,
        chosen=chosen,
        rejected=rejected,
        group=group_of(cell(values.get("group")), question),
        source=cell(row.get("source")),
        restricted=is_marked(row.get(RESTRICTED)),
        kind=OWN,
    ), ""
