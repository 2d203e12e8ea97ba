"""BM25 in memory, held against bm25s."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from meditune.errors import DataError
from meditune.retrieve import bm25, collections
from meditune.retrieve.build_index import build, update
from meditune.retrieve.index import Index
from meditune.retrieve.storage import MANIFEST, index_storage
from tests import corpus

pytest.importorskip("lancedb")
pytest.importorskip("Stemmer")

TEXTS = [
    "Gout is a disease of joints. Gout hurts.",
    "Inhaled steroids help with asthma, and with gout.",
    "The naïve patient's señor",
    "of the and",
    "",
    "Joint pain: joints that hurt, painful joints.",
]


def test_scores_are_those_of_bm25s() -> None:
    bm25s = pytest.importorskip("bm25s")
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    peer = bm25s.BM25(k1=bm25.SATURATION, b=bm25.LENGTH, method="lucene")
    some = [text for text in TEXTS if text]
    peer.index(
        bm25s.tokenize(some, stopwords="en_plus", stemmer=stemmer, token_pattern=r"[^\W_]+", show_progress=False),
        show_progress=False,
    )
    mine = bm25.build_postings(some)
    for asked in ("gout in a joint", "steroid", "painful joints: gout, my gout"):
        words = bm25s.tokenize([asked], stopwords="en_plus", stemmer=stemmer, return_ids=False, show_progress=False)[0]
        # bm25s leaves out a factor that all scores have.
        theirs = peer.get_scores(words) * (bm25.SATURATION + 1)
        found = mine.best(asked, len(some))
        assert found == pytest.approx({n: float(score) for n, score in enumerate(theirs) if score}, rel=1e-4)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_accents_case_and_endings_do_not_count_and_stop_words_find_nothing() -> None:
    mine = bm25.build_postings(TEXTS)
    assert list(mine.best("NAIVE Senor", 3)) == [2]
    assert list(mine.best("inhaling a steroid", 3)) == [1]
    assert mine.best("of the and", 3) == {}
    assert mine.best("?! 42", 3) == {}


def test_only_allowed_passages_are_found() -> None:
    allowed = np.array([False, True, True, True, True, True])
    assert list(bm25.build_postings(TEXTS).best("gout", 5, allowed)) == [1]


def test_nothing_but_empty_passages() -> None:
    mine = bm25.build_postings(["", "the"])
    assert mine.best("gout", 5) == {}
    assert bm25.read(bm25.as_bytes(mine), "x", 2).best("gout", 5) == {}


def test_what_is_stored_finds_the_same() -> None:
    mine = bm25.build_postings(TEXTS)
    again = bm25.read(bm25.as_bytes(mine), "x", len(TEXTS))
    assert again.best("gout and painful joints", 5) == mine.best("gout and painful joints", 5)
    with pytest.raises(DataError, match=r"words-1.npz: the BM25 postings are missing or damaged.*--replace"):
        bm25.read(bm25.as_bytes(mine)[:-200], "words-1.npz", len(TEXTS))
    with pytest.raises(DataError, match="it is for 6 passages"):
        bm25.read(bm25.as_bytes(mine), "x", 7)


def test_an_index_finds_the_same_by_its_postings_and_by_lancedb(tmp_path: Path) -> None:
    docs = corpus.folder(tmp_path / "docs")
    made, _ = build(index_storage(tmp_path / "index"), [collections.documents(str(docs))], corpus.TINY)
    old = tmp_path / "old"
    shutil.copytree(tmp_path / "index", old)
    index_storage(old).write(MANIFEST, dataclasses.asdict(dataclasses.replace(made, words="")))
    for asked in ("inhaled steroids", "a fine comb", "attack of colchicine"):
        both = [Index.open(where, corpus.TINY).search(asked, mode="bm25").hits for where in (tmp_path / "index", old)]
        assert [hit.passage for hit in both[0]] == [hit.passage for hit in both[1]]
        # LanceDB keeps passages' lengths roughly.
        assert [hit.score for hit in both[0]] == pytest.approx([hit.score for hit in both[1]], rel=0.1)


def test_an_update_brings_the_postings_along_and_a_lost_file_is_said(tmp_path: Path) -> None:
    docs = corpus.folder(tmp_path / "docs")
    first, _ = build(index_storage(tmp_path / "index"), [collections.documents(str(docs))], corpus.TINY)
    (docs / "flu.txt").write_text("Influenza comes in winter.", encoding="utf-8")
    second, _ = update(index_storage(tmp_path / "index"), [], corpus.TINY)
    assert Index.open(tmp_path / "index", corpus.TINY).search("influenza", mode="bm25").hits
    assert first.words != second.words
    (tmp_path / "index" / second.words).unlink()
    with pytest.raises(DataError, match="the file is missing"):
        Index.open(tmp_path / "index", corpus.TINY)
