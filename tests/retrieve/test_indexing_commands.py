"""`meditune index`: a user's journey from files to hits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from meditune.errors import ModelError
from meditune.models import sentence_encoder
from meditune.retrieve import collections
from meditune.retrieve.build_index import build
from meditune.retrieve.storage import index_storage
from tests import tiny
from tests.commands import meditune
from tests.data import layouts
from tests.retrieve import corpus

pytest.importorskip("lancedb")


@pytest.fixture
def embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny sentence model where the real one would be fetched."""
    folder = tiny.sentence_model(tmp_path / "sentences")
    monkeypatch.setattr("meditune.models.package_download.fetch_folder", lambda _: folder)
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path / "data"))


@pytest.mark.usefixtures("embedding")
def test_a_journey(tmp_path: Path) -> None:
    layouts.pubmedqa(tmp_path / "data" / "pubmedqa", {str(n): layouts.pubmedqa_item(n) for n in range(5)})
    docs = corpus.folder(tmp_path / "docs", corpus.TEXTS | {"empty.txt": ""})
    index = tmp_path / "index"
    done = meditune("index", "build", "-o", index, "--source", "pubmedqa", "--documents", f"clinic={docs}")
    assert done.code == 0, done
    (said,) = [line for line in done.out.splitlines() if line.startswith("Left out of clinic: 1 contains no text (")]
    assert str(tmp_path) in said
    assert "16 passages of 9 documents: 16 new, 0 changed, 0 removed, 0 unchanged." in done.out

    done = meditune("index", "search", index, "How do I remove head lice?", "--source", "clinic", "-k", 2)
    assert done.code == 0, done
    assert "1. lice\n   clinic · " in done.out
    assert "Combing with a fine comb removes them." in done.out
    rows = [json.loads(line) for line in meditune("index", "search", index, "treatment 3", "--json").out.splitlines()]
    assert {"id", "text", "url", "licence", "score", "words", "meaning"} <= set(rows[0])
    assert rows[0]["document"] == "pubmedqa:3"

    (docs / "lice.txt").unlink()
    done = meditune("index", "update", index)
    assert "0 new, 0 changed, 1 removed, 15 unchanged." in done.out
    done = meditune("index", "stats", index)
    assert "clinic: 5 passages of 3 documents (your own document)" in done.out
    assert "pubmedqa: 10 passages of 5 documents (MIT)" in done.out
    assert "Embedding: all-minilm-l6-v2, 32 dimensions" in done.out

    done = meditune("index", "build", "quickstart", "-o", tmp_path / "by-recipe")
    assert "10 passages of 5 documents" in done.out, done
    meditune("index", "search", index, " ").refused(3, "The question is empty")
    meditune("index", "search", tmp_path / "none", "gout").refused(3, "contains no index", "meditune index build -o")
    meditune("index", "build", "-o", index, "--source", "pubmedqa").refused(3, "already contains an index")
    meditune("index", "build", "-o", tmp_path / "x", "--source", "medline").refused(3, "Unknown index source")
    meditune("index", "build", "-o", tmp_path / "x").refused(3, "Nothing to index")
    meditune("index", "update", index, "--remove", "x").refused(3, "has no collection 'x'")


@pytest.mark.usefixtures("embedding")
def test_restricted_sources_are_marked(tmp_path: Path) -> None:
    layouts.noteevents(tmp_path / "data" / "mimic" / "NOTEEVENTS.csv", [layouts.note(174)])
    done = meditune("index", "build", "-o", tmp_path / "index", "--source", "mimic")
    assert "mimic is restricted: its licence forbids sharing this index" in done.out, done
    assert "RESTRICTED" in meditune("index", "stats", tmp_path / "index").out
    assert "restricted" in meditune("index", "search", tmp_path / "index", "pneumonia").out


@pytest.mark.model
def test_every_form_of_the_model_gives_the_vectors_of_the_whole_one() -> None:
    pytest.importorskip("onnxruntime")
    texts = ["What helps against gout?", "Colchicine calms an attack of gout in most adults. " * 30, "x", ""]
    whole = sentence_encoder.sentence_model().encode(texts)
    quick, small = map(sentence_encoder.load_encoder, (sentence_encoder.DEFAULT, sentence_encoder.INT8))
    assert quick.identity.space == small.identity.space
    assert (whole * quick.encode(texts)).sum(axis=1).min() > 0.98
    assert (whole * small.encode(texts)).sum(axis=1).min() > 0.995


def test_without_onnxruntime_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"pip install --editable .*\[retrieve\]"):
        sentence_encoder.load_onnx(tmp_path / "model.onnx", tmp_path / "tokenizer.json")


def test_an_unknown_embedding_model_is_an_error_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModelError, match=r"needs sentence-transformers.*use all-minilm-l6-v2"):
        sentence_encoder.load_encoder("someone/some-model")


@pytest.mark.model
def test_a_server_that_only_searches_needs_no_torch(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    docs = corpus.folder(tmp_path / "docs")
    build(
        index_storage(tmp_path / "index"),
        [collections.documents(str(docs))],
        sentence_encoder.load_encoder(sentence_encoder.INT8),
    )
    program = (
        "import sys\nfrom meditune.retrieve.index import Index\n"
        f"print(Index.open({str(tmp_path / 'index')!r}).search('itchy scalp', 1).hits[0].passage.document)\n"
        "print(*{'torch', 'transformers'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["documents:lice.txt"]
