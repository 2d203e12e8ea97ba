"""A cross-encoder by name: its order against transformers' own scores, in every place where one can be given."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from meditune.errors import ModelError
from meditune.retrieve import collections
from meditune.retrieve.build_index import build
from meditune.retrieve.cross_encoder import BATCH, CrossEncoder
from meditune.retrieve.index import Index
from meditune.retrieve.storage import index_storage
from tests import corpus, tiny
from tests.commands import meditune

pytest.importorskip("lancedb")
pytest.importorskip("Stemmer")

QUESTION = "What removes lice, and what helps with asthma or a burn?"
WORDS = (*corpus.TEXTS.values(), QUESTION)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    build(index_storage(folder / "index"), [collections.documents(str(corpus.folder(folder / "docs")))], corpus.TINY)
    return folder / "index"


def expected(folder: Path, model, texts: list[str]) -> list[float]:
    """Scores by transformers, one pair at a time."""
    read = AutoTokenizer.from_pretrained(folder)
    model.eval()
    with torch.inference_mode():
        logits = [model(**read(QUESTION, text, return_tensors="pt")).logits[0].tolist() for text in texts]
    return [each[0] if len(each) == 1 else each[1] - each[0] for each in logits]


@pytest.mark.parametrize("labels", [["relevance"], ["other", "relevant"]])
def test_a_search_has_the_order_of_its_scores(labels: list[str], library: Path, tmp_path: Path) -> None:
    model = tiny.classifier(tmp_path / "cross", labels, WORDS, places=128)
    plain = Index.open(library, corpus.TINY).search(QUESTION, per_document=None).hits
    found = Index(index_storage(library), corpus.TINY, CrossEncoder(str(tmp_path / "cross"))).search(
        QUESTION, per_document=None
    )
    assert {hit.passage.id for hit in found.hits} == {hit.passage.id for hit in plain}
    scores = expected(tmp_path / "cross", model, [f"{hit.passage.title}\n{hit.passage.text}" for hit in found.hits])
    assert [hit.score for hit in found.hits] == pytest.approx(scores, abs=1e-5)
    assert scores == sorted(scores, reverse=True)
    assert [hit.meaning for hit in found.hits].count(None) == 0, "the cosine still says whether anything fits"


def test_passages_beyond_the_first_keep_their_order_below(library: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("meditune.retrieve.hybrid_search.CROSS_ENCODED", 2)
    tiny.classifier(tmp_path / "cross", ["relevance"], WORDS)
    plain = Index.open(library, corpus.TINY).search(QUESTION).hits
    found = Index.open(library, corpus.TINY, str(tmp_path / "cross")).search(QUESTION).hits
    assert {hit.passage.id for hit in found[:2]} == {hit.passage.id for hit in plain[:2]}
    assert [hit.passage.id for hit in found[2:]] == [hit.passage.id for hit in plain[2:]]
    scores = [hit.score for hit in found]
    assert scores == sorted(scores, reverse=True)


def test_scores_do_not_depend_on_the_batch_and_long_texts_are_cut(tmp_path: Path) -> None:
    tiny.classifier(tmp_path / "cross", ["relevance"], WORDS)
    model = CrossEncoder(str(tmp_path / "cross"))
    texts = [" ".join(["steroids help most people"] * count) for count in range(1, BATCH + 5)]
    together = model.scores(QUESTION, texts)
    assert together == pytest.approx(np.concatenate([model.scores(QUESTION, [text]) for text in texts]), abs=1e-5)
    assert model.scores(QUESTION * 30, texts[-1:]).shape == (1,)
    assert model.scores(QUESTION, []).shape == (0,)


def test_what_cannot_rank_is_refused(tmp_path: Path) -> None:
    tiny.classifier(tmp_path / "three", ["entailment", "neutral", "contradiction"], WORDS)
    with pytest.raises(ModelError, match=r"three: the model has 3 labels \(entailment, neutral, contradiction\)"):
        CrossEncoder(str(tmp_path / "three"))
    with pytest.raises(ModelError, match=r"(?s)neither an existing folder nor a hub id.*1. online"):
        CrossEncoder(str(tmp_path / "missing" / "model"))
    with pytest.raises(ModelError, match=r"no weights for classifier.bias.*An embedding model can't be used"):
        CrossEncoder(str(tiny.sentence_model(tmp_path / "headless")))
    (tmp_path / "three" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="copy the model's folder"):
        CrossEncoder(str(tmp_path / "three"))


def test_without_torch_it_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("meditune.retrieve.cross_encoder.find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelError, match="pip install torch transformers"):
        CrossEncoder(str(tmp_path))


def test_scores_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    model = tiny.classifier(tmp_path / "broken", ["relevance"], WORDS)
    with torch.no_grad():
        model.classifier.bias.fill_(torch.nan)
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelError, match="broken gives scores that aren't finite"):
        CrossEncoder(str(tmp_path / "broken")).scores(QUESTION, ["Steroids help."])


def test_an_assistants_limit_of_distance_does_not_depend_on_it(library: Path, tmp_path: Path) -> None:
    tiny.classifier(tmp_path / "cross", ["relevance"], WORDS)
    plain = Index.open(library, corpus.TINY).search(QUESTION, 1)
    for k in (1, 3):
        found = Index.open(library, corpus.TINY, str(tmp_path / "cross")).search(QUESTION, k)
        assert found.nearest == max(hit.meaning for hit in Index.open(library, corpus.TINY).search(QUESTION, k).hits)
    assert plain.nearest == plain.hits[0].meaning


def test_commands_take_it_by_name(library: Path, tmp_path: Path, monkeypatch) -> None:
    tiny.classifier(tmp_path / "cross", ["relevance"], WORDS, places=128)
    monkeypatch.setattr("meditune.retrieve.index.load_encoder", lambda _: corpus.TINY)
    words = ("index", "search", library, QUESTION, "--json")
    found = meditune(*words, "--cross-encoder", tmp_path / "cross").ok()
    scores = [json.loads(line)["score"] for line in found.out.splitlines()]
    assert scores == sorted(scores, reverse=True)
    meditune(*words, "--cross-encoder", tmp_path / "cross", "--mode", "bm25").refused(3, "only with --mode hybrid")
    meditune("ask", "smollm2-135m", "Why?", "--cross-encoder", "x").refused(3, "name the index with --index")
