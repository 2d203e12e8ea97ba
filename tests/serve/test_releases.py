"""A served registry: going over to another version under load, canaries, shadows, damage, and taking back."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from meditune.errors import EngineError
from meditune.model_registry import Registry
from meditune.serve import startup
from meditune.serve.settings import Settings
from tests.commands import Bench, bench
from tests.registry.runs import PASSED, finished, passed, with_versions
from tests.serve.server import Running, started

QUICK = Settings(follow_s=0.05, at_once=8, keep_text=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with bench(tmp_path_factory.mktemp("releases")) as made:
        yield made


@pytest.fixture(scope="module")
def run(place: Bench) -> Path:
    return finished(place)


@contextmanager
def serving(registry: Registry, store: Path, settings: Settings = QUICK) -> Iterator[Running]:
    wanted = startup.Wanted(str(registry.folder), engine="transformers", name="tiny")
    with started(startup.open_service(wanted, settings, store)) as running:
        yield running


def kept(store: Path) -> list[dict[str, Any]]:
    """The answers in a store, in their order."""
    base = sqlite3.connect(store / "meditune.sqlite")
    base.row_factory = sqlite3.Row
    rows = [dict(row) for row in base.execute("SELECT * FROM answers ORDER BY rowid")]
    base.close()
    return rows


def versions(store: Path) -> Counter[str]:
    """How many answers each version gave."""
    return Counter(row["model"].split()[1].partition("-")[0] for row in kept(store))


def until(holds: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def current(server: Running) -> str:
    return server.service.served.version.partition("-")[0]


def test_a_switch_drops_no_request(run: Path, tmp_path: Path) -> None:
    registry = with_versions(tmp_path / "registry", run, PASSED, passed("v0002"))
    with serving(registry, tmp_path / "store") as server:
        first = server.service.engine
        replies: list[Any] = []
        over = threading.Event()

        def asks(number: int) -> None:
            while not over.is_set():
                if number % 2:
                    replies.append(server.chat(f"Does drug {number} help?", max_tokens=8))
                else:
                    text = {"question": f"Does drug {number} help?", "stream": True, "max_new_tokens": 8}
                    replies.append(server.ask("/v1/ask", text))

        threads = [threading.Thread(target=asks, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: len(replies) > 8)
        for id in ("v0002", "v0003"):
            registry.promote(id)
            until(lambda id=id: current(server) == id)
            seen = len(replies)
            until(lambda seen=seen: len(replies) > seen + 8)
        assert registry.rollback("too slow") == "v0002"
        until(lambda: current(server) == "v0002")
        seen = len(replies)
        until(lambda: len(replies) > seen + 8)
        over.set()
        for thread in threads:
            thread.join(30)
        assert {reply.status for reply in replies} == {200}
        assert not [reply for reply in replies if "event: error" in reply.text]
        # The first one is freed when its last request has ended.
        with pytest.raises(EngineError):
            until(lambda: first.score([1], [[2]]) is None, seconds=10)
        served, engine = server.service.served.version, server.service.engine.name
        labels = f'engine="{engine}",index="",model="tiny",version="{served}"'
        assert server.figure(f"meditune_model_info{{{labels}}}") == 1
    assert set(versions(tmp_path / "store")) == {"v0001", "v0002", "v0003"}
    assert len(kept(tmp_path / "store")) == len(replies)
    said = registry.get("v0002")
    assert {row["model"] for row in kept(tmp_path / "store")} >= {f"tiny v0002-{said.weights}"}


def test_a_canary_gets_its_share_and_keeps_its_conversations(run: Path, tmp_path: Path) -> None:
    registry = with_versions(tmp_path / "registry", run, PASSED)
    registry.try_out("v0002", "canary", 30)
    store = tmp_path / "store"
    with serving(registry, store) as server:
        for number in range(60):
            assert server.chat(f"Does drug {number} help?", max_tokens=1).status == 200
        by_first = {row["question"]: row["model"] for row in kept(store)}
        shares = versions(store)
        assert 8 <= shares["v0002"] <= 30, shares
        # The same conversation goes on with the version that it began with.
        for number in range(20):
            first, then = f"Does drug {number} help?", f"And for how long, drug {number}?"
            messages = [
                {"role": "user", "content": first},
                {"role": "assistant", "content": "Yes."},
                {"role": "user", "content": then},
            ]
            body = {"model": "tiny", "messages": messages, "max_tokens": 1}
            assert server.ask("/v1/chat/completions", body).status == 200
            assert kept(store)[-1]["question"] == then
            assert kept(store)[-1]["model"] == by_first[first]
        registry.end_trial("enough")
        until(lambda: not server.service.releases._trial)
        before = versions(store)["v0002"]
        for number in range(30):
            server.chat(f"Does drug {number} help?", max_tokens=1)
        assert versions(store)["v0002"] == before


def test_a_shadow_answers_beside_and_is_shown_to_nobody(run: Path, tmp_path: Path) -> None:
    registry = with_versions(tmp_path / "registry", run, None)
    registry.try_out("v0002", "shadow", 100)
    store = tmp_path / "store"
    with serving(registry, store) as server:
        chat = server.chat("Does the drug help?").json
        asked = server.ask("/v1/ask", {"question": "Does the drug help?", "max_new_tokens": 4}).json
        until(lambda: len(kept(store)) == 4)
        assert chat["system_fingerprint"].startswith("fp_v0001")
        assert asked["versions"]["model"].startswith("v0001")
        feedback = {"id": f"{asked['id']}-shadow", "rating": "up"}
        assert server.ask("/v1/feedback", feedback).status in (200, 404)
    rows = {row["id"]: row for row in kept(store)}
    for id in (chat["id"], asked["id"]):
        shadow = rows[f"{id}-shadow"]
        assert (shadow["route"], shadow["model"].split()[1][:5]) == ("shadow", "v0002")
        assert json.loads(shadow["facts"])["beside"] == id
        assert rows[id]["model"].split()[1].startswith("v0001")


def test_a_damaged_version_is_named_and_the_last_good_one_served(run: Path, tmp_path: Path, capsys, caplog) -> None:
    registry = with_versions(tmp_path / "registry", run, PASSED, passed("v0002"))
    registry.promote("v0002")
    weights = registry.place("v0002") / "model" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    with serving(registry, tmp_path / "store") as server:
        assert current(server) == "v0001"
        assert "v0002 in" in caplog.text
        assert "adapter_model.safetensors has" in caplog.text
        registry.promote("v0003")
        until(lambda: current(server) == "v0003")
        weights.write_bytes(whole)
        assert registry.rollback("by hand") == "v0002"
        until(lambda: current(server) == "v0002")
        (registry.folder / "registry.json").write_text("{")
        until(lambda: "can't be followed" in caplog.text)
        assert server.chat().status == 200


def test_a_canary_that_fails_is_taken_back(run: Path, tmp_path: Path) -> None:
    registry = with_versions(tmp_path / "registry", run, PASSED)
    registry.try_out("v0002", "canary", 50)
    with serving(registry, tmp_path / "store") as server:
        live = server.service.releases._trial[0]
        broken(live.service.engine)
        replies = [server.chat(f"Does drug {number} help?", max_tokens=1) for number in range(40)]
        until(lambda: registry.state().trial is None)
        until(lambda: server.service.releases._trial is None)
        failed = sum(reply.status == 503 for reply in replies)
        assert 3 <= failed < 12, failed
        assert all(server.chat(f"Does drug {number} help?", max_tokens=1).status == 200 for number in range(20))
    state = registry.state()
    assert state.current == "v0001"
    assert state.withdrawn == ("v0002",)
    assert "of its requests failed" in state.history[-1].why


def test_a_promoted_version_that_fails_is_rolled_back(run: Path, tmp_path: Path) -> None:
    registry = with_versions(tmp_path / "registry", run, PASSED)
    with serving(registry, tmp_path / "store") as server:
        for number in range(20):
            assert server.chat(f"Does drug {number} help?", max_tokens=1).status == 200
        registry.promote("v0002")
        until(lambda: current(server) == "v0002")
        broken(server.service.engine)
        statuses = []
        while current(server) == "v0002":
            statuses.append(server.chat("Does it help?", max_tokens=1).status)
            assert len(statuses) < 100
        assert server.chat("Does it help?", max_tokens=1).status == 200
    state = registry.state()
    assert (state.current, state.withdrawn) == ("v0001", ("v0002",))
    assert statuses.count(503) >= 3


def test_where_the_registry_cant_be_changed_the_server_does_without_the_version(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = with_versions(tmp_path / "registry", run, PASSED)
    registry.try_out("v0002", "canary", 100)
    monkeypatch.setattr("meditune.model_registry.LOCK_S", 0.1)
    with serving(registry, tmp_path / "store") as server, FileLock(registry.folder / ".lock"):
        broken(server.service.releases._trial[0].service.engine)
        statuses = [server.chat(max_tokens=1).status for _ in range(8)]
        until(lambda: server.service.releases._trial is None)
        assert server.chat(max_tokens=1).status == 200
        until(lambda: "v0002 isn't served here any more" in caplog.text)
    assert statuses.count(503) >= 3
    assert registry.state().trial


def broken(engine: Any) -> None:
    """Let an engine refuse every job from now on, as one does that has broken down."""

    def start(*_: Any) -> None:
        raise EngineError("It broke down.")

    engine.start = start
