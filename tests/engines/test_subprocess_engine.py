"""An OpenVINO engine in a process of its own: it answers the same, holds nothing up, and its end is noticed."""

import os
import queue
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from meditune.engines import openvino_engine
from meditune.engines.engine import GenerationRequest
from meditune.engines.open_engine import open_engine
from meditune.engines.subprocess_engine import SubprocessEngine
from meditune.errors import EngineError, ModelError
from meditune.export.export import export
from meditune.models.sentence_encoder import INT8, load_encoder
from meditune.retrieve import collections
from meditune.retrieve.build_index import build
from meditune.retrieve.storage import index_storage
from tests import corpus, tiny
from tests.engines.test_engines import ask, collect, text, together, tokens
from tests.engines.test_supervised_engine import fast_export
from tests.serve.test_http_server import asked, started

pytest.importorskip("openvino_genai")
PROMPT = [20, 30, 40, 50, 60, 70]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tiny.save(tmp_path_factory.mktemp("apart"))
    with fast_export():
        export(str(place), "openvino")
    return place


@pytest.fixture
def engine(folder, request):
    opened = open_engine(str(folder), "openvino", in_subprocess=True, scores=getattr(request, "param", True))
    assert isinstance(opened, SubprocessEngine)
    yield opened
    opened.close()


with_and_without_scores = pytest.mark.parametrize("engine", [False, True], ids=["", "scores"], indirect=True)


@with_and_without_scores
def test_it_says_what_the_engine_says_in_this_process(folder, engine):
    jobs = [GenerationRequest(PROMPT[:length], 12, logprobs=1) for length in range(1, 6)]
    here = open_engine(str(folder), "openvino")
    expected = [(tokens(pieces), text(pieces)) for pieces in together(here, jobs)]
    scored = here.score(PROMPT, [[5, 6], [7]])
    said = (here.name, here.context_tokens)
    here.close()
    assert [(tokens(pieces), text(pieces)) for pieces in together(engine, jobs)] == expected
    assert [[one.token for one in each] for each in engine.score(PROMPT, [[5, 6], [7]])] == [[5, 6], [7]]
    for one, other in zip(engine.score(PROMPT, [[5, 6]])[0], scored[0], strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    assert (engine.name, engine.context_tokens) == said


@with_and_without_scores
def test_what_cannot_be_done_is_refused_at_once_and_who_cancels_gets_a_last_piece(engine):
    with pytest.raises(ModelError, match="more than the"):
        engine.start(GenerationRequest([5] * 1000, 40), print)
    with pytest.raises(ModelError, match="at least one prompt token"):
        engine.score([], [[5]])
    pieces: queue.Queue = queue.Queue()
    running = engine.start(GenerationRequest(PROMPT, 900), pieces.put)
    running.cancel()
    assert collect(pieces)[-1].finish in {"cancelled", "stop", "length"}
    assert engine.load().running == 0


def test_this_process_goes_on_while_prompts_are_read(engine):
    engine.opened()
    longest, ended = 0.0, threading.Event()

    def tick():
        nonlocal longest
        last = time.perf_counter()
        while not ended.is_set():
            time.sleep(0.001)
            longest, last = max(longest, time.perf_counter() - last), time.perf_counter()

    ticking = threading.Thread(target=tick)
    ticking.start()
    begun = time.perf_counter()
    together(engine, [GenerationRequest([number, *PROMPT * 150], 2) for number in range(2, 10)])
    whole = time.perf_counter() - begun
    ended.set()
    ticking.join()
    assert longest < max(0.3, whole / 2)


def test_prompts_of_more_lengths_need_no_more_memory(folder, monkeypatch):
    # The export ran in this process, and torch's models limit the cache here, too.
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    engine = open_engine(str(folder), "openvino", in_subprocess=True, scores=True)

    def memory_after(lengths):
        for length in lengths:
            prompt = [5 + length] * length
            ask(engine, GenerationRequest(prompt, 1))
            engine.score(prompt, [[7]])
        return psutil.Process(engine._process.pid).memory_info().rss / 1e6

    try:
        warm = memory_after(range(1, 21))
        assert memory_after(range(21, 91)) < warm + 20
    finally:
        engine.close()


def test_all_are_answered_while_the_grammars_of_many_schemas_are_freed(folder, monkeypatch):
    monkeypatch.setattr(openvino_engine, "MAX_SCHEMAS", 3)
    schemas = [{"type": "object", "properties": {f"k{number}": {"type": "integer"}}} for number in range(10)]
    jobs = [GenerationRequest(PROMPT, 6, json_schema=schema) for schema in schemas]
    engine = open_engine(str(folder), "openvino", concurrency=2)
    opened = [engine._pipeline]
    original = engine._open
    engine._open = lambda: opened.append(original()) or opened[-1]
    try:
        plain = text(ask(engine, GenerationRequest(PROMPT, 6)))
        found = together(engine, [*jobs, GenerationRequest(PROMPT, 6)])
        assert [pieces[-1].error for pieces in found] == [None] * 11
        assert all(text(pieces).lstrip().startswith("{") for pieces in found[:-1])
        assert text(found[-1]) == plain
        assert 3 <= len(opened) <= 4
    finally:
        engine.close()


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "odd"},
        {"$ref": "#/nowhere"},
        {"type": "string", "pattern": "("},
        {"type": "array", "uniqueItems": True, "items": {"type": "string", "pattern": "(?=a)b"}},
    ],
    ids=["type", "reference", "pattern", "look-ahead"],
)
def test_a_schema_that_cannot_be_enforced_ends_only_its_own_answer(engine, schema):
    running = [queue.Queue() for _ in range(3)]
    for number, pieces in enumerate(running, 20):
        engine.start(GenerationRequest([*PROMPT, number], 800), pieces.put)
    assert not any(pieces.get(timeout=60).is_last for pieces in running)
    (refused,) = ask(engine, GenerationRequest(PROMPT, 20, json_schema=schema))
    assert isinstance(refused.error, ModelError)
    # The server is to blame for an EngineError.
    assert not isinstance(refused.error, EngineError)
    assert str(refused.error).startswith("This JSON schema can't be enforced: ")
    assert "xgrammar" not in str(refused.error)
    assert [collect(pieces)[-1].error for pieces in running] == [None] * 3
    assert text(ask(engine, GenerationRequest(PROMPT, 20, json_schema={"enum": ["yes"]}))) == '"yes"'


def test_an_end_of_the_process_is_told_to_all_and_to_who_comes(engine):
    engine.opened()
    assert engine.failure() is None
    pieces: queue.Queue = queue.Queue()
    engine.start(GenerationRequest(PROMPT, 1000), pieces.put)
    pieces.get(timeout=60)
    os.kill(engine._process.pid, signal.SIGKILL)
    assert isinstance(collect(pieces)[-1].error, EngineError)
    assert isinstance(engine.failure(), EngineError)
    with pytest.raises(EngineError, match="ended unexpectedly"):
        engine.start(GenerationRequest(PROMPT, 3), print)


def test_one_who_can_not_be_told_of_the_end_keeps_it_from_nobody(engine):
    engine.opened()
    pieces: queue.Queue = queue.Queue()

    def breaks(_):
        raise RuntimeError("its loop is closed")

    engine.start(GenerationRequest(PROMPT, 1000), breaks)
    engine.start(GenerationRequest(PROMPT, 1000), pieces.put)
    pieces.get(timeout=60)
    os.kill(engine._process.pid, signal.SIGKILL)
    assert isinstance(collect(pieces)[-1].error, EngineError)


def test_a_late_word_goes_into_no_file_that_took_the_pipe_s_place(engine, tmp_path):
    engine.opened()
    number = engine._process.stdin.fileno()
    late = engine.start(GenerationRequest(PROMPT, 3), lambda _: None)
    engine.close()
    with (tmp_path / "store").open("wb") as other:
        os.dup2(other.fileno(), number)
        late.cancel()
        os.close(number)
    assert (tmp_path / "store").read_bytes() == b""


def test_ctrl_c_and_an_order_to_end_are_the_server_s_to_obey(engine):
    engine.opened()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(engine._process.pid, number)
    assert ask(engine, GenerationRequest(PROMPT, 3))[-1].finish in {"stop", "length"}
    engine.close()
    assert engine._process.returncode == 0
    with pytest.raises(EngineError, match="closed"):
        engine.start(GenerationRequest(PROMPT, 3), print)


def test_a_folder_that_cannot_be_opened_is_said_when_it_is_waited_for(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder / "export" / "openvino", broken)
    (broken / "openvino_model.xml").write_text("<nothing/>")
    opened = SubprocessEngine(broken)
    with pytest.raises(ModelError, match="OpenVINO can't open"):
        opened.opened()
    opened.close()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
def test_a_server_of_an_export_loads_neither_torch_nor_pandas_in_either_process(folder, tmp_path):
    documents = collections.documents(str(corpus.folder(tmp_path / "documents")))
    build(index_storage(tmp_path / "index"), [documents], load_encoder(INT8))
    with started(folder, tmp_path / "store", "--index", tmp_path / "index") as (process, address):
        answer = asked(address, "v1/ask", {"question": "How do I remove head lice?", "max_new_tokens": 4})
        assert answer["sources"]
        (engine,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        maps = [Path(f"/proc/{each}/maps").read_text(encoding="utf-8") for each in (process.pid, engine)]
    for text_of_maps, used in zip(maps, ("lancedb", "openvino_genai"), strict=True):
        loaded = set(re.findall(r"/site-packages/(\w+)/", text_of_maps))
        assert used in loaded
        assert not loaded & {"torch", "pandas"}
