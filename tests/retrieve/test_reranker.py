"""Passages come in the order in which they answer, whatever the rankers before made of them."""

import re
import zlib
from dataclasses import dataclass

import numpy as np
import pytest

from meditune.errors import DataError, ModelError
from meditune.retrieve import reranker as knowledge
from meditune.retrieve import topics
from meditune.retrieve.reranker import Reranker, TitleVectors
from meditune.retrieve.topics import Synonyms, key, says


@dataclass(frozen=True)
class Piece:
    id: str
    title: str
    text: str


def embed(texts):
    """Each word a direction of its own, the longer the rarer the word: nearness is shared words that say something."""
    made = np.zeros((len(texts), 4096), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in re.findall(r"[a-z]+", text.casefold()):
            made[row, zlib.crc32(word.encode()) % 4096] += says(word)
    return made / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-9)


PIECES = [
    Piece(
        "1", "What are the treatments for Shingles ?", "Antiviral medicines shorten an attack; creams ease the pain."
    ),
    Piece("2", "What causes Shingles ?", "The virus of chickenpox wakes up again in a nerve."),
    Piece("3", "What are the treatments for Rickets ?", "Vitamin D and calcium; sometimes braces."),
    Piece("4", "What are the treatments for Eczema ?", "Moisturizers and steroid creams ease itching."),
    Piece("5", "What is (are) Toddler Health ?", "Toddlers need sleep and play; mothers worry about falls."),
]
MESSAGE = (
    "Help\nHi, my mother is 80 and lives with a toddler, my nephew. She has shingels on her back since Friday. "
    "What treatments are there for it?"
)
TITLES = list(dict.fromkeys(piece.title for piece in PIECES))


@pytest.fixture
def reranker() -> Reranker:
    return Reranker(
        Synonyms(topics.read(piece.title).names for piece in PIECES), TitleVectors(TITLES, embed(TITLES)), embed
    )


def scored(reranker: Reranker, passages, message=MESSAGE):
    return reranker.score(reranker.prepare(message), passages, embed([piece.text for piece in passages]))


def test_the_answer_comes_before_its_topic_its_kind_and_the_story(reranker):
    scores = scored(reranker, PIECES)
    assert list(np.argsort(-scores)[:2]) == [0, 1]
    assert scores.argmin() != 0
    assert scores[0] > scores[2:].max()


def test_scores_do_not_depend_on_the_order_of_passages(reranker):
    np.testing.assert_allclose(scored(reranker, PIECES), scored(reranker, PIECES[::-1])[::-1])


def test_passages_of_their_own_vectors_are_told_apart_by_them(reranker):
    twins = [Piece("a", "Shingles", "One text."), Piece("b", "Shingles", "One text.")]
    vectors = np.stack([np.zeros(4096, dtype=np.float32), embed([reranker.synonyms.corrected(MESSAGE)])[0]])
    first, second = scored(reranker, twins)
    assert first == pytest.approx(second)
    first, second = reranker.score(reranker.prepare(MESSAGE), twins, vectors)
    assert second > first


def test_no_passages_and_an_empty_message_have_scores(reranker):
    assert scored(reranker, []).shape == (0,)
    assert scored(reranker, PIECES, "").shape == (5,)


def test_a_passage_whose_title_isnt_known_counts_by_its_own_vector(reranker):
    unknown = [Piece("x", "", "Shingles is treated with antiviral medicines."), Piece("y", "", PIECES[3].text)]
    vectors = embed([piece.text for piece in unknown])
    asked = reranker.prepare(MESSAGE)
    reranker.encode = None  # nothing may be embedded any more
    first, second = reranker.score(asked, unknown, vectors)
    assert first > second


def test_what_a_reranker_knows_is_stored_and_read_again():
    made = knowledge.make([piece.title for piece in PIECES], embed, "bag", [("Shingles", "Zoster")])
    data = knowledge.as_bytes(made)
    again = knowledge.read(data, "knowledge-1", "bag").reranker(embed)
    np.testing.assert_allclose(scored(made.reranker(embed), PIECES), scored(again, PIECES), atol=0.02)
    assert again.synonyms.find("zoster")[0].topic == "shingles"
    with pytest.raises(ModelError, match="made with the embedding model bag, but other"):
        knowledge.read(data, "knowledge-1", "other")
    for damaged in (None, b"", data[:200], b"{}" + data[2:]):
        with pytest.raises(DataError, match=r"knowledge-1.*missing or damaged.*--replace"):
            knowledge.read(damaged, "knowledge-1", "bag")


def test_only_new_titles_are_embedded():
    before = knowledge.make(["Gout", "Lice"], embed, "bag")
    seen = []

    def counting(texts):
        seen.extend(texts)
        return embed(texts)

    made = knowledge.make(["Lice", "", "Burns", "Lice"], counting, "bag", before=before)
    assert seen == ["Burns"]
    assert made.titles == ("Lice", "Burns")
    np.testing.assert_allclose(made.vectors, embed(["Lice", "Burns"]))


def test_very_many_titles_are_left_alone(monkeypatch):
    monkeypatch.setattr(knowledge, "MAX_TITLES", 2)
    made = knowledge.make(["a", "b", "c"], embed, "bag", [("Shingles", "Zoster")])
    assert made.titles == ()
    again = knowledge.read(knowledge.as_bytes(made), "x", "bag").reranker(embed)
    assert again.synonyms.find("zoster")[0].topic == "shingles"
    assert again.title_vectors.nearest(embed(["a"]), 5) == [[]]


@pytest.mark.real
def test_liveqa_topics_are_found_under_medquads_names(real_data):
    from meditune.data.readers import liveqa
    from meditune.data.readers.tables import Rejects
    from meditune.retrieve.query_understanding import query_focus
    from meditune.retrieve.topics import of_medquad

    known = Synonyms(of_medquad(real_data / "medquad"))
    train, _ = liveqa.official_split(list(liveqa.read(real_data / "liveqa", Rejects())))
    asked = {each.question: {key(name) for name in each.meta["focus"]} for each in train}
    named = {question: topics for question, topics in asked.items() if any(known.names(topic) for topic in topics)}
    found = [
        bool(topics & {name for each in query_focus(question, known).mentions for name in (each.name, *each.topics)})
        for question, topics in named.items()
    ]
    assert len(found) > 200
    assert np.mean(found) >= 0.9


def test_titles_kinds_are_those_that_cues_know():
    from meditune.retrieve import query_understanding

    assert query_understanding.KINDS.keys() <= topics.QUESTION_KINDS["titles"].keys()
