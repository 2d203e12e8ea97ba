"""What comes of streams that break off, and of jobs that nobody waits for any more: a server that we end at will."""

import json
import queue
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from meditune.engines.engine import Job
from meditune.engines.openai_engine import ServerEngine
from meditune.errors import ModelError
from tests import tiny
from tests.engines.asking import ask, collect, text

PROMPT = [20, 30, 40]


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
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    engine = None
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        engine = ServerEngine(url, tiny.tokenizer(), at_once=1, served_as=served_as)
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
        pieces = ask(engine, Job(PROMPT, 8))
    assert (text(pieces), pieces[-1].finish) == ("yes", finish)


def test_an_answer_that_breaks_off_is_no_answer():
    with serving([said("Take no"), said(" more than")]) as (engine, _):
        last = ask(engine, Job(PROMPT, 8))[-1]
    assert last.finish is None
    assert isinstance(last.error, ModelError)
    assert "broke an answer off" in str(last.error)


def test_a_job_that_is_cancelled_stops_at_the_server_or_never_gets_there():
    hold = threading.Event()
    with serving([said("yes")], hold) as (engine, got):
        first, second = queue.Queue(), queue.Queue()
        running, waiting = engine.start(Job(PROMPT, 8), first.put), engine.start(Job(PROMPT, 8), second.put)
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
        ask(engine, Job(PROMPT, 8))
        request = got.get(timeout=10)
    assert request["model"] == "tuned"
    assert (request["top_k"], request["min_p"], request["repetition_penalty"]) == (-1, 0, 1)


@pytest.mark.parametrize("named", [None, "another"])
def test_of_several_models_none_is_guessed(named):
    with pytest.raises(ModelError, match="base, tuned") as refused, serving([], models=SEVERAL, served_as=named):
        pass
    assert "MEDITUNE_ENGINE_MODEL" in str(refused.value)
