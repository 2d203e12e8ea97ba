"""What a model was trained on, as hashes that lie beside it: enough to recognize a test item, not to read one.

    {"version": 1, "examples": 449, "unlisted": 0, "questions": [...], "contexts": [...], "groups": [...]}

Each entry is the first 16 hexadecimal digits of a SHA-256, of a question or context without case, punctuation and
spacing, or of a source with a group. Who has a text can test whether it is in the list; so examples that are marked as
restricted (MIMIC-III) are only counted as `unlisted`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from meditune.data.example import Example
from meditune.data.restrictions import is_restricted
from meditune.data.splits import backgrounds, context_key, instructions, question_key
from meditune.errors import DataError
from meditune.files import read_json

FILE_NAME = "trained_on.json"
VERSION = 1
PARTS = ("questions", "contexts", "groups")
DIGITS = 16

Record = dict[str, Any]


def record(examples: Sequence[Example], earlier: Iterable[Record] = ()) -> Record:
    """The record of a model that was trained on `examples`, and on what `earlier` records of its base name."""
    listed = [example for example in examples if not is_restricted(example)]
    before = list(earlier)
    found: Record = {
        "version": VERSION,
        "examples": len(examples) + sum(each["examples"] for each in before),
        "unlisted": len(examples) - len(listed) + sum(each["unlisted"] for each in before),
    }
    general, common = instructions(examples), backgrounds(examples)
    hashed = [keys(example) for example in listed]
    for example, each in zip(listed, hashed, strict=True):
        if question_key(example.question) in general:
            each["questions"] = ""
        if context_key(example) in common:
            each["contexts"] = ""
    for part in PARTS:
        own = {each[part] for each in hashed if each[part]}
        found[part] = sorted(own.union(*(each[part] for each in before)))
    return found


def keys(example: Example) -> dict[str, str]:
    """The hashes that an example leaves in each part of a record; empty where it has no such text."""
    return {
        "questions": _hashed(example.question),
        "contexts": _hashed(" ".join(passage.text for passage in example.context)),
        "groups": _hash(f"{example.source}\n{example.group}"),
    }


def read_record(model: Path) -> Record | None:
    """The record in a model's folder; None where there is none. Raises DataError where it can't be used."""
    path = model / FILE_NAME
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or found.get("version") != VERSION or not set(PARTS) <= found.keys():
        raise DataError(
            f"{path}: not a record of this version of Meditune, so it can't be checked whether the model was trained "
            "on the test. Copy the model again, or update Meditune."
        )
    return found


def carry(model: Path, derived: Path) -> None:
    """Copy a model's record, if it has one, into the folder of what was made of it."""
    if (model / FILE_NAME).is_file():
        shutil.copyfile(model / FILE_NAME, derived / FILE_NAME)


def _hashed(text: str) -> str:
    said = question_key(text)
    return _hash(said) if said else ""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
