"""A served index goes over to its newest version by itself."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from meditune.assistant.assistant import follow
from meditune.observability import LOGGER
from meditune.retrieve import collections
from meditune.retrieve.build_index import build, update
from meditune.retrieve.index import Index
from meditune.retrieve.storage import place
from tests.retrieve import corpus
from tests.serve.server import service

pytest.importorskip("lancedb")


def test_what_left_the_index_isnt_found_any_more(tmp_path: Path) -> None:
    docs = corpus.folder(tmp_path / "docs")
    build(place(tmp_path / "index"), [collections.documents(str(docs))], corpus.TINY)
    index = Index(place(tmp_path / "index"), corpus.TINY)
    told: list[str] = []
    end = follow(index, told.append, seconds=0.02)
    try:
        assert index.search("head lice").hits[0].passage.document == "documents:lice.txt"
        (docs / "lice.txt").unlink()
        made, _ = update(place(tmp_path / "index"), [], corpus.TINY)
        until(lambda: told == [made.content])
        assert "documents:lice.txt" not in [hit.passage.document for hit in index.search("head lice").hits]
        said = Kept()
        LOGGER.addHandler(said)
        (tmp_path / "index" / "index.json").write_text("{", encoding="utf-8")
        until(lambda: said.messages)
        time.sleep(0.2)
        LOGGER.removeHandler(said)
        assert said.messages == ["the index's newest version can't be used"]
        assert index.search("gout").hits[0].passage.document == "documents:gout.md"
    finally:
        end()


def test_answers_are_told_with_the_content_that_they_rest_on(tmp_path: Path) -> None:
    made = service(tmp_path)
    made.goes_over_to("0123456789abcdef")
    assert made.served.fingerprint.endswith("_0123456789ab")
    shown = [
        line for line in generate_latest(made.metrics.registry).decode().splitlines() if "0123456789abcdef" in line
    ]
    assert [line.rpartition(" ")[2] for line in shown] == ["1.0"]
    made.engine.close()


class Kept(logging.Handler):
    """Keeps warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def until(holds) -> None:
    """Wait for it, ten seconds at most."""
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)
