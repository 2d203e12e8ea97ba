"""A user's own questions and answers, claims or conversations, from JSON Lines, JSON, CSV, TSV, Parquet or the hub."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from meditune.config.data_options import Thoughts
from meditune.data.example import CLAIM_LABELS, DECISIONS, LABEL, LABELS, Example, Label, Passage, Turn, plain_text
from meditune.data.readers import conversations
from meditune.data.readers.tables import (
    EDGES,
    LAYOUTS,
    NAMES,
    Layout,
    Made,
    Rejects,
    Row,
    accepted,
    rows,
    with_clean_names,
)
from meditune.errors import DataError, install_command

LABEL_WORDS: dict[str, Label] = {word: label for label, words in NAMES["label_words"].items() for word in words}
"""Word that publishers use (in lowercase) -> label"""


def columns_for(
    available: Collection[str], fields: Mapping[str, str] | None, where: str, layout: Layout = LAYOUTS["questions"]
) -> dict[str, str]:
    """Return field -> column: the column given in `fields`, or else a guess that ignores case.

    Raises DataError, whose message starts with `where`, for an unknown field or column, or a required field without a
    column.
    """
    given = {field: column if column in available else column.strip(EDGES) for field, column in (fields or {}).items()}
    for field, column in given.items():
        if field not in layout.guesses:
            raise DataError(f"{where}: fields.{field} isn't a known field. Choose from {', '.join(layout.guesses)}.")
        if column not in available:
            near = difflib.get_close_matches(column, available, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"{where}: no column {column!r} (fields.{field}). The columns are {list_columns(available)}.{hint}"
            )
    by_lower = {column.lower(): column for column in reversed(list(available)) if column not in given.values()}
    either = {"instruction", "input"} <= by_lower.keys() and "question" in layout.guesses
    if either and "question" not in given and "question" not in by_lower:
        raise DataError(
            f"{where}: both 'instruction' and 'input' could be the question. Name one in the recipe, for example "
            "fields: {question: input}."
        )
    free = {field: names for field, names in layout.guesses.items() if field not in given}
    chosen = given | _guessed(by_lower, free)
    for group in layout.needed:
        if not chosen.keys() & set(group):
            found = _near_column(group, [name for name in available if name not in chosen.values()], layout)
            hint = f"Did you mean {found[1]!r} as the {found[0]}? " if found else ""
            field, column = found or (group[0], "COLUMN")
            raise DataError(
                f"{where}: no column for the {' or '.join(group)}. The columns are {list_columns(available)}. {hint}"
                f"Rename the column, or name it in the recipe, for example fields: {{{field}: {column}}}."
            )
    return chosen


def _guessed(by_lower: Mapping[str, str], guesses: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return field -> column for the fields whose guesses include a column; `by_lower` maps lowercase to column."""
    return {
        field: next(by_lower[name] for name in names if name in by_lower)
        for field, names in guesses.items()
        if any(name in by_lower for name in names)
    }


def _near_column(group: Sequence[str], free: Sequence[str], layout: Layout) -> tuple[str, str] | None:
    """Return a field of the group and the column whose name is a misspelling of one of the field's names."""
    by_lower = {column.lower(): column for column in free}
    for field in group:
        for name in layout.guesses[field]:
            if near := difflib.get_close_matches(name, by_lower, n=1, cutoff=0.8):
                return field, by_lower[near[0]]
    return None


def has_column(
    field: str, available: Collection[str], fields: Mapping[str, str], guesses: Mapping[str, Sequence[str]]
) -> bool:
    """Return True if the field has a column, which is either given in `fields` or guessed."""
    return field in fields or bool({column.lower() for column in available} & set(guesses[field]))


def list_columns(available: Collection[str]) -> str:
    """Return the first 30 columns as text for an error message."""
    return ", ".join(repr(column) for column in list(available)[:30]) or "no columns"


def column_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of all columns, in order."""
    return list(dict.fromkeys(str(column) for row in rows for column in row))


LOOK_AHEAD = 1000
"""Number of rows in which column names are collected, because rows of JSON Lines may lack some columns"""
Values = dict[str, Any]
"""Field or column -> the row's value"""


def beginning(found: Iterable[Row]) -> tuple[Iterator[Row], list[Row]]:
    """Return an iterator over all rows, and a list of the first LOOK_AHEAD rows."""
    stream = iter(found)
    first = list(itertools.islice(stream, LOOK_AHEAD))
    return itertools.chain(first, stream), first


def records(
    found: Iterable[Row],
    rejects: Rejects,
    make: Callable[[Values, Values, str], Made | str],
    source: str,
    name: str,
    no_rows: str,
    fields: Mapping[str, str] | None,
    layout: Layout = LAYOUTS["questions"],
) -> Iterator[Made]:
    """Yield the records of a table; rejected rows and rows with a repeated id go to `rejects`.

    `make` gets a row's values by field, the other columns, and a fallback id, which begins with `name`. It returns the
    record, or the reason for rejecting the row. `fields` and `layout` are passed to `columns_for`. Raises DataError if
    there are no rows (with the message `no_rows`, and the first rejected row) or if a required column is missing.
    """
    every, first = beginning(found)
    if not first:
        why = (f" Rejected: {row['where']}: {row['reason']}." for row in rejects.rows() if row["source"] == source)
        raise DataError(no_rows + next(why, ""))
    seen = column_names(row for _, row in first)
    columns, known = columns_for(seen, fields, _header(first[0][0]), layout), set(seen)
    missing = {field: names for field, names in layout.guesses.items() if field not in columns}
    number = 0

    def numbered() -> Iterator[Row]:
        nonlocal number
        for place_and_row in every:
            number += 1
            yield place_and_row

    def record(row: Values) -> list[Made] | str:
        # A column may appear for the first time after the rows in which the column names were collected.
        new = {str(column).lower(): column for column in reversed(row) if str(column) not in known}
        own = columns | _guessed(new, missing) if new else columns
        values = {field: row.get(column) for field, column in own.items()}
        used = set(own.values())
        others = {column: value for column, value in row.items() if column not in used}
        made = make(values, others, f"{name}-{number}")
        return made if isinstance(made, str) else [made]

    return accepted(source, numbered(), record, rejects)


def _header(place: str) -> str:
    """Return where the column names of a table are, given the location of its first row."""
    file, colon, line = place.rpartition(":")
    is_table = colon and line.isdigit() and Path(file).suffix.lower() in {".csv", ".tsv"}
    return f"{file}, line 1 (the header)" if is_table else place


def cell(value: object) -> str:
    """Return a cell as text; missing values, NaN, Infinity, lists and invisible text become empty."""
    if isinstance(value, Decimal):
        if not value.is_finite():
            return ""
        value = int(value) if value == value.to_integral_value() else format(value, "f")
    if isinstance(value, bytes):
        data, value = value, value.hex()
        with contextlib.suppress(UnicodeDecodeError):
            value = data.decode()
    if isinstance(value, float):
        return "" if not math.isfinite(value) else repr(value) if not value.is_integer() else str(int(value))
    text = str(value).strip() if isinstance(value, str | int | UUID) else ""
    return text if any(map(str.isprintable, text)) else ""


def is_empty(value: object) -> bool:
    """Return True if a cell is empty: None, NaN, or text without visible characters."""
    return value is None or value == "" or (isinstance(value, str) and not cell(value)) or value != value


def group_of(stated: str, question: str) -> str:
    """Return the stated group, or else a group derived from the question, which equal questions share."""
    digest = hashlib.sha256(" ".join(question.casefold().split()).encode()).hexdigest()
    return stated or f"question-{digest[:16]}"


def passages(value: object) -> tuple[Passage, ...] | None:
    """Return the context's passages, an empty tuple for an empty cell, or None for an unknown format.

    JSON that is stored as text, as in CSV files, counts as a list if its items are passages.
    """
    given = conversations.parsed(value)
    if isinstance(given, Mapping) and isinstance(given.get("contexts"), list):
        texts, labels = given["contexts"], given.get("labels") or []
        paired = labels if len(labels) == len(texts) else [""] * len(texts)
        given = [{"text": text, "label": label} for text, label in zip(texts, paired, strict=True)]
    if isinstance(given, list | tuple):
        found = _listed(given)
        if found is not None or not isinstance(value, str):
            return found
    text = cell(value)
    known = value is None or isinstance(value, str | int | float)
    return (Passage(text=text),) if text else () if known else None


def _listed(items: Sequence[Any]) -> tuple[Passage, ...] | None:
    """Return the passages in a list, or None if an item is neither a text nor an object with a text."""
    found = []
    for item in items:
        if isinstance(item, str):
            found.append(Passage(text=item.strip()))
        elif isinstance(item, Mapping) and isinstance(item.get("text"), str):
            found.append(Passage(text=item["text"].strip(), label=cell(item.get("label"))))
        else:
            return None
    return tuple(passage for passage in found if passage.text)


NO_CONTEXT = "context is not a text, a list of texts or a list of {text, label}"
"""A rejection reason that all readers of tables share"""
SOURCE = "own"
OWN_REFERENCES = "own_references"
"""Key in an example's meta for a user's column `references` whose values aren't reference answers, such as citations"""


def read(path: Path | str, rejects: Rejects, *, source: str = SOURCE, **options: Any) -> Iterator[Example]:
    """Yield examples from a file, or from the Hugging Face data set "owner/name" if no such file exists.

    The `options` are those of `from_rows`. `fields` maps fields of an Example to columns; the columns of other fields
    are guessed from common names (LAYOUTS), and the remaining columns go to `meta`. A row without an id gets its number
    in the file as the id. Rows without a group share a group if they have the same question. The columns decide whether
    the file contains questions, claims (with the labels in LABEL_WORDS or `labels`) or conversations (`thoughts` says
    whether text between <think> and </think> is kept; `changes` counts the changes). Unusable rows go to `rejects`.
    Raises DataError if the file or a required column is missing.
    """
    file = Path(path)
    if file.is_file() or not is_hub_id(path):
        name, found = file.stem, rows(file, source, rejects)
    else:
        name, found = str(path), hub_rows(str(path), "train", None)
    yield from from_rows(found, rejects, source=source, name=name, place=str(path), **options)


def is_hub_id(path: Path | str) -> bool:
    """Return True if a path has the form OWNER/NAME of a Hugging Face data set.

    A name can contain a version ("OpenHermes-2.5"), but a suffix without digits is a file extension.
    """
    suffix = Path(path).suffix
    return str(path).count("/") == 1 and (not suffix or any(map(str.isdigit, suffix)))


def from_rows(
    found: Iterable[Row],
    rejects: Rejects,
    *,
    fields: Mapping[str, str] | None = None,
    labels: Mapping[str, Label] | None = None,
    source: str = SOURCE,
    name: str = "row",
    place: str | None = None,
    thoughts: Thoughts = "strip",
    changes: Counter[str] | None = None,
) -> Iterator[Example]:
    """Yield examples from (location, columns) pairs, like `read`.

    `name` is the prefix of generated ids, and `place` names the file or data set in error messages.
    """
    found, first = beginning(found)
    some, given = [row for _, row in first], fields or {}
    names = column_names(some)
    questions = LAYOUTS["questions"]
    is_plain = all(
        any(has_column(field, names, given, questions.guesses) for field in group) for group in questions.needed
    )
    alpaca = conversations.is_alpaca(names, given, some)
    changed = Counter[str]() if changes is None else changes
    words = LABEL_WORDS | {word.casefold(): label for word, label in (labels or {}).items()}
    make: Callable[[Values, Values], Values | str] = _example
    layout = "questions"
    is_claims = bool(some) and _holds_claims(some[0], given)
    if is_claims:
        make = partial(_claim, words=words)
        layout = "claims"
    elif alpaca or conversations.holds_conversations(names, given, some, is_plain):
        make = partial(_conversation, thoughts=thoughts, changes=changed)
        layout = "alpaca" if alpaca else "conversations"

    def made(values: Values, others: Values, fallback_id: str) -> Example | str:
        parts = make(values, others)
        if isinstance(parts, str):
            return parts
        for field in ("id", "group"):
            if not cell(values.get(field)) and not is_empty(values.get(field)):
                return f"{field} is not text or a number"
        return Example(id=f"{source}:{cell(values.get('id')) or fallback_id}", source=source, **parts)

    no_rows = (
        f"{place or name}: no rows. Provide a file with at least one question and its answer or decision, "
        "one claim with its evidence and label, or one conversation."
    )
    examples = records(found, rejects, made, source, name, no_rows, fields, LAYOUTS[layout])
    return iter(with_labels(list(examples))) if is_claims else examples


def _holds_claims(row: Mapping[str, Any], fields: Mapping[str, str]) -> bool:
    """Return True if a file contains claims, according to `fields` or to the columns of a row."""
    if fields:
        return "claim" in fields
    names_both = all(has_column(each, row, {}, LAYOUTS["claims"].guesses) for each in ("claim", "evidence"))
    return names_both and not has_column("question", row, {}, LAYOUTS["questions"].guesses)


def with_labels(claims: Sequence[Example]) -> list[Example]:
    """Return the claims of one source; if the source uses only two of the LABELS, each claim's meta lists these two."""
    used = {claim.label for claim in claims}
    if len(used) in (1, len(LABELS)):
        return list(claims)
    mark = {CLAIM_LABELS: [label for label in LABELS if label in used]}
    return [claim.model_copy(update={"meta": claim.meta | mark}) for claim in claims]


def _claim(values: Values, others: Values, words: Mapping[str, Label]) -> Values | str:
    """Return the parts of a claim, or the reason for rejecting the row."""
    claim, stated, evidence = cell(values.get("claim")), cell(values.get("label")), passages(values.get("evidence"))
    if not claim:
        return "no claim"
    if evidence is None:
        return NO_CONTEXT.replace("context", "evidence", 1)
    if not evidence:
        return "no evidence"
    if stated.casefold() not in words:
        return f"unknown label (not {', '.join(LABELS)})"
    return {
        "question": claim,
        "context": evidence,
        "group": group_of(cell(values.get("group")), evidence[0].text),
        "meta": _meta(others) | {LABEL: words[stated.casefold()]},
    }


def _conversation(values: Values, others: Values, thoughts: Thoughts, changes: Counter[str]) -> Values | str:
    """Return the parts of a conversation, or the reason for rejecting the row."""
    messages = conversations.alpaca_messages(values) if "instruction" in values else values.get("messages")
    if "instruction" in values and isinstance(messages, str):
        return messages
    turns = conversations.read_turns(messages, values.get("system"), thoughts, changes)
    if isinstance(turns, str):
        return turns
    *earlier, asked, answered = turns
    begin = conversations.opening([turn.text for turn in turns if turn.role == "user"])
    return {
        "question": asked.text,
        "answer": answered.text,
        "group": group_of(cell(values.get("group")), begin),
        "meta": _meta(others),
        "turns": tuple(earlier),
    }


def stored_turns(value: object) -> tuple[Turn, ...] | None:
    """Return the earlier turns in a record that Meditune wrote; None if the value isn't a list of turns."""
    try:
        return tuple(Turn.model_validate(turn) for turn in value) if isinstance(value, list) else None
    except ValueError:
        return None


def _example(values: Values, others: Values) -> Values | str:
    """Return the parts of a question with its answer or decision, or the reason for rejecting the row.

    In a file that Meditune wrote, the row can also be a claim, whose label is in its meta.
    """
    question, answer = cell(values.get("question")), cell(values.get("answer"))
    stated, context = cell(values.get("decision")).casefold(), passages(values.get("context"))
    if not question:
        return "no question"
    if stated and stated not in DECISIONS:
        return "unknown decision (not yes, no or maybe)"
    is_prepared = {"source", "meta"} <= others.keys() and "group" in values
    turns = stored_turns(others.get("turns")) if is_prepared else None
    if turns is not None or (is_prepared and others.get("turns") is None):
        others = {name: value for name, value in others.items() if name != "turns"}
    meta = _meta(others)
    if not answer and not stated and meta.get(LABEL) not in LABELS:
        return "neither answer nor decision"
    if context is None:
        return NO_CONTEXT
    return {
        "question": question,
        "context": context,
        "answer": answer,
        "decision": stated or None,
        "group": group_of(cell(values.get("group")), question),
        "meta": meta,
        "turns": turns,
    }


_META_NAMES = frozenset(["restricted", "licence", "citation", "synthetic", "source", "year", "url"])
"""Columns and entries of a nested `meta` that other stages look up by name"""


def with_known_names(others: Mapping[str, Any]) -> Values:
    """Return the other columns, with names such as "Restricted ", "URL" and "License" as other stages look them up."""
    result: Values = {}
    for column, value in others.items():
        name = str(column).strip().lower().replace("license", "licence")
        is_free = name in _META_NAMES and name not in others and name not in result
        result[name if is_free else column] = value
    return result


def _meta(others: Values) -> Values:
    """Return the other columns and the entries of a nested `meta` as one object, in which a year is an integer.

    `meta` can be an object that is stored as JSON text, as in CSV files and in the Parquet file of a streamed audit. If
    `references` doesn't contain answers, it is renamed to OWN_REFERENCES, because all stages use it as answers.
    """
    if isinstance(nested := conversations.parsed(others.get("meta")), Mapping):
        others = {name: value for name, value in others.items() if name != "meta"} | dict(nested)
    meta: Values = plain_text(with_known_names(others))
    if meta.get("references") and not _are_answers(meta["references"]):
        meta[OWN_REFERENCES] = meta.pop("references")
    year = cell(meta.get("year")).removesuffix(".0")  # pandas writes 2019.0 into a CSV file if another row has no year
    return meta | {"year": int(year)} if len(year) == 4 and year.isascii() and year.isdigit() else meta


def _are_answers(value: object) -> bool:
    """Return True for a list whose items are non-empty texts or objects with a text `answer`."""
    return isinstance(value, list) and all(
        bool(cell(each)) if isinstance(each, str) else isinstance(each, dict) and isinstance(each.get("answer"), str)
        for each in value
    )


def hub_rows(dataset: str, split: str, config: str | None, files: str | None = None) -> Iterator[Row]:
    """Yield the location and columns of each row of a Hugging Face data set, or of those `files` (a pattern) in it.

    Raises DataError if the data set can't be read.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"{dataset}: no such file. To read a Hugging Face data set of that name, install one more package: "
            f"{install_command('hub')}."
        ) from error
    try:
        found = load_dataset(dataset, config, data_files=files, split=split, streaming=True)
        for number, row in enumerate(found, start=1):
            yield with_clean_names(f"{dataset} ({split}), row {number}", row)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{dataset}: no such file, and the split {split!r} can't be read from the hub: {error}. Check the name, "
            "the split, the config and the connection, or specify a file."
        ) from error
