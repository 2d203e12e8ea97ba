"""MIMIC-III's discharge summaries, in sections, marked as restricted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from meditune.data import mimic
from meditune.data.rejects import Rejects
from meditune.retrieve.passages.passage import Document, Section


def read(path: Path, rejects: Rejects) -> Iterator[Document]:
    """One document for each section that answers a question (`data/mimic.py`)."""
    for example in mimic.read(path, rejects):
        yield Document(
            id=example.id,
            source=mimic.SOURCE,
            sections=[Section(example.answer, str(example.meta["section"]).replace("-", " "))],
            title=f"Hospital stay {example.meta['hadm_id']}",
            licence=mimic.LICENCE,
            group=example.group,
            restricted=True,
        )
