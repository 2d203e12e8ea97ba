"""Servers for the tests of updates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from meditune.operate.literature import literature_update, pubmed_search
from tests import corpus, layouts
from tests.operate.literature import pubmed_server
from tests.operate.literature.pubmed_server import PubMed


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PubMed]:
    """Servers, a PubMedQA of invented items, a tiny embedding model, and no waiting."""
    (tmp_path / "files").mkdir()
    items = {str(20_000_000 + number): layouts.pubmedqa_item(number) for number in range(4)}
    layouts.pubmedqa(tmp_path / "data" / "pubmedqa", items)
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    for name in ("MEDITUNE_CONTACT", "NCBI_API_KEY", "MEDITUNE_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pubmed_search, "INTERVAL", 0.0)
    monkeypatch.setattr(pubmed_search, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(pubmed_search, "MAX_INTERVAL", 0.02)
    monkeypatch.setattr(literature_update, "load_encoder", lambda _: corpus.TINY)
    with pubmed_server.serving(tmp_path / "files") as made:
        yield made
