"""`/v1/ask` and `/v1/feedback`: events, what is kept of an answer, and taking it back."""

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from meditune.assistant.assistant import AssistantSettings, follow_index
from meditune.retrieve.hybrid_search import Rows
from meditune.retrieve.index import load
from meditune.serve.settings import Settings
from meditune.store.answers import Answers
from meditune.store.api_keys import Keys
from meditune.store.database import SQLiteDatabase
from tests.assistants import ModelAlone, ScriptedEngine, assistant_of, index_of
from tests.loopback_server import served, slowed
from tests.serve.test_admission import request
from tests.waiting import until

QUESTION = {"question": "Does colchicine help John Miller, born 03/04/1956?"}


def with_assistant(server):
    server.service.assistant = ModelAlone(server.service.engine)
    return server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("store"), Settings(keep_text=True), slowed(0.002)) as running:
        yield with_assistant(running)


def events(text):
    """(kind, content) of each event."""
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((lines["event"], json.loads(lines["data"])))
    return found


def test_an_answer_and_its_stream(server):
    reply = server.ask("/v1/ask", QUESTION | {"style": "expert", "k": 3, "sources": ["clinic"]})
    assert reply.status == 200
    assert reply.json["id"].startswith("ask-")
    assert reply.json["decision"]["answer"] == "yes"
    asked = server.service.assistant.asked[-1]
    assert (asked["style"], asked["k"], asked["sources"], asked["history"]) == ("expert", 3, ["clinic"], [])
    stream = server.ask("/v1/ask", QUESTION | {"stream": True, "history": [{"question": "a", "answer": "b"}]})
    assert stream.headers["content-type"].startswith("text/event-stream")
    told = events(stream.text)
    assert told[0][0] == "sources"
    assert "".join(said["text"] for kind, said in told if kind == "text") == reply.json["text"]
    assert told[-1][0] == "answer"
    assert told[-1][1] | {"id": 0} == reply.json | {"id": 0}
    assert server.service.assistant.asked[-1]["history"] == [("a", "b")]


def test_no_answer_is_longer_than_the_servers_limit(tmp_path):
    engine = ScriptedEngine("Walking helps most adults with back pain.")
    start, lengths = engine.start, []
    engine.start = lambda job, deliver: (lengths.append(job.max_new_tokens), start(job, deliver))[1]
    with served(tmp_path, Settings(max_new_tokens=5)) as server:
        server.service.assistant = assistant_of(engine)
        for wish in ({}, {"max_new_tokens": 3000}, {"max_new_tokens": 3}):
            assert server.ask("/v1/ask", {"question": "Does walking help with back pain?"} | wish).status == 200
        assert lengths == [5, 5, 3]


def test_timings_begin_with_the_request(tmp_path):
    assistant = assistant_of(ScriptedEngine("Walking helps."))
    judge = assistant.judge
    assistant.judge = lambda *words: time.sleep(0.3) or judge(*words)
    text = "Does walking help with back pain?"
    with served(tmp_path, assistant=assistant) as server:
        timings = server.ask("/v1/ask", {"question": text}).json["timings"]
        chat = server.service.answers.get(server.chat(text).json["id"]).facts["timings"]
    assert min(timings["first_token"], timings["total"], chat["first_token"], chat["total"]) > 0.3


def test_an_answer_is_kept_masked_before_it_is_told(server):
    id = server.ask("/v1/ask", QUESTION).json["id"]
    kept = server.service.answers.get(id)
    assert "colchicine" in kept.question
    assert "Miller" not in kept.question
    assert kept.model == "tiny v1"
    assert kept.facts["decision"]["answer"] == "yes"
    assert (kept.facts["supported"], kept.facts["sentences"], kept.facts["sources"]) == (1, 2, 1)


def test_feedback_belongs_to_an_answer(server):
    id = server.ask("/v1/ask", QUESTION).json["id"]
    said = {"id": id, "rating": "down", "reasons": ["wrong"], "correction": "Ask Dr. John Miller, 555-867-5309."}
    assert server.ask("/v1/feedback", said).json == {"id": id, "stored": True}
    assert server.ask("/v1/feedback", said | {"rating": "up"}).status == 200
    kept = next(each for each in server.service.answers.exported() if each["id"] == id)
    assert [(each["rating"], each["reasons"]) for each in kept["feedback"]] == [("up", ["wrong"])]
    assert "867-5309" not in kept["feedback"][0]["correction"]
    assert server.figure('meditune_feedback_total{rating="up"}') == 1
    assert server.ask("/v1/feedback", {"id": "ask-none", "rating": "up"}).error()["code"] == "not_found"
    assert server.ask("/v1/feedback", {"id": id, "rating": "great"}).error()["param"] == "rating"
    chat = server.chat().json["id"]
    assert server.ask("/v1/feedback", {"id": chat, "rating": "up"}).status == 200


def test_what_is_kept_can_be_deleted(server):
    id = server.ask("/v1/ask", QUESTION).json["id"]
    assert server.ask(f"/v1/answers/{id}", method="DELETE").json == {"id": id, "deleted": True}
    assert server.ask(f"/v1/answers/{id}", method="DELETE").status == 404
    assert server.ask("/v1/feedback", {"id": id, "rating": "up"}).status == 404


def test_only_who_asked_may_say_or_delete(tmp_path):
    keys = Keys(SQLiteDatabase(tmp_path))
    (_, ann), (_, bo), (_, admin) = keys.create("Ann"), keys.create("Bo"), keys.create("Cy", ["feedback", "admin"])
    with served(tmp_path, Settings(keys_needed=True)) as server:
        with_assistant(server)
        id = server.ask("/v1/ask", QUESTION, key=ann).json["id"]
        said = {"id": id, "rating": "up"}
        assert server.ask("/v1/feedback", said, key=bo).status == 404
        assert server.ask("/v1/feedback", said, key=ann).status == 200
        assert server.ask(f"/v1/answers/{id}", method="DELETE", key=bo).status == 404
        assert server.ask(f"/v1/answers/{id}", method="DELETE", key=admin).status == 200
    assert list(Answers(SQLiteDatabase(tmp_path)).exported()) == []


def test_without_leave_no_text_is_kept(tmp_path):
    with served(tmp_path) as server:
        with_assistant(server)
        server.ask("/v1/ask", QUESTION)
        server.chat("colchicine please")
    assert [(each["question"], each["answer"]) for each in Answers(SQLiteDatabase(tmp_path)).exported()] == [
        (None, None)
    ] * 2
    assert not any(b"colchicine" in file.read_bytes() for file in tmp_path.iterdir())


def test_what_is_old_is_deleted_when_the_server_starts(tmp_path):
    from meditune.store.answers import Answer

    Answers(SQLiteDatabase(tmp_path)).keep(Answer("old", "", "ask", "m", time=time.time() - 40 * 86_400))
    Answers(SQLiteDatabase(tmp_path)).keep(Answer("new", "", "ask", "m"))
    with served(tmp_path) as server:
        until(lambda: server.service.answers.get("old") is None, 5)
        assert server.service.answers.get("new") is not None


def test_the_assistant_is_told_when_the_client_leaves(server):
    before = len(server.service.assistant.asked)
    with server.raw() as line:
        line.sendall(request("/v1/ask", QUESTION | {"stream": True, "max_new_tokens": 900}))
        assert b"event: sources" in line.recv(4000) + line.recv(4000)
    assert server.idle(1)
    assert len(server.service.assistant.asked) == before + 1
    assert server.service.admission.active == 0


def test_an_assistant_that_fails_is_told_without_what_was_asked(server):
    reply = server.ask("/v1/ask", {"question": "nonsense"})
    assert reply.status == 500
    assert "nonsense" not in reply.text
    stream = server.ask("/v1/ask", {"question": "nonsense", "stream": True})
    assert stream.status == 500
    assert server.idle()


@pytest.mark.parametrize("route", ["ask", "search"])
def test_a_damaged_index_is_the_servers_fault_and_named_in_the_log_only(tmp_path, caplog, route):
    index = index_of(tmp_path)
    known = load(index.store, index.manifest, index.encoder.identity.space)
    # A small index is in memory; a large one is read at each question.
    index.opened = replace(index.opened, rows=Rows(index.opened.rows.table, known.titles, False))
    body = {"question" if route == "ask" else "query": "Does colchicine help with gout?"}
    with served(tmp_path / "store", assistant=assistant_of(ScriptedEngine("It does."), index)) as server:
        assert server.ask(f"/v1/{route}", body).status == 200
        shutil.rmtree(tmp_path / "index" / "tables")
        reply = server.ask(f"/v1/{route}", body | dict.fromkeys(body, "How is asthma treated?"))
        assert (reply.status, reply.error()["code"]) == (503, "failed")
        assert str(tmp_path) not in reply.text
        assert server.ask(f"/v1/{route}", body | {"sources": ["nowhere"]}).status == 400
    assert "DamagedIndexError" in [getattr(record, "exception", "") for record in caplog.records]


def zero(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("destroy", [shutil.rmtree, zero], ids=["removed", "zeroed"])
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_an_index_that_is_destroyed_is_cited_from_memory_or_refused_but_never_wrongly(tmp_path, caplog, destroy, large):
    index = index_of(tmp_path)
    if large:
        known = load(index.store, index.manifest, index.encoder.identity.space)
        index.opened = replace(index.opened, rows=Rows(index.opened.rows.table, known.titles, False))
    engine = ScriptedEngine("Inhaled steroids help most people.")
    assistant = assistant_of(engine, index, AssistantSettings(nearest=-1.0))
    question = {"question": "What helps people with asthma?"}
    stop = follow_index(index, lambda _: None, 0.05)
    try:
        with served(tmp_path / "store", assistant=assistant) as server:
            before = server.ask("/v1/ask", question).json
            destroy(tmp_path / "index")
            until(lambda: "the index's newest version can't be used" in caplog.messages)
            reply = server.ask("/v1/ask", question)
            assert server.ask("/healthz").status == server.ask("/readyz").status == 200
    finally:
        stop()
    assert before["sentences"][0]["citations"]
    if large and reply.status != 200:
        assert (reply.status, reply.error()["code"]) == (503, "failed")
        return
    assert [reply.json[name] for name in ("text", "sentences", "sources")] == [
        before[name] for name in ("text", "sentences", "sources")
    ]


def test_figures(server):
    answered = server.figure('meditune_answers_total{outcome="answered"}')
    unsupported = server.figure('meditune_sentences_total{supported="false"}')
    server.ask("/v1/ask", QUESTION)
    assert server.figure('meditune_answers_total{outcome="answered"}') == answered + 1
    assert server.figure('meditune_sentences_total{supported="false"}') == unsupported + 1
    assert server.figure("meditune_retrieval_score_count") >= 1
    assert server.figure('meditune_tokens_total{kind="completion"}') > 0
    assert server.figure("meditune_first_token_seconds_count") >= 0
    assert server.figure('meditune_requests_total{method="POST",route="/v1/ask",status="200"}') > 0
    assert server.figure('meditune_model_info{engine="transformers float32",index="",model="tiny",version="v1"}') == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"question": ""}, "question"),
        ({"question": " \n"}, "question"),
        ({"question": "x" * 4_001}, "question"),
        ({"question": "x", "history": [{"question": "y" * 20_000, "answer": "z" * 20_000}] * 3}, "history"),
        ({"question": "x", "style": "rude"}, "style"),
        ({"question": "x", "k": 0}, "k"),
        ({"question": "x", "temperature": 1}, "temperature"),
        ({"question": "x", "history": [{"question": "y"}]}, "history.0.answer"),
        ({}, "question"),
    ],
)
def test_bad_questions(server, body, param):
    reply = server.ask("/v1/ask", body)
    assert reply.status == 400
    assert reply.error()["param"] == param


def test_many_long_asks_leave_the_others_their_threads(tmp_path):
    go = threading.Event()

    class Slow(ModelAlone):
        def ask(self, *words, **named):
            go.wait(20)
            return super().ask(*words, **named)

    with served(tmp_path, Settings(concurrency=40)) as server, ThreadPoolExecutor(36) as pool:
        server.service.assistant = Slow(server.service.engine)
        asked = [pool.submit(server.ask, "/v1/ask", QUESTION) for _ in range(36)]
        until(lambda: server.service.admission.active == 36, 10)
        begun = time.monotonic()
        reply = server.chat(guided_choice=["yes", "no"])
        seconds = time.monotonic() - begun
        go.set()
        assert reply.status == 200
        assert seconds < 5
        assert {each.result().status for each in asked} == {200}


def test_an_experts_word_overrides_and_belongs_to_the_exact_versions(tmp_path):
    keys = Keys(SQLiteDatabase(tmp_path))
    ann, bo, expert = keys.create("Ann")[1], keys.create("Bo")[1], keys.create("Dr Cy", ["feedback", "expert"])[1]
    with served(tmp_path, Settings(keys_needed=True)) as server:
        server.service.switch_index("c0ffee")
        server.service.assistant = ModelAlone(server.service.engine)
        id = server.ask("/v1/ask", {"question": "Does it help?"}, key=ann).json["id"]
        server.service.assistant = None
        server.service.switch_index("another")
        said = {"id": id, "rating": "down", "decision": "no", "correction": "It doesn't help."}
        assert server.ask("/v1/feedback", said | {"decision": "perhaps"}, key=expert).error()["param"] == "decision"
        assert server.ask("/v1/feedback", said, key=expert).status == 200
        assert server.ask("/v1/feedback", {"id": id, "rating": "up"}, key=ann).status == 200
        assert server.ask("/v1/feedback", said, key=bo).status == 404
        assert server.ask(f"/v1/answers/{id}", method="DELETE", key=expert).status == 404
    (kept,) = Answers(SQLiteDatabase(tmp_path)).exported()
    assert (kept["model"], kept["index_content"]) == ("tiny v1", "c0ffee")
    told = {each["expert"]: (each["rating"], each["decision"]) for each in kept["feedback"]}
    assert told == {True: ("down", "no"), False: ("up", "")}


def test_nobody_is_an_expert_where_nobody_needs_a_key(server):
    id = server.chat().json["id"]
    assert server.ask("/v1/feedback", {"id": id, "rating": "down", "decision": "no"}).status == 200
    (said,) = next(row for row in server.service.answers.exported() if row["id"] == id)["feedback"]
    assert (said["decision"], said["expert"]) == ("no", False)


def test_feedback_has_a_rate_and_no_quota(tmp_path):
    key = Keys(SQLiteDatabase(tmp_path)).create("Ann", daily_tokens=1)[1]
    with served(tmp_path, Settings(keys_needed=True, feedback_per_minute=3)) as server:
        id = server.chat(key=key).json["id"]
        assert server.chat(key=key).error()["code"] == "insufficient_quota"
        told = [server.ask("/v1/feedback", {"id": id, "rating": "up"}, key=key) for _ in range(4)]
        assert [reply.status for reply in told] == [200, 200, 200, 429]
        assert int(told[-1].headers["retry-after"]) >= 1
        # Ids can't be tried one after the other either.
        assert server.ask("/v1/feedback", {"id": "ask-0", "rating": "up"}, key=key).status == 429
