"""Decisions as PubMedQA's publisher reads them: one JSON object, PubMed id -> label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from meditune.data import pubmedqa
from meditune.data.example import Example
from meditune.evaluate.predictions import read
from meditune.files import read_json, write_json

NO_LABEL = "none"
"""Stands for a decision that named none of the labels: wrong there, and a class of its own in its macro-F1."""


def write_pubmedqa(folder: Path, model: str, test: Sequence[Example]) -> Path | None:
    """Write `MODEL-pubmedqa.json` for `evaluation.py` of https://github.com/pubmedqa/pubmedqa, and return its path.

    Of the measured items `test`, those of PubMedQA are written; the script takes exactly the official ones. None where
    there are none.
    """
    pmids = {example.id: example.group for example in test if example.source == pubmedqa.SOURCE}
    said = {pmids[row["id"]]: row["prediction"] for row in read(folder, model).decision if row["id"] in pmids}
    if not said:
        return None
    path = folder / f"{model}-pubmedqa.json"
    labels = {pmid: label or NO_LABEL for pmid, label in said.items()}
    if not path.is_file() or read_json(path) != labels:
        write_json(path, labels)
    return path
