"""Stores of running servers: a clock that jumps, a store that is locked, full, away, or shared by several servers."""

import asyncio
import json
import os
import resource
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from meditune.errors import StoreError
from meditune.serve import service as running_service
from meditune.serve import store_access, streaming
from meditune.serve.settings import Settings
from meditune.serve.store_access import STABLE_CLOCK_S, Clock
from meditune.store import database, open_store
from meditune.store.answers import Answer, Answers, Feedback
from meditune.store.api_keys import Keys
from meditune.store.database import FILE, SQLiteDatabase
from meditune.store.overview import Notes
from tests.assistants import ScriptedEngine, assistant_of
from tests.commands import meditune
from tests.loopback_server import served, service

YEAR = 365 * 86_400.0


class Hands:
    """The two clocks of a machine."""

    def __init__(self, monkeypatch):
        self.wall, self.steady = time.time(), 1000.0
        monkeypatch.setattr(time, "time", lambda: self.wall)
        monkeypatch.setattr(store_access, "_time_since_boot", lambda: self.steady)

    def passes(self, seconds):
        self.wall += seconds
        self.steady += seconds


@pytest.fixture
def hands(monkeypatch):
    return Hands(monkeypatch)


def test_a_jump_is_waited_out_and_sleep_is_none(hands):
    made = Clock(hands.wall - 3600)
    assert made.trusted()
    hands.passes(3 * 86_400)
    assert made.trusted()
    hands.wall += YEAR
    assert not made.trusted()
    hands.passes(STABLE_CLOCK_S / 2)
    hands.wall -= YEAR
    assert not made.trusted()
    hands.passes(STABLE_CLOCK_S)
    assert made.trusted()


def test_a_store_that_was_away_is_waited_for_too(hands):
    assert Clock(0).trusted()
    made = Clock(hands.wall - YEAR)
    assert not made.trusted()
    hands.passes(STABLE_CLOCK_S)
    assert made.trusted()


def test_nothing_is_lost_where_the_clock_jumps_ahead(tmp_path, hands):
    answers = Answers(open_store(tmp_path))
    answers.keep(Answer("a1", "", "ask", "m"))
    made = service(tmp_path, Settings(keep_days=30))
    assert asyncio.run(made.prune()) == 0
    hands.wall += YEAR
    assert asyncio.run(made.prune()) == 0
    assert answers.get("a1")
    # A server that is started with the wrong clock does no harm either.
    assert asyncio.run(service(tmp_path, Settings(keep_days=30)).prune()) == 0
    assert answers.get("a1")
    hands.wall -= YEAR
    hands.passes(2 * STABLE_CLOCK_S)
    assert asyncio.run(made.prune()) == 0
    hands.passes(31 * 86_400)
    assert asyncio.run(made.prune()) == 1


def test_nothing_is_lost_where_the_clock_was_slow_for_a_while(tmp_path, hands):
    answers = Answers(open_store(tmp_path))
    answers.keep(Answer("before", "", "ask", "m"))
    running = service(tmp_path, Settings(keep_days=30))
    assert asyncio.run(running.prune()) == 0
    hands.passes(3600)
    hands.wall -= 10 * YEAR
    answers.keep(Answer("slow", "", "ask", "m"))
    hands.wall += 10 * YEAR
    hands.passes(3600)
    # Between two checks of the running server, the clock hasn't moved too far, and a new server has never seen it slow.
    for server in (running, service(tmp_path, Settings(keep_days=30))):
        assert asyncio.run(server.prune()) == 0
    assert answers.get("slow")
    hands.passes(31 * 86_400)
    assert asyncio.run(running.prune()) == 2


URGENT = {"question": "My dad's mouth droops and he can't speak since ten minutes"}


def locked(folder):
    holder = sqlite3.connect(folder / FILE, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    return holder


def test_a_lock_is_waited_for_then_named_and_urgent_help_comes_all_the_same(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(database, "BUSY_S", 1.5)
    assistant = assistant_of(ScriptedEngine("Rest helps most people."))
    with served(tmp_path, Settings(keep_text=True), assistant=assistant) as server, ThreadPoolExecutor() as pool:
        id = server.chat().json["id"]
        holder = locked(tmp_path)
        waiting = pool.submit(server.chat)
        time.sleep(0.3)
        holder.execute("ROLLBACK")
        # A lock that ends in time is nobody's business.
        assert waiting.result().status == 200
        holder.execute("BEGIN IMMEDIATE")
        refused = pool.submit(server.chat)
        said = pool.submit(server.ask, "/v1/feedback", {"id": id, "rating": "up"})
        urgent = server.ask("/v1/ask", URGENT)
        assert (urgent.status, urgent.json["outcome"]) == (200, "escalated")
        for each in (refused.result(), said.result()):
            assert (each.status, each.error()["code"]) == (503, "failed")
            assert str(tmp_path) not in each.text
        # The log says what is wrong, and where.
        reasons = [record.why for record in caplog.records if record.message == "A request failed"]
        assert len(reasons) == 2
        assert all(f"{tmp_path / FILE} can't be used (database is locked)" in why for why in reasons)
        assert server.figure("meditune_store_failures_total") == 2
        # Whoever looks after it can read what is there.
        assert server.ask("/v1/admin/status").json["answers"]["count"] == 2
        holder.execute("ROLLBACK")
        holder.close()
        assert server.chat().status == 200
        assert server.ask("/v1/feedback", {"id": id, "rating": "up"}).status == 200
    assert len(next(Answers(SQLiteDatabase(tmp_path)).exported())["feedback"]) == 1


def test_an_emergency_waits_for_nobody_who_waits_for_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_S", 6.0)
    assistant = assistant_of(ScriptedEngine("Rest helps most people."))
    key = Keys(SQLiteDatabase(tmp_path)).create("Ann")[1]
    settings = Settings(keys_needed=True, keep_text=True)
    with served(tmp_path, settings, assistant=assistant) as server, ThreadPoolExecutor(14) as pool:
        holder = locked(tmp_path)
        waiting = [pool.submit(server.chat, key=key) for _ in range(14)]
        time.sleep(1.5)
        begun = time.monotonic()
        urgent = server.ask("/v1/ask", URGENT, key=key)
        took = time.monotonic() - begun
        assert urgent.json["outcome"] == "escalated"
        assert took < 3.5, took
        assert not any(each.done() for each in waiting)
        holder.execute("ROLLBACK")
        assert [each.result().status for each in waiting] == [200] * 14


def test_an_answer_of_which_no_text_is_kept_is_given_although_the_store_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_S", 2.0)
    for module in (running_service, streaming):
        monkeypatch.setattr(module, "METRICS_S", 0.3)
    keys = Keys(SQLiteDatabase(tmp_path))
    key, bounded = keys.create("Ann")[1], keys.create("Bo", daily_tokens=10_000)[1]
    assistant = assistant_of(ScriptedEngine("Rest helps most people."))
    with served(tmp_path, Settings(keys_needed=True), assistant=assistant) as server, ThreadPoolExecutor() as pool:
        holder = locked(tmp_path)
        asked = {"question": "Does rest help with a cold?"}
        given = [
            pool.submit(server.chat, key=key),
            pool.submit(server.chat, key=key, stream=True),
            pool.submit(server.ask, "/v1/ask", asked, key=key),
            pool.submit(server.ask, "/v1/ask", asked | {"stream": True}, key=key),
        ]
        # A quota that can't be counted isn't kept.
        refused = pool.submit(server.chat, key=bounded)
        replies = [each.result() for each in given]
        assert [each.status for each in replies] == [200] * 4
        assert "[DONE]" in replies[1].text
        assert "event: error" not in replies[3].text
        assert refused.result().status == 503
        holder.execute("ROLLBACK")
        holder.close()
        id = server.chat(key=key).json["id"]
        assert server.ask("/v1/feedback", {"id": id, "rating": "up"}, key=key).status == 200


def fill_to_the_brim(folder):
    """In a process of its own: keep answers until no file may grow any more; how many were told to be there."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    answers = Answers(SQLiteDatabase(folder))
    for number in range(10_000):
        try:
            answers.keep(Answer(f"a{number}", "k", "ask", "m", question=f"What helps? {number} " * 200))
            answers.add_feedback(Feedback(f"a{number}", "k", "up"))
        except StoreError as error:
            if "disk" not in str(error):
                raise
            return number
    raise AssertionError("the disk never was full")


def test_a_full_disk_is_named_and_what_was_told_before_stays(tmp_path):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(write, str(fill_to_the_brim(tmp_path)).encode())
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    os.close(write)
    told = int(os.read(read, 20))
    os.close(read)
    # There is room again: the same store goes on.
    answers = Answers(SQLiteDatabase(tmp_path))
    found = {each["id"]: each["feedback"] for each in answers.exported()}
    assert told > 10
    assert all(len(found[f"a{number}"]) == 1 for number in range(told))
    answers.keep(Answer("later", "k", "ask", "m"))
    with answers.base.opened() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_a_database_that_is_away_is_a_503_until_it_is_back(postgres):
    pytest.importorskip("psycopg")
    url = postgres.new()
    assistant = assistant_of(ScriptedEngine("Rest helps most people."))
    with served(url, Settings(keep_text=True), assistant=assistant) as server:
        id = server.chat().json["id"]
        postgres.stop()
        try:
            reply = server.chat()
            assert reply.status == 503
            assert "127.0.0.1" not in reply.text
            assert server.ask("/v1/ask", URGENT).json["outcome"] == "escalated"
            assert server.ask("/healthz").status == 200
        finally:
            postgres.start()
        assert server.chat().status == 200
        assert server.ask("/v1/feedback", {"id": id, "rating": "up"}).status == 200
        assert server.ask("/v1/feedback", {"id": "ask-none", "rating": "up"}).status == 404


def test_the_clock_may_jump_between_answers(tmp_path, monkeypatch):
    with served(tmp_path) as server:
        for jump in (0.0, -9e8, 9e8, 0.0):
            monkeypatch.setattr(time, "time", lambda by=jump: 1.9e9 + by)
            id = server.chat().json["id"]
            assert server.ask("/v1/feedback", {"id": id, "rating": "up"}).status == 200
            assert server.ask("/v1/admin/status").status == 200
    assert [len(each["feedback"]) for each in Answers(SQLiteDatabase(tmp_path)).exported()] == [1] * 4


def test_a_heartbeat_that_is_being_written_when_the_server_stops_is_deleted(tmp_path, monkeypatch):
    begun, ended, put = threading.Event(), threading.Event(), Notes.put

    def slowly(*words):
        begun.set()
        time.sleep(0.5)
        put(*words)
        ended.set()

    monkeypatch.setattr(Notes, "put", slowly)
    with served(tmp_path) as server:
        assert begun.wait(5)
    assert ended.wait(5)
    assert Notes(server.service.answers.base).all("server") == []


def test_two_servers_share_keys_answers_feedback_and_quotas(postgres, tmp_path):
    url = postgres.new()
    made = meditune("keys", "create", "Ann", "--daily-tokens", "60", "--store", url)
    key = made.out.strip().splitlines()[-1]
    settings = Settings(keys_needed=True, keep_text=True)
    with served(url, settings) as first, served(url, settings) as second:
        id = first.chat("Call 555-867-5309: does it help?", key=key).json["id"]
        said = {"id": id, "rating": "down", "correction": "It doesn't."}
        assert second.ask("/v1/feedback", said, key=key).status == 200
        while (reply := first.chat(key=key)).status == 200:
            pass
        assert reply.error()["code"] == second.chat(key=key).error()["code"] == "insufficient_quota"
    meditune("answers", "export", "-o", tmp_path / "answers.jsonl", "--store", url).ok()
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    (kept,) = [row for row in rows if row["id"] == id]
    assert (kept["model"], kept["feedback"][0]["correction"]) == ("tiny v1", "It doesn't.")
    assert "867-5309" not in str(rows)
    (owner,) = Keys(open_store(url)).all()
    gone = meditune("answers", "delete", "--key", owner.id, "--store", url)
    assert f"{len(rows)} answers" in gone.out
    assert "0 answers" in meditune("answers", "prune", "--days", "0", "--store", url).out


def test_a_drift_check_reads_a_database(postgres, tmp_path):
    from meditune.store.answers import Answer, Answers

    url = postgres.new()
    answers = Answers(open_store(url))
    for number in range(220):
        answers.keep(Answer(f"a{number}", "", "ask", "m", facts={"confidence": 0.5 + number % 7 / 20}))
    meditune("drift", "fit", url, "-o", tmp_path / "reference").ok()
    found = meditune("drift", "check", url, "--reference", tmp_path / "reference").ok()
    assert "nothing to check yet" in found.out + found.err
