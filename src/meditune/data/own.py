"""A user's own question-answer pairs: a JSON Lines, JSON, CSV, TSV or Parquet file, or a data set of the hub."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from meditune.data.columns import columns_for
from meditune.data.example import DECISIONS, Decision, Example, Passage
from meditune.data.rejects import Rejects
from meditune.data.tables import Row, rows
from meditune.errors import DataError

SOURCE = "own"
_LOOK_AHEAD = 1000  # rows looked at for column names: JSON Lines rows may lack some


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
    stream = iter(found)
    first = list(itertools.islice(stream, _LOOK_AHEAD))
    if not first:
        raise DataError(f"{place or name}: no rows. Give a file with at least one question and its answer or decision.")
    available = list(dict.fromkeys(str(column) for _, row in first for column in row))
    columns = columns_for(available, fields, first[0][0])
    seen: set[str] = set()
    for number, (where, row) in enumerate(itertools.chain(first, stream), start=1):
        example, problem = _example(row, columns, source, f"{name}-{number}")
        if example is not None and example.id in seen:
            problem = "duplicate id"
        if example is None or problem:
            rejects.add(source, where, problem, row)
            continue
        seen.add(example.id)
        yield example


def _example(
    row: Mapping[str, Any], columns: Mapping[str, str], source: str, fallback_id: str
) -> tuple[Example | None, str]:
    """The row as an Example, or None and the reason why not."""
    values = {field: row.get(column) for field, column in columns.items()}
    question, answer = _text(values.get("question")), _text(values.get("answer"))
    stated = _text(values.get("decision")).casefold()
    decision: Decision | None = next((each for each in DECISIONS if each == stated), None)
    context = _passages(values.get("context"))
    if not question:
        return None, "no question"
    if stated and decision is None:
        return None, "unknown decision (not yes, no or maybe)"
    if not answer and decision is None:
        return None, "neither answer nor decision"
    if any("\ud800" <= character <= "\udfff" for character in question + answer):
        return None, "half a character (a lone surrogate), which can't be written as UTF-8"
    if context is None:
        return None, "context is neither text, a list of texts, nor a list of {text, label}"
    others = {column: value for column, value in row.items() if column not in columns.values()}
    nested = others.pop("meta") if isinstance(others.get("meta"), Mapping) else {}
    digest = hashlib.sha256(" ".join(question.casefold().split()).encode()).hexdigest()
    return Example(
        id=f"{source}:{_text(values.get('id')) or fallback_id}",
        source=source,
        question=question,
        context=context,
        answer=answer,
        decision=decision,
        group=_text(values.get("group")) or f"question-{digest[:16]}",
        meta=others | dict(nested),
    ), ""


def _text(value: object) -> str:
    """A cell as text; nothing, NaN and lists are empty."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:g}" if not value.is_integer() else str(int(value))
    return str(value).strip() if isinstance(value, str | int) else ""


def _passages(value: object) -> tuple[Passage, ...] | None:
    """The context's passages, none for an empty cell, None where it has an unknown form."""
    if isinstance(value, Mapping) and isinstance(value.get("contexts"), list):
        texts, labels = value["contexts"], value.get("labels") or []
        paired = labels if len(labels) == len(texts) else [""] * len(texts)
        value = [{"text": text, "label": label} for text, label in zip(texts, paired, strict=True)]
    if not isinstance(value, list | tuple):
        text = _text(value)
        known = value is None or isinstance(value, str | int | float)
        return (Passage(text=text),) if text else () if known else None
    passages = []
    for item in value:
        if isinstance(item, str):
            passages.append(Passage(text=item.strip()))
        elif isinstance(item, Mapping) and isinstance(item.get("text"), str):
            passages.append(Passage(text=item["text"].strip(), label=_text(item.get("label"))))
        else:
            return None
    return tuple(passage for passage in passages if passage.text)


def _hub_rows(dataset: str, split: str, config: str | None) -> Iterator[Row]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"{dataset}: no such file, and a data set of the hub needs one more package: pip install 'meditune[hub]'."
        ) from error
    try:
        for number, row in enumerate(load_dataset(dataset, config, split=split, streaming=True), start=1):
            yield f"{dataset} ({split}), row {number}", row
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{dataset}: no such file, and it can't be read from the hub as split {split!r}: {error}. Check the name, "
            "the split, the config and the connection, or give a file."
        ) from error
