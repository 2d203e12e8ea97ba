"""Records out of the rows of a user's table: which columns are read, what a cell says, and which rows are refused."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Protocol, TypeVar
from uuid import UUID

from meditune.data.columns import columns_for
from meditune.data.damage import damage
from meditune.data.example import Passage
from meditune.data.rejects import Rejects
from meditune.data.tables import Row
from meditune.errors import DataError

LOOK_AHEAD = 1000
"""Rows looked at for column names: JSON Lines rows may lack some."""


class Record(Protocol):
    """What is made of a row."""

    @property
    def id(self) -> str:
        """Unique in its file."""


Made = TypeVar("Made", bound=Record)
Columns = Mapping[str, str]
Make = Callable[[Mapping[str, Any], Columns, str], tuple[Made | None, str]]
"""From a row, field -> column, and an id for want of another, to a record, or None and the reason why not"""


def records(
    found: Iterable[Row],
    rejects: Rejects,
    make: Make[Made],
    source: str,
    name: str,
    no_rows: str,
    fields: Mapping[str, str] | None,
    **schema: Any,
) -> Iterator[Made]:
    """What `make` makes of (place, columns) pairs; refused rows, and repeated ids, go to `rejects`.

    `name` begins the ids of rows without one; `fields` and `schema` are for `columns_for`. Raises DataError with
    `no_rows` where there are none, and where a needed column is missing.
    """
    stream = iter(found)
    first = list(itertools.islice(stream, LOOK_AHEAD))
    if not first:
        raise DataError(no_rows)
    available = list(dict.fromkeys(str(column) for _, row in first for column in row))
    columns = columns_for(available, fields, first[0][0], **schema)
    seen: set[str] = set()
    for number, (where, row) in enumerate(itertools.chain(first, stream), start=1):
        problem = damage(row)
        made, problem = (None, problem) if problem else make(row, columns, f"{name}-{number}")
        if made is not None and made.id in seen:
            problem = "duplicate id"
        if made is None or problem:
            rejects.add(source, where, problem, row)
            continue
        seen.add(made.id)
        yield made


def cell(value: object) -> str:
    """A cell as text; nothing, NaN, Infinity, lists and what no one can see are empty.

    Databases give keys as decimals, bytes and UUIDs, too.
    """
    if isinstance(value, Decimal):
        value = int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        value = _text_of(value)
    if isinstance(value, float):
        return "" if not math.isfinite(value) else f"{value:g}" if not value.is_integer() else str(int(value))
    text = str(value).strip() if isinstance(value, str | int | UUID) else ""
    return text if any(map(str.isprintable, text)) else ""


def _text_of(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()


def is_empty(value: object) -> bool:
    """Whether a cell holds nothing, in any of the ways in which tables say so."""
    return value is None or value == "" or (isinstance(value, str) and not cell(value)) or value != value


def group_of(stated: str, question: str) -> str:
    """The stated group; without one, rows with the same question share one."""
    digest = hashlib.sha256(" ".join(question.casefold().split()).encode()).hexdigest()
    return stated or f"question-{digest[:16]}"


def passages(value: object) -> tuple[Passage, ...] | None:
    """The context's passages, none for an empty cell, None where it has an unknown form."""
    if isinstance(value, Mapping) and isinstance(value.get("contexts"), list):
        texts, labels = value["contexts"], value.get("labels") or []
        paired = labels if len(labels) == len(texts) else [""] * len(texts)
        value = [{"text": text, "label": label} for text, label in zip(texts, paired, strict=True)]
    if not isinstance(value, list | tuple):
        text = cell(value)
        known = value is None or isinstance(value, str | int | float)
        return (Passage(text=text),) if text else () if known else None
    found = []
    for item in value:
        if isinstance(item, str):
            found.append(Passage(text=item.strip()))
        elif isinstance(item, Mapping) and isinstance(item.get("text"), str):
            found.append(Passage(text=item["text"].strip(), label=cell(item.get("label"))))
        else:
            return None
    return tuple(passage for passage in found if passage.text)


NO_CONTEXT = "context is neither text, a list of texts, nor a list of {text, label}"
"""A reason that all readers of tables share."""
