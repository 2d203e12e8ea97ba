"""Jobs passed on to a real server with OpenAI's API: llama.cpp's own."""

import queue

import pytest
import torch

from meditune.engines.engine import Job
from meditune.engines.llamacpp_engine import server
from meditune.engines.open_engine import open_engine
from meditune.errors import ModelError
from meditune.export.gguf import NAME, write_gguf
from tests import tiny
from tests.engines.asking import ask, text, tokens

llama = pytest.importorskip("xllamacpp")
PROMPT = [20, 30, 40, 50, 60, 70]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder, and the address and the key of a server that serves its model."""
    folder = tmp_path_factory.mktemp("served")
    made, tokenizer = tiny.model("llama"), tiny.tokenizer()
    with torch.no_grad():
        for number in range(500):
            if not tokenizer.decode([number]).isascii():
                made.get_output_embeddings().weight[number] = 0
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_gguf(folder, folder)
    started = server(folder / NAME, 1024, 2, "the key")
    yield folder, f"{started.listening_address}/v1"
    del started


@pytest.fixture
def engine(served):
    folder, url = served
    opened = open_engine(str(folder), "vllm", url=url, key="the key")
    yield opened
    opened.close()


def test_answers_are_passed_on_piece_by_piece(engine):
    pieces = ask(engine, Job(PROMPT, 12))
    assert pieces[-1].finish in {"length", "stop"}
    assert len(pieces) > 3
    assert engine.tokenizer.decode(tokens(pieces), skip_special_tokens=True) == text(pieces)
    assert text(ask(engine, Job(PROMPT, 12))) == text(pieces)


def test_a_constraint_that_the_server_ignores_is_said(engine):
    error = ask(engine, Job(PROMPT, 8, choices=(" yes", " no")))[-1].error
    assert isinstance(error, ModelError)
    assert "doesn't hold answers" in str(error)


def test_likelihoods_that_the_server_does_not_tell_are_said(engine):
    with pytest.raises(ModelError, match="doesn't tell how likely"):
        engine.score(PROMPT, [[5, 6]])


def test_who_cancels_gets_a_last_piece(engine):
    pieces: queue.Queue = queue.Queue()
    running = engine.start(Job(PROMPT, 900), pieces.put)
    pieces.get(timeout=60)
    running.cancel()
    while (piece := pieces.get(timeout=60)).finish is None:
        assert piece.error is None
    assert piece.finish in {"cancelled", "stop", "length"}


def test_a_wrong_key_and_a_wrong_address_are_said(served):
    folder, url = served
    with pytest.raises(ModelError, match="address"):
        open_engine(str(folder), "vllm")
    with pytest.raises(ModelError, match="No server answers"):
        open_engine(str(folder), "vllm", url="http://127.0.0.1:9/v1")
    with pytest.raises(ModelError, match="Check the key"):
        open_engine(str(folder), "vllm", url=url, key="another")
