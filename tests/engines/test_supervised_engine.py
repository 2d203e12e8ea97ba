"""A server whose engine dies: told by its probes, restarted with back-off, and ended where that can't be done."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from meditune.engines import openai_engine, scheduler, subprocess_engine, supervised_engine
from meditune.engines.engine import GenerationChunk, GenerationRequest
from meditune.engines.subprocess_engine import SubprocessEngine
from meditune.engines.supervised_engine import SupervisedEngine
from meditune.engines.transformers_engine import TransformersEngine
from meditune.errors import EngineUnavailableError
from meditune.export import verify
from meditune.export.export import export
from meditune.serve import startup
from meditune.serve.settings import Settings
from tests import tiny
from tests.http_servers import Answering, listening
from tests.loopback_server import Running, started
from tests.serve.test_store_access import URGENT
from tests.waiting import until

ENGINES = {"transformers": "", "openvino": "openvino_genai", "onnx": "onnxruntime"}
"""Engines, each with the package that it needs"""
LONG = {"max_tokens": 900, "temperature": 1.5, "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, with exports for the other engines."""
    place = tiny.save(tmp_path_factory.mktemp("restarts") / "tiny")
    with fast_export():
        for engine in ("openvino", "onnx"):
            if _there(engine):
                export(str(place), engine)
    return place


@contextmanager
def fast_export() -> Iterator[None]:
    """Exports are checked less for the block."""
    values = {"ANSWERS": 1, "COUNT": 4, "MAX_PERPLEXITY_RISE": 9.0, "AGREEMENT": 0.0, "WRITTEN_ITEMS": 1}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(verify, name, value)
        patch.setenv("MEDITUNE_DATA", "/nowhere")
        yield


@pytest.fixture(params=["transformers", "openvino", "onnx"])
def server(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[Running]:
    if not _there(request.param):
        pytest.skip(f"{ENGINES[request.param]} isn't installed")
    wanted = startup.ServerOptions(str(folder), engine=request.param, name="tiny")
    with started(startup.open_service(wanted, Settings(), tmp_path / "store")) as running:
        yield running


def _there(engine: str) -> bool:
    try:
        return not ENGINES[engine] or bool(__import__(ENGINES[engine]))
    except ImportError:
        return False


@contextmanager
def away(folder: Path) -> Iterator[None]:
    """A model's folder that can't be found for the block, so that no engine can open it."""
    hidden = folder.with_name("hidden")
    folder.rename(hidden)
    try:
        yield
    finally:
        hidden.rename(folder)


def kill(engine: Any) -> None:
    """End the process of an engine, or its thread."""
    if isinstance(engine, SubprocessEngine):
        os.kill(engine._process.pid, signal.SIGKILL)
        return
    end(engine._thread)
    with engine._wake:
        engine._wake.notify_all()


def end(thread: threading.Thread) -> None:
    """Raise SystemExit in a thread."""
    ident = ctypes.c_ulong(thread.ident)
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit)) == 1


def refused(reply: Any) -> bool:
    """Whether a client was told to come again."""
    return (reply.status, reply.error()["code"]) == (503, "engine_restarting") and int(reply.headers["Retry-After"]) > 0


def test_an_engine_that_dies_while_idle_is_told_and_restarted(server: Running, folder: Path) -> None:
    for path in ("/healthz", "/readyz"):
        assert server.ask(path).status == 200
    assert server.figure("meditune_engine_up") == 1
    with away(folder):
        kill(server.service.engine._engine)
        until(lambda: server.ask("/readyz").status == 503)
        assert refused(server.ask("/readyz"))
        assert server.ask("/healthz").status == 200, "the server restarts its engine itself"
        assert refused(server.chat())
        assert refused(server.chat(stream=True))
        for stream in (False, True):
            assert refused(server.ask("/v1/ask", {"question": "Does rest help with a cold?", "stream": stream}))
        urgent = server.ask("/v1/ask", URGENT)
        assert (urgent.status, urgent.json["outcome"]) == (200, "escalated")
        assert server.chat(URGENT["question"]).status == 200
        declined = server.ask("/v1/ask", {"question": "Who won the world cup?"})
        assert (declined.status, declined.json["outcome"]) == (200, "declined")
        assert server.figure("meditune_engine_up") == 0
    until(lambda: server.ask("/readyz").status == 200)
    assert server.chat().status == 200
    assert server.ask("/v1/ask", {"question": "Does rest help with a cold?", "max_new_tokens": 4}).status == 200
    assert server.figure("meditune_engine_restarts_total") == 1
    assert server.figure("meditune_engine_up") == 1


def test_an_engine_that_dies_during_answers_ends_them_and_is_restarted(server: Running) -> None:
    with ThreadPoolExecutor() as pool:
        whole = pool.submit(server.chat, **LONG)
        streamed = pool.submit(server.chat, stream=True, **LONG)
        until(lambda: server.service.engine.load().running == 2)
        time.sleep(0.1)
        kill(server.service.engine._engine)
        assert refused(whole.result())
        told = streamed.result().text
    assert "engine_restarting" in told
    assert 'finish_reason": "stop' not in told
    until(lambda: server.ask("/readyz").status == 200)
    assert server.chat().status == 200
    assert server.idle()


def test_the_weights_of_a_dead_engine_are_freed(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    # The tests' log keeps errors with all that they point to.
    monkeypatch.setattr(scheduler.log, "disabled", True)
    wanted = startup.ServerOptions(str(folder), engine="transformers", name="tiny")
    with started(startup.open_service(wanted, Settings(), tmp_path)) as server:
        model = weakref.ref(server.service.engine._engine.loaded.model)
        kill(server.service.engine._engine)
        until(lambda: server.figure("meditune_engine_restarts_total") == 1)
        until(lambda: gc.collect() >= 0 and model() is None, 5)


def test_a_model_at_a_server_is_waited_for_however_long_that_is_away(
    folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(openai_engine, "PROBE_S", 0.1)
    monkeypatch.setattr(openai_engine, "PROBE_AGAIN_S", 0.05)
    monkeypatch.setattr(supervised_engine, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(supervised_engine, "MAX_PAUSE_S", 0.1)
    with serving_elsewhere() as port:
        wanted = startup.ServerOptions(str(folder), "", "vllm", "tiny", url=f"http://127.0.0.1:{port}/v1")
        service = startup.open_service(wanted, Settings(restarts=1), tmp_path)
    with started(service) as server:
        until(lambda: server.ask("/readyz").status == 503)
        time.sleep(1)
        with serving_elsewhere(port, {"status": "loading"}):
            time.sleep(0.5)
        assert refused(server.chat())
        assert server.ask("/healthz").status == 200, "to restart this server wouldn't bring the other one back"
        with serving_elsewhere(port):
            until(lambda: server.ask("/readyz").status == 200)
            assert server.chat().json["choices"][0]["message"]["content"].startswith("Rest helps.")
        # Nobody has noticed yet: the job itself finds out.
        monkeypatch.setattr(openai_engine, "PROBE_S", 60.0)
        until(lambda: server.ask("/readyz").status == 503 or refused(server.chat()))


@contextmanager
def serving_elsewhere(port: int = 0, listed: Any = None) -> Iterator[int]:
    """The port of a server with OpenAI's API that always says the same."""

    class Handler(Answering):
        def do_GET(self) -> None:
            self.answer(json.dumps(listed or {"data": [{"id": "m", "max_model_len": 4096}]}))

        def do_POST(self) -> None:
            self.body()
            said = {"choices": [{"text": "Rest helps.", "finish_reason": "stop"}]}
            self.answer(f"data: {json.dumps(said)}\n\ndata: [DONE]\n\n")

    with listening(Handler, port) as url:
        yield int(url.rpartition(":")[2])


def test_a_process_that_hangs_is_ended_and_another_one_opened(folder: Path, monkeypatch: Any) -> None:
    pytest.importorskip("openvino_genai")
    monkeypatch.setattr(subprocess_engine, "END_S", 0.3)
    engine = SupervisedEngine(lambda: SubprocessEngine(folder / "export" / "openvino"), stalled_s=1.0)
    engine.opened()
    first = engine._engine._process.pid
    os.kill(first, signal.SIGSTOP)
    assert isinstance(last_piece(engine).error, EngineUnavailableError)
    until(lambda: engine.failure() is None)
    assert last_piece(engine).finish in {"stop", "length"}
    assert engine._engine._process.pid != first
    engine.close()


def test_a_thread_that_hangs_can_only_be_ended_with_the_process(monkeypatch: Any) -> None:
    monkeypatch.setattr(supervised_engine, "CLOSE_S", 0.3)
    loaded, goes_on = tiny.loaded(), threading.Event()
    forward = loaded.model.forward

    def hangs(*words: Any, **named: Any) -> Any:
        goes_on.wait(60)
        return forward(*words, **named)

    loaded.model.forward = hangs
    engine = SupervisedEngine(lambda: TransformersEngine(loaded), stalled_s=0.5)
    engine.opened()
    assert isinstance(last_piece(engine).error, EngineUnavailableError)
    until(lambda: (failure := engine.failure()) is not None and failure.given_up)
    goes_on.set()


def last_piece(engine: SupervisedEngine) -> GenerationChunk:
    """The last one of a short job's."""
    ended, pieces = threading.Event(), []

    def deliver(piece: GenerationChunk) -> None:
        pieces.append(piece)
        if piece.finish is not None or piece.error is not None:
            ended.set()

    engine.start(GenerationRequest([20, 30, 40], 3), deliver)
    assert ended.wait(30)
    return pieces[-1]


def test_an_engine_that_dies_again_and_again_waits_longer_each_time(monkeypatch: Any) -> None:
    monkeypatch.setattr(supervised_engine, "FIRST_PAUSE_S", 0.1)
    opened: list[float] = []

    def dies() -> TransformersEngine:
        opened.append(time.monotonic())
        engine = TransformersEngine(loaded)
        engine.close()
        return engine

    loaded = tiny.loaded()
    engine = SupervisedEngine(dies, restarts=4)
    engine.opened()
    until(lambda: (failure := engine.failure()) is not None and failure.given_up)
    assert "4 attempts" in str(engine.failure())
    pauses = [later - before for before, later in pairwise(opened)]
    assert len(opened) == 5
    for pause, least in zip(pauses[1:], (0.1, 0.2, 0.4), strict=True):
        assert pause >= least


def test_a_server_whose_engine_cant_be_restarted_ends_with_an_error(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai")
    command = [sys.executable, "-m", "meditune", "serve", str(folder), "--engine", "openvino", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--store", str(tmp_path / "store"), "--max-restarts", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert re.search(r"http://\S+/", process.stdout.readline())
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (engine,) = [child for child in children if b"subprocess_engine" in Path(f"/proc/{child}/cmdline").read_bytes()]
        os.kill(int(engine), signal.SIGKILL)
        out, log = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 4
    assert "every answer" not in out
    assert "Error: The engine stopped" in log
    assert "Traceback" not in log
