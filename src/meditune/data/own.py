"""A user's own question-answer pairs: a JSON Lines, JSON, CSV, TSV or Parquet file, or a data set of the hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from meditune.data.damage import plain
from meditune.data.example import DECISIONS, Decision, Example
from meditune.data.records import NO_CONTEXT, cell, group_of, is_empty, passages, records
from meditune.data.rejects import Rejects
from meditune.data.tables import Row, rows
from meditune.errors import DataError, install_command

SOURCE = "own"


def read(
    path: Path | str,
    rejects: Rejects,
    *,
    fields: Mapping[str, str] | None = None,
    source: str = SOURCE,
    split: str = "train",
    config: str | None = None,
) -> Iterator[Example]:
    """Examples from a file, or from the Hugging Face data set "owner/name" where no such file exists.

    `fields` maps fields of an Example (`id`, `question`, `answer`, `context`, `decision`, `group`) to columns; the
    rest is guessed from common names (`meditune.data.columns.GUESSES`). A context is a text, a list of texts, or a
    list of {text, label}. Other columns are kept in `meta`. Without an id the row's number in the file is used;
    without a group, rows with the same question share one. `split` and `config` choose a part of a hub data set.

    Rows without a question, with a decision other than yes, no or maybe, with neither answer nor decision, or with
    an id that was used before go to `rejects`. Raises DataError where the file or a needed column is missing.
    """
    file = Path(path)
    if file.is_file() or file.suffix or str(path).count("/") != 1:
        name, found = file.stem, rows(file, source, rejects)
    else:
        name, found = str(path), _hub_rows(str(path), split, config)
    yield from from_rows(found, rejects, fields=fields, source=source, name=name, place=str(path))


def from_rows(
    found: Iterable[Row],
    rejects: Rejects,
    *,
    fields: Mapping[str, str] | None = None,
    source: str = SOURCE,
    name: str = "row",
    place: str | None = None,
) -> Iterator[Example]:
    """Examples from (place, columns) pairs, with the rules of `read`.

    `name` begins the ids of rows without one; `place` is where they are, for an error.
    """
    no_rows = f"{place or name}: no rows. Give a file with at least one question and its answer or decision."

    def make(row: Mapping[str, Any], columns: Mapping[str, str], fallback_id: str) -> tuple[Example | None, str]:
        return _example(row, columns, source, fallback_id)

    return records(found, rejects, make, source, name, no_rows, fields)


def _example(
    row: Mapping[str, Any], columns: Mapping[str, str], source: str, fallback_id: str
) -> tuple[Example | None, str]:
    """The row as an Example, or None and the reason why not."""
    values = {field: row.get(column) for field, column in columns.items()}
    question, answer = cell(values.get("question")), cell(values.get("answer"))
    stated = cell(values.get("decision")).casefold()
    decision: Decision | None = next((each for each in DECISIONS if each == stated), None)
    context = passages(values.get("context"))
    if not question:
        return None, "no question"
    if stated and decision is None:
        return None, "unknown decision (not yes, no or maybe)"
    if not answer and decision is None:
        return None, "neither answer nor decision"
    if context is None:
        return None, NO_CONTEXT
    for field in ("id", "group"):
        if not cell(values.get(field)) and not is_empty(values.get(field)):
            return None, f"{field} is neither text nor a number"
    others = {column: value for column, value in row.items() if column not in columns.values()}
    nested = others.pop("meta") if isinstance(others.get("meta"), Mapping) else {}
    return Example(
        id=f"{source}:{cell(values.get('id')) or fallback_id}",
        source=source,
        question=question,
        context=context,
        answer=answer,
        decision=decision,
        group=group_of(cell(values.get("group")), question),
        meta=_with_year(plain(others | dict(nested))),
    ), ""


def _with_year(meta: dict[str, Any]) -> dict[str, Any]:
    """A year that a table gave as text or with a decimal point is the number that other sources have."""
    stated = cell(meta.get("year"))
    return meta | {"year": int(stated)} if len(stated) == 4 and stated.isascii() and stated.isdigit() else meta


def _hub_rows(dataset: str, split: str, config: str | None) -> Iterator[Row]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"{dataset}: no such file, and a data set of the hub needs one more package: {install_command('hub')}."
        ) from error
    try:
        for number, row in enumerate(load_dataset(dataset, config, split=split, streaming=True), start=1):
            yield f"{dataset} ({split}), row {number}", row
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{dataset}: no such file, and it can't be read from the hub as split {split!r}: {error}. Check the name, "
            "the split, the config and the connection, or give a file."
        ) from error
