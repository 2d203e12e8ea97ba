"""Searching: what each part finds, fusion, filters, and questions of every kind.

Fusion, by hand.

The nearest vectors by some directions first: the same that comparing all of them finds.

BM25 in memory, held against bm25s.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from meditune.errors import DataError
from meditune.models.sentence_encoder import SentenceEncoder
from meditune.retrieve import bm25, collections
from meditune.retrieve.build_index import build, update
from meditune.retrieve.hybrid_search import reciprocal_rank
from meditune.retrieve.index import Index
from meditune.retrieve.query_understanding import query_focus
from meditune.retrieve.reranker import nearest
from meditune.retrieve.storage import MANIFEST, index_storage
from tests import corpus

pytest.importorskip("lancedb")
pytest.importorskip("Stemmer")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("search")
    docs = corpus.folder(folder / "docs")
    long = "\n".join(f"Migraine fact {n}: " + "a migraine attack hurts on one side of the head " * 8 for n in range(10))
    (docs / "migraine.txt").write_text(long, encoding="utf-8")
    file = corpus.articles(
        folder / "pubmed.xml",
        corpus.article(1, "Colchicine in gout", "Colchicine calmed attacks.", "2009"),
        corpus.article(2, "Colchicine in gout again", "Colchicine calmed attacks in adults.", "2021"),
        corpus.article(3, "Steroids", "Steroids are running well in runners.", "2021"),
    )
    build(
        index_storage(folder / "index"),
        [collections.documents(str(docs)), collections.pubmed_files(str(file))],
        corpus.TINY,
    )
    return Index.open(folder / "index", corpus.TINY)


def documents(index: Index, question: str, k: int = 10, **options) -> list[str]:
    return [hit.passage.document for hit in index.search(question, k, **options).hits]


def test_words_are_stemmed_and_titles_count(index: Index) -> None:
    assert documents(index, "inhaling steroid", 1, mode="bm25") == ["documents:asthma.md"]
    assert documents(index, "lice", 1, mode="bm25") == ["documents:lice.txt"]
    assert documents(index, "burns", mode="bm25") == ["documents:burn.html"]
    assert documents(index, "the of are", mode="bm25") == []


def test_a_hit_says_what_each_part_gave(index: Index) -> None:
    best = index.search("colchicine in gout").hits[0]
    assert best.passage.document == "pubmed:1"
    assert best.words is not None
    assert best.words > 1
    assert best.meaning == pytest.approx(
        float(corpus.words_as_vectors([best.passage.searched])[0] @ corpus.words_as_vectors(["colchicine in gout"])[0]),
        abs=1e-4,
    )
    words, meaning, fused = (
        index.search("colchicine in gout", 50, mode=mode, per_document=None).hits
        for mode in ("bm25", "vectors", "fused")
    )
    words, meaning = ([hit.passage.id for hit in hits] for hits in (words, meaning))
    for hit in fused:
        by_words = 1 / (61 + words.index(hit.passage.id)) if hit.passage.id in words else 0
        assert hit.score == pytest.approx(by_words + 3 / (61 + meaning.index(hit.passage.id)))


def test_modes_choose_the_part(index: Index) -> None:
    only = index.search("gout", 2, mode="vectors").hits
    assert only
    assert all(hit.words is None and hit.score == hit.meaning for hit in only)
    only = index.search("gout", 2, mode="bm25").hits
    assert only
    assert all(hit.meaning is None and hit.score == hit.words for hit in only)


QUESTIONS = {
    "What are the treatments for Shingles ? (Also called: Zoster)": "Antiviral medicines shorten an attack.",
    "What causes Shingles ?": "The virus of chickenpox wakes up again in a nerve.",
    "What are the treatments for Rickets ?": "Vitamin D and calcium; sometimes braces.",
    "What are the treatments for Eczema ?": "Moisturizers and steroid creams ease itching.",
    "What is (are) Toddler Health ?": "Toddlers need sleep and play; mothers worry about falls and treatments.",
}
MESSAGE = (
    "Help\nHi, my mother is 80 and lives with a toddler, my nephew. She has shingels on her back since Friday. "
    "What treatments are there for it?"
)


@pytest.fixture(scope="module")
def leaflets(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """An index whose titles are questions, as MedQuAD's are."""
    folder = tmp_path_factory.mktemp("leaflets")
    files = {f"{n}.md": f"# {title}\n\n{text}\n" for n, (title, text) in enumerate(QUESTIONS.items())}
    docs = corpus.folder(folder / "docs", files)
    build(index_storage(folder / "index"), [collections.documents(str(docs))], corpus.TINY)
    return Index.open(folder / "index", corpus.TINY)


def test_a_rambling_message_with_a_slip_finds_its_answer_by_the_reranker(leaflets: Index) -> None:
    assert documents(leaflets, MESSAGE, 1) == ["documents:0.md"]
    assert documents(leaflets, MESSAGE, 1, mode="bm25") != ["documents:0.md"]
    assert documents(leaflets, "zoster", 2)[0] == "documents:0.md"


def test_every_hit_of_the_reranker_has_its_cosine_with_the_message_or_with_what_it_asks(leaflets: Index) -> None:
    hits = leaflets.search(MESSAGE, 5).hits
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    synonyms = leaflets.opened.reranker.synonyms
    corrected = synonyms.corrected(MESSAGE)
    meant = corpus.words_as_vectors([corrected, query_focus(corrected, synonyms).query])
    for hit in hits:
        cosines = meant @ corpus.words_as_vectors([hit.passage.searched])[0]
        assert hit.meaning == pytest.approx(float(cosines.max()), abs=1e-4)


def test_all_about_a_question_is_embedded_at_once(leaflets: Index) -> None:
    calls: list[bool] = []

    def embed(texts):
        calls.append(len(set(texts)) == len(texts))
        return corpus.words_as_vectors(texts)

    Index(leaflets.store, SentenceEncoder(corpus.TINY.identity, embed)).search(MESSAGE)
    assert calls == [True]


def test_what_the_reranker_knows_is_damaged(leaflets: Index, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(leaflets.store.name, broken)
    (broken / leaflets.manifest.knowledge).write_bytes(b"PK")
    with pytest.raises(DataError, match=r"knowledge-passages-1.*missing or damaged.*--replace"):
        Index.open(broken, corpus.TINY)
    (broken / leaflets.manifest.knowledge).unlink()
    with pytest.raises(DataError, match=r"the file is missing.*--replace"):
        Index.open(broken, corpus.TINY)


def test_a_document_comes_once_unless_more_are_wanted(index: Index) -> None:
    assert documents(index, "migraine attack").count("documents:migraine.txt") == 1
    assert documents(index, "migraine attack", per_document=3).count("documents:migraine.txt") == 3
    assert documents(index, "migraine attack", 20, per_document=None).count("documents:migraine.txt") > 4


def test_sources_and_dates_narrow_the_search(index: Index) -> None:
    assert set(documents(index, "colchicine gout", sources=["pubmed"])) <= {"pubmed:1", "pubmed:2", "pubmed:3"}
    assert documents(index, "colchicine", sources=["pubmed"], since="2021-02") == ["pubmed:2", "pubmed:3"]
    assert documents(index, "colchicine", sources=["pubmed"], since="2021-03") == []
    assert documents(index, "colchicine", 1, sources=["pubmed"], until="2009") == ["pubmed:1"]
    assert documents(index, "colchicine", sources=["pubmed"], since="2021", mode="fused") == ["pubmed:2", "pubmed:3"]
    with pytest.raises(DataError, match=r"no source 'medline'. Its sources: documents, pubmed"):
        index.search("gout", sources=["medline"])
    with pytest.raises(DataError, match="is not a date like 2018"):
        index.search("gout", since="17.5.2018")


@pytest.mark.parametrize(
    "question",
    [
        '"gout',
        "gout AND NOT (",
        "gout^2 ~*?:[",
        "gout'; DROP TABLE passages; --",
        "gout 😀",
        "+gout -lice",
        "gout\x00\n\t",
        "痛风 gout",
        "gout' OR 1=1",
    ],
)
def test_every_character_stands_for_itself(index: Index, question: str) -> None:
    assert documents(index, question, mode="bm25")[:3]
    assert documents(index, question)


@pytest.mark.parametrize("question", ["", "  \n", "?!…", "😀"])
def test_an_empty_question_is_refused(index: Index, question: str) -> None:
    with pytest.raises(DataError, match="The question is empty"):
        index.search(question)


def test_a_very_long_question_is_cut_and_that_is_said(index: Index) -> None:
    found = index.search("gout colchicine " * 3200)
    assert found.hits[0].passage.document in {"pubmed:1", "pubmed:2"}
    assert found.remarks == ("The question has 51,199 characters; only the first 2,000 were used for the search.",)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mode": "best"}, "mode 'best' must be one of hybrid, fused, bm25, vectors"),
        ({"k": 0}, "k is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(index: Index, options, says: str) -> None:
    with pytest.raises(DataError, match=says):
        index.search("gout", **options)


def test_an_error_of_the_embedding_isnt_called_damage(index: Index) -> None:
    def broken(texts):
        raise ValueError("out of order")

    with pytest.raises(ValueError, match="out of order"):
        Index(index.store, SentenceEncoder(corpus.TINY.identity, broken)).search("gout")


def test_the_passages_of_a_document_come_in_order(index: Index) -> None:
    numbers = [int(each["id"].rpartition("#")[2]) for each in index.passages("documents:migraine.txt")]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 4


def test_ranks_add_up() -> None:
    scores = reciprocal_rank([[[7], [8]], [[8], [9, 6]]])
    assert list(scores) == [8, 7, 9, 6]
    assert scores[8] == pytest.approx(1 / 62 + 1 / 61)
    assert scores[9] == scores[6] == pytest.approx(1 / 62)


def test_the_nearest_of_the_allowed_are_found() -> None:
    made = np.random.default_rng(5).normal(size=(2000, 96))
    vectors = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    places, cosines = nearest(vectors, vectors[3], 20)
    every = vectors @ vectors[3]
    assert places.tolist() == np.argsort(-every, kind="stable")[:20].tolist()
    assert cosines == pytest.approx(every[places], abs=1e-6)
    allowed = np.zeros(len(vectors), dtype=bool)
    allowed[[7, 70, 700]] = True
    assert sorted(nearest(vectors, vectors[0], 20, allowed)[0].tolist()) == [7, 70, 700]


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
    with pytest.raises(DataError, match="postings for 6 passages"):
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
