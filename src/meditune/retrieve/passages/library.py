"""A library of literature: articles as they were last taken in, and whether they still stand.

`meditune update` keeps it (operate/literature); an index reads it, the whole or what has changed since.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from meditune.data import pubmedqa
from meditune.errors import DataError
from meditune.retrieve.passages import articles
from meditune.retrieve.passages.passage import Document

KIND = "library"
FILE = "library.sqlite"
FORMAT = 1
SCHEMA = """
CREATE TABLE articles (
    pmid TEXT PRIMARY KEY,
    record TEXT,              -- JSON of Article; NULL where only a notice or a deletion told of it
    state TEXT NOT NULL,      -- one of State
    reason TEXT NOT NULL,
    said TEXT NOT NULL,       -- hash of the text, by which the same under another id is found
    change INTEGER NOT NULL   -- which of the library's changes was the last to touch it
);
CREATE INDEX articles_change ON articles (change);
CREATE INDEX articles_said ON articles (said);
"""
THERE, RETRACTED, OUT = "there", "retracted", "out"
"""States: to be found; retracted; not to be found for another reason (deleted, replaced, refused, no abstract)"""


def read(folder: Path, withdrawn: set[str], since: int = 0) -> Iterator[Document]:
    """The articles that stand, of those that a change after `since` has touched.

    Ids of documents that must not be found any more are added to `withdrawn`, ids of those that stand are taken out;
    for a retracted article that is also its context among PubMedQA's. Raises DataError where there is no library.
    """
    with closing(opened(folder)) as base:
        rows = base.execute("SELECT pmid, record, state FROM articles WHERE change > ? ORDER BY pmid", (since,))
        for pmid, record, state in rows:
            if state == THERE:
                document = articles.from_dict(json.loads(record)).document()
                withdrawn.discard(document.id)
                yield document
            else:
                withdrawn.add(f"{articles.SOURCE}:{pmid}")
            if state == RETRACTED:
                withdrawn.add(f"{pubmedqa.SOURCE}:{pmid}")


def opened(folder: Path) -> sqlite3.Connection:
    """The library's database, to read from. Raises DataError where there is none that this version can read."""
    file = folder / FILE
    if not file.is_file():
        raise DataError(f"{folder}: no {FILE} in it. Name a folder that `meditune update` keeps.")
    try:
        base = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=30)
        found = base.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise DataError(f"{file}: not a readable library ({error}). Restore it, or begin another one.") from error
    if found != FORMAT:
        base.close()
        raise DataError(f"{file}: a library in format {found}, and this version of Meditune reads {FORMAT}.")
    return base
