"""Updates in a test's folder, and what they left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meditune.retrieve.index import Index
from tests.commands import Result, meditune, read_rows
from tests.operate.literature.pubmed_server import PubMed
from tests.retrieve import corpus


def ask(served: PubMed, folder: Path, *words: object, query: str = "all") -> Result:
    """An update by query."""
    asked = ("--query", query, "--email", "me@clinic.org", "--eutils", f"{served.url}/entrez/eutils")
    return meditune("update", folder / "library", *asked, *words)


def found(folder: Path, question: str) -> list[str]:
    """The documents that a search finds."""
    return [hit.passage.document for hit in Index.open(folder / "index", corpus.TINY).search(question).hits]


def row(folder: Path, name: str) -> list[dict[str, Any]]:
    """The objects in one of the library's files."""
    return read_rows(folder / "library" / name)
