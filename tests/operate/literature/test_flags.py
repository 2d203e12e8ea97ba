"""Stored answers that cite what was retracted since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meditune.errors import DataError
from meditune.operate.literature import article_library


def test_answers_are_flagged_by_what_they_cited(tmp_path: Path) -> None:
    row = {"pmid": "103", "title": "T", "when": "2026-02-01T00:00:00+00:00", "notice": "901", "reference": "J."}
    (tmp_path / "retracted.jsonl").write_text(json.dumps(row) + "\n")
    answers = [
        ("a", ["pubmed:101#0", "pubmed:103#2", "pubmed:103#2"]),
        ("b", ["medquad:103#0", "pubmed:1030#0", "documents:pubmed:103"]),
        ("c", ["pubmedqa:103#0"]),
    ]
    found = list(article_library.flag(answers, article_library.read(tmp_path)))
    assert [(each.answer, each.passage) for each in found] == [("a", "pubmed:103#2"), ("c", "pubmedqa:103#0")]
    assert "Answer a cites PMID 103" in found[0].sentence
    assert "notice: PMID 901" in found[0].sentence
    with pytest.raises(DataError, match="no such file"):
        article_library.read(tmp_path / "none")
