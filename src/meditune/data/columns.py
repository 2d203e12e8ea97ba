"""Which column of a user's table holds which field of an Example."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence

from meditune.errors import DataError

GUESSES: dict[str, tuple[str, ...]] = {
    "id": ("id", "example_id", "question_id", "qid", "pubid", "uid"),
    "question": ("question", "query", "prompt", "instruction", "input"),
    "answer": ("answer", "long_answer", "response", "output", "completion", "target"),
    "context": ("context", "contexts", "passage", "passages", "abstract", "background"),
    "decision": ("decision", "final_decision", "label", "yes_no"),
    "group": ("group", "group_id", "patient_id", "subject_id", "pmid", "document_id"),
}
"""The columns taken for each field where the user names none; the first that is there counts."""


NEEDED = (("question",), ("answer", "decision"))
"""Of each of these groups of fields, one must have a column."""


def columns_for(
    available: Collection[str],
    fields: Mapping[str, str] | None,
    where: str,
    guesses: Mapping[str, tuple[str, ...]] = GUESSES,
    needed: Sequence[tuple[str, ...]] = NEEDED,
) -> dict[str, str]:
    """Field -> column, as given in `fields` and guessed for the rest, without regard to case.

    Raises DataError, beginning with `where`, for an unknown field or column, or where a needed one has no
    column.
    """
    given = dict(fields or {})
    for field, column in given.items():
        if field not in guesses:
            raise DataError(f"{where}: fields.{field} isn't a field of a row. Choose from {', '.join(guesses)}.")
        if column not in available:
            near = difflib.get_close_matches(column, available, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{where}: no column {column!r} (fields.{field}); there are {listed(available)}.{hint}")
    by_lower = {column.lower(): column for column in reversed(list(available)) if column not in given.values()}
    if "question" not in given and {"instruction", "input"} <= by_lower.keys() and "question" not in by_lower:
        raise DataError(
            f"{where}: both 'instruction' and 'input' could be the question. Say which in the recipe, such as "
            "fields: {question: input}."
        )
    chosen = given | {
        field: next(by_lower[name] for name in names if name in by_lower)
        for field, names in guesses.items()
        if field not in given and any(name in by_lower for name in names)
    }
    for group in needed:
        if not chosen.keys() & set(group):
            raise DataError(
                f"{where}: no column for the {' or '.join(group)}; there are {listed(available)}. Name it in the "
                f"recipe, such as fields: {{{group[0]}: COLUMN}}."
            )
    return chosen


def has_column(
    field: str, available: Collection[str], fields: Mapping[str, str], guesses: Mapping[str, tuple[str, ...]]
) -> bool:
    """Whether the field has a column, given in `fields` or guessed."""
    return field in fields or bool({column.lower() for column in available} & set(guesses[field]))


def listed(available: Collection[str]) -> str:
    """The columns for an error, the first 30 of them."""
    return ", ".join(repr(column) for column in list(available)[:30]) or "no columns"
