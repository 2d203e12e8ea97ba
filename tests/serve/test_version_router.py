"""A served registry: switches under load, canaries, damage, rollback, and versions that can't be loaded."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from meditune.errors import EngineError, ModelError, StoreError
from meditune.model_registry import Registry, Version
from meditune.serve import startup
from meditune.serve.chat_prompts import ChatPrompts
from meditune.serve.service import Served
from meditune.serve.settings import Settings
from meditune.serve.version_router import MAX_JUDGED_ANSWERS, RegistryService, VersionParts, VersionRouter
from meditune.store import StoreLocation, open_store
from tests import loopback_server
from tests.assistants import ModelAlone
from tests.commands import Bench
from tests.loopback_server import Running, started
from tests.test_model_registry import PASSED, bare, finished, passed, with_versions
from tests.waiting import until

QUICK = Settings(follow_s=0.05, concurrency=8, keep_text=True)


@pytest.fixture(scope="module")
def run(place: Bench) -> Path:
    return finished(place)


@contextmanager
def serving(registry: Registry, store: StoreLocation, settings: Settings = QUICK) -> Iterator[Running]:
    wanted = startup.ServerOptions(str(registry.folder), engine="transformers", name="tiny")
    with started(startup.open_service(wanted, settings, store)) as running:
        yield running


def kept(store: StoreLocation) -> list[dict[str, Any]]:
    """The answers in a store, in their order."""
    rows = open_store(store).rows("SELECT question, model FROM answers ORDER BY place")
    return [{"question": row["question"], "model": row["model"]} for row in rows]


def versions(store: StoreLocation) -> Counter[str]:
    """How many answers each version gave."""
    return Counter(row["model"].split()[1].partition("-")[0] for row in kept(store))


def current(server: Running) -> str:
    return server.service.served.version.partition("-")[0]


def test_a_switch_drops_no_request(run: Path, tmp_path: Path, store: str) -> None:
    registry = with_versions(tmp_path / "registry", run, PASSED, passed("v0002"))
    with serving(registry, store) as server:
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
    assert set(versions(store)) == {"v0001", "v0002", "v0003"}
    assert len(kept(store)) == len(replies)
    said = registry.get("v0002")
    assert {row["model"] for row in kept(store)} >= {f"tiny v0002-{said.weights}"}


def test_a_canary_gets_its_share_and_keeps_its_conversations(run: Path, tmp_path: Path, store: str) -> None:
    registry = with_versions(tmp_path / "registry", run, PASSED)
    registry.start_canary("v0002", 30)
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
    registry.start_canary("v0002", 50)
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
    registry.start_canary("v0002", 100)
    monkeypatch.setattr("meditune.model_registry.LOCK_S", 0.1)
    with serving(registry, tmp_path / "store") as server, FileLock(registry.folder / ".lock"):
        broken(server.service.releases._trial[0].service.engine)
        statuses = [server.chat(max_tokens=1).status for _ in range(8)]
        until(lambda: server.service.releases._trial is None)
        assert server.chat(max_tokens=1).status == 200
        until(lambda: "This server no longer serves v0002" in caplog.text)
    assert statuses.count(503) >= 3
    assert registry.state().trial


def broken(engine: Any) -> None:
    """Let an engine refuse every job from now on, as one does that has broken down."""

    def start(*_: Any) -> None:
        raise EngineError("It broke down.")

    engine.start = start


INDEX = "content-1"


class Assistant(ModelAlone):
    def __init__(self, engine: Any, index: str) -> None:
        super().__init__(engine)
        self.versions = {"index": index}


@contextmanager
def serving_versions(
    registry: Registry,
    store: Path,
    settings: Settings | None = None,
    load: Callable[[Version, VersionParts], VersionParts] = lambda _, parts: parts,
    make: Callable[[Any], ModelAlone] = lambda engine: Assistant(engine, INDEX),
) -> Iterator[Running]:
    """A server of versions that all have the same tiny model; `load` may change what is loaded."""
    settings = settings or Settings(follow_s=0.05, concurrency=4)
    told: list[str] = []

    def parts(found: Version) -> VersionParts:
        made = loopback_server.service(store, settings)
        served = Served(loopback_server.MODEL, f"{found.id}-{found.weights}", 1, INDEX)
        opened = VersionParts(served, made.engine, ChatPrompts(made.engine.tokenizer, None, 256), make(made.engine))
        return load(found, opened)

    def service(parts: VersionParts) -> Any:
        made = loopback_server.service(store, settings)
        return RegistryService(**vars(parts), settings=settings, access=made.access, answers=made.answers)

    releases = VersionRouter(registry, parts, service, settings.follow_s, told.append)
    with started(releases.service) as running:
        running.told = told  # type: ignore[attr-defined]
        yield running


def asked(server: Running, number: int = 1, **more: Any) -> list[int]:
    return [server.chat(f"Does drug {each} help?", max_tokens=1, **more).status for each in range(number)]


def over(server: Running, registry: Registry, id: str) -> None:
    registry.promote(id, "wanted", force=True)
    until(lambda: current(server) == id)


def test_a_store_that_fails_takes_no_version_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = bare(tmp_path / "registry", 3)
    with serving_versions(
        registry, tmp_path / "store", Settings(follow_s=0.05, concurrency=4, keep_text=True)
    ) as server:
        for id in ("v0002", "v0003"):
            asked(server, 5)
            over(server, registry, id)

        def full(*_: Any) -> None:
            raise StoreError("The disk is full.")

        answers = server.service.answers
        monkeypatch.setattr(answers, "keep", full)
        assert set(asked(server, 12)) == {503}
        streamed = server.chat(stream=True, max_tokens=1)
        assert "error" in streamed.text
        monkeypatch.undo()
        assert asked(server, 2) == [200, 200]
        assert not server.service.releases._refused
    assert registry.state().current == "v0003"


def test_an_engine_that_fails_everywhere_takes_back_one_version_and_not_all(tmp_path: Path) -> None:
    registry = bare(tmp_path / "registry", 3)
    down = threading.Event()

    def load(_: Version, parts: VersionParts) -> VersionParts:
        if down.is_set():
            broken(parts.engine)
        return parts

    with serving_versions(registry, tmp_path / "store", load=load) as server:
        for id in ("v0002", "v0003"):
            asked(server, 20)
            over(server, registry, id)
        down.set()
        broken(server.service.engine)
        until(lambda: asked(server) and current(server) == "v0002")
        assert set(asked(server, 30)) == {503}
        until(lambda: not server.service.releases._refused)
    assert registry.state().promoted == ("v0001", "v0002")


def test_a_trial_is_held_against_what_the_other_did_meanwhile(tmp_path: Path) -> None:
    registry = bare(tmp_path / "registry", 2)
    with serving_versions(registry, tmp_path / "store") as server:
        releases = server.service.releases
        releases._current.counts.all = 5000
        registry.start_canary("v0002", 30, "wanted", force=True)
        until(lambda: releases._trial)
        for live in (releases._current, releases._trial[0]):
            broken(live.service.engine)
        assert set(asked(server, 40)) == {503}
        assert releases._trial[0].counts.failed >= 5
        assert not releases._refused
    assert registry.state().trial


def test_a_version_that_was_good_for_long_is_not_judged_by_the_one_before(tmp_path: Path) -> None:
    registry = bare(tmp_path / "registry", 2)
    with serving_versions(registry, tmp_path / "store") as server:
        asked(server, 20)
        over(server, registry, "v0002")
        server.service.releases._before.all = 5000
        server.service.releases._current.counts.all = MAX_JUDGED_ANSWERS
        broken(server.service.engine)
        assert set(asked(server, 60)) == {503}
        assert not server.service.releases._refused
    assert registry.state().current == "v0002"


def test_what_failed_here_is_served_once_it_is_promoted_again(tmp_path: Path) -> None:
    registry = bare(tmp_path / "registry", 2)
    with serving_versions(registry, tmp_path / "store") as server:
        asked(server, 20)
        over(server, registry, "v0002")
        broken(server.service.engine)
        until(lambda: asked(server) and current(server) == "v0001")
        assert registry.state().withdrawn == ("v0002",)
        over(server, registry, "v0002")
        assert asked(server) == [200]


def test_a_load_that_failed_is_tried_again_and_keeps_no_trial_alive(tmp_path: Path) -> None:
    registry = bare(tmp_path / "registry", 3)
    tries: list[str] = []

    def load(found: Version, parts: VersionParts) -> VersionParts:
        if found.id == "v0003":
            tries.append(found.id)
            if len(tries) == 1:
                raise ModelError("There is no memory left.")
        return parts

    with serving_versions(registry, tmp_path / "store", load=load) as server:
        releases = server.service.releases
        registry.start_canary("v0002", 100, "wanted", force=True)
        until(lambda: releases._trial)
        registry.end_trial("enough")
        registry.promote("v0003", "wanted", force=True)
        until(lambda: tries)
        until(lambda: not releases._trial)
        until(lambda: current(server) == "v0003")
        assert len(tries) == 2
        assert server.told == [
            "The registry can't be followed, so the served versions don't change. Reason: There is no memory left."
        ]


def test_an_index_that_changes_while_a_version_is_loaded_is_named_by_its_answers(tmp_path: Path) -> None:
    registry = bare(tmp_path / "registry", 3)
    loading, go = threading.Event(), threading.Event()

    def load(found: Version, parts: VersionParts) -> VersionParts:
        if found.id != "v0001":
            loading.set()
            assert go.wait(20)
        return parts

    with serving_versions(registry, tmp_path / "store", load=load) as server:
        releases = server.service.releases
        registry.start_canary("v0003", 1, "wanted", force=True)
        assert loading.wait(20)
        releases.switch_index("content-2")
        go.set()
        until(lambda: releases._trial)
        assert releases._trial[0].service.served.index == "content-2"
        loading.clear()
        go.clear()
        registry.promote("v0002", "wanted", force=True)
        assert loading.wait(20)
        releases.switch_index("content-3")
        go.set()
        until(lambda: current(server) == "v0002")
        assert server.service.served.index == "content-3"
        assert server.service.assistant.versions["index"] == "content-3"
        assert releases._trial[0].service.served.index == "content-3"
