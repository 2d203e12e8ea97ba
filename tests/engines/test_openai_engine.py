"""Jobs passed on to a real server with OpenAI's API: llama.cpp's own.

What comes of streams that break off, and of jobs that nobody waits for any more: a server that we end at will.
"""

import json
import queue
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from meditune.engines.engine import GenerationRequest
from meditune.engines.llamacpp_engine import server
from meditune.engines.open_engine import open_engine
from meditune.engines.openai_engine import OpenAIEngine
from meditune.errors import ModelError
from meditune.export.gguf import DEFAULT, file_name, write_gguf
from tests import tiny
from tests.engines.test_engines import ask, collect, text, tokens

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
    started = server(folder / file_name(DEFAULT), 1024, 2, "the key")
    yield folder, f"{started.listening_address}/v1"
    del started


@pytest.fixture
def engine(served):
    folder, url = served
    opened = open_engine(str(folder), "vllm", url=url, key="the key")
    yield opened
    opened.close()


def test_answers_are_passed_on_piece_by_piece(engine):
    pieces = ask(engine, GenerationRequest(PROMPT, 12))
    assert pieces[-1].finish in {"length", "stop"}
    assert len(pieces) > 3
    assert engine.tokenizer.decode(tokens(pieces), skip_special_tokens=True) == text(pieces)
    assert text(ask(engine, GenerationRequest(PROMPT, 12))) == text(pieces)


def test_a_constraint_that_the_server_ignores_is_said(engine):
    error = ask(engine, GenerationRequest(PROMPT, 8, choices=(" yes", " no")))[-1].error
    assert isinstance(error, ModelError)
    assert "doesn't restrict answers" in str(error)


def test_likelihoods_that_the_server_does_not_tell_are_said(engine):
    with pytest.raises(ModelError, match="doesn't return the log-probabilities"):
        engine.score(PROMPT, [[5, 6]])


def test_who_cancels_gets_a_last_piece(engine):
    pieces: queue.Queue = queue.Queue()
    running = engine.start(GenerationRequest(PROMPT, 900), pieces.put)
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


STREAMED_PROMPT = [20, 30, 40]


@contextmanager
def serving(lines, hold=None, models=({"id": "m", "max_model_len": 512},), served_as=None):
    """An engine on a server that streams these lines, waits for `hold`, and ends; and the jobs that reached it."""
    got: queue.Queue = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(json.dumps({"data": models}))

        def do_POST(self):
            got.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._answer("".join(f"data: {line}\n\n" for line in lines))
            if hold:
                hold.wait(60)

        def _answer(self, body):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    engine = None
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        engine = OpenAIEngine(url, tiny.tokenizer(), concurrency=1, served_as=served_as)
        yield engine, got
    finally:
        if hold:
            hold.set()
        if engine:
            engine.close()
        server.shutdown()
        thread.join()
        server.server_close()


def said(words, reason=None):
    return json.dumps({"choices": [{"text": words, "finish_reason": reason}]})


@pytest.mark.parametrize(
    ("lines", "finish"),
    [
        ([said("yes"), said("", "stop"), "[DONE]"], "stop"),
        ([said("yes", "length"), "[DONE]"], "length"),
        ([said("yes"), "[DONE]"], "stop"),
        ([said("yes", "stop")], "stop"),
    ],
)
def test_an_end_that_is_told_is_an_end(lines, finish):
    with serving(lines) as (engine, _):
        pieces = ask(engine, GenerationRequest(STREAMED_PROMPT, 8))
    assert (text(pieces), pieces[-1].finish) == ("yes", finish)


@pytest.mark.parametrize("together", [True, False], ids=["one chunk", "a chunk of its own"])
def test_the_token_that_ends_an_answer_is_no_part_of_it(together):
    """vLLM lists the end token among the tokens with log-probabilities, with or without text before it."""
    tokenizer = tiny.tokenizer()
    numbers = tokenizer("yes", add_special_tokens=False)["input_ids"]

    def chunk(words, ids, reason=None):
        names = [f"token_id:{number}" for number in ids]
        logprobs = {"tokens": names, "token_logprobs": [-0.5] * len(ids), "top_logprobs": [{}] * len(ids)}
        return json.dumps({"choices": [{"text": words, "finish_reason": reason, "logprobs": logprobs}]})

    end = tokenizer.eos_token_id
    lines = [chunk("yes", [*numbers, end], "stop")] if together else [chunk("yes", numbers), chunk("", [end], "stop")]
    with serving([*lines, "[DONE]"]) as (engine, _):
        pieces = ask(engine, GenerationRequest(STREAMED_PROMPT, 8, logprobs=1))
    assert [token for piece in pieces for token in piece.tokens] == numbers
    assert len([each for piece in pieces for each in piece.likely]) == len(numbers)
    assert pieces[-1].finish == "stop"


def test_an_answer_that_breaks_off_is_no_answer():
    with serving([said("Take no"), said(" more than")]) as (engine, _):
        last = ask(engine, GenerationRequest(STREAMED_PROMPT, 8))[-1]
    assert last.finish is None
    assert isinstance(last.error, ModelError)
    assert "ended an answer without a finish reason" in str(last.error)


def test_a_job_that_is_cancelled_stops_at_the_server_or_never_gets_there():
    hold = threading.Event()
    with serving([said("yes")], hold) as (engine, got):
        first, second = queue.Queue(), queue.Queue()
        running, waiting = (
            engine.start(GenerationRequest(STREAMED_PROMPT, 8), first.put),
            engine.start(GenerationRequest(STREAMED_PROMPT, 8), second.put),
        )
        assert first.get(timeout=60).text == "yes"
        waiting.cancel()
        running.cancel()
        assert first.get(timeout=10).finish == "cancelled"
        assert [piece.finish for piece in collect(second)] == ["cancelled"]
        assert got.qsize() == 1


SEVERAL = [{"id": "base", "max_model_len": 512}, {"id": "tuned", "parent": "base"}]


def test_of_several_models_the_one_that_is_named_is_asked():
    with serving([said("yes", "stop")], models=SEVERAL, served_as="tuned") as (engine, got):
        assert (engine.name, engine.context_tokens) == ("server tuned", 512)
        ask(engine, GenerationRequest(STREAMED_PROMPT, 8))
        request = got.get(timeout=10)
    assert request["model"] == "tuned"
    assert (request["top_k"], request["min_p"], request["repetition_penalty"]) == (-1, 0, 1)


@pytest.mark.parametrize("named", [None, "another"])
def test_of_several_models_none_is_guessed(named):
    with pytest.raises(ModelError, match="base, tuned") as refused, serving([], models=SEVERAL, served_as=named):
        pass
    assert "MEDITUNE_ENGINE_MODEL" in str(refused.value)
