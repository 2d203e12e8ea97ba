"""What a served registry goes over to in outages, and where loading fails; shadows take only places that are free."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from meditune.errors import EngineError, ModelError, StoreError
from meditune.model_registry import Registry, Version
from meditune.serve.chat_prompts import Prompts
from meditune.serve.service import Served
from meditune.serve.settings import Settings
from meditune.serve.version_router import JUDGED, Parts, Releases
from tests.registry.runs import bare
from tests.serve import server as servers
from tests.serve.asking import Plain
from tests.serve.server import Running, started
from tests.serve.test_releases import broken, current, until

INDEX = "content-1"


class Assistant(Plain):
    def __init__(self, engine: Any, index: str) -> None:
        super().__init__(engine)
        self.versions = {"index": index}


@contextmanager
def serving(
    registry: Registry,
    store: Path,
    settings: Settings | None = None,
    load: Callable[[Version, Parts], Parts] = lambda _, parts: parts,
    make: Callable[[Any], Plain] = lambda engine: Assistant(engine, INDEX),
) -> Iterator[Running]:
    """A server of versions that all have the same tiny model; `load` may change what is loaded."""
    settings = settings or Settings(follow_s=0.05, at_once=4)
    told: list[str] = []

    def parts(found: Version) -> Parts:
        made = servers.service(store, settings)
        served = Served(servers.MODEL, f"{found.id}-{found.weights}", 1, INDEX)
        opened = Parts(served, made.engine, Prompts(made.engine.tokenizer, None, 256), make(made.engine))
        return load(found, opened)

    def service(parts: Parts) -> Any:
        made = servers.service(store, settings)
        made.served, made.engine, made.prompts, made.assistant = (
            parts.served,
            parts.engine,
            parts.prompts,
            parts.assistant,
        )
        return made

    releases = Releases(registry, parts, settings.follow_s, told.append)
    with started(releases.begin(service)) as running:
        running.told = told  # type: ignore[attr-defined]
        yield running


def asked(server: Running, number: int = 1, **more: Any) -> list[int]:
    return [server.chat(f"Does drug {each} help?", max_tokens=1, **more).status for each in range(number)]


def over(server: Running, registry: Registry, id: str) -> None:
    registry.promote(id, "wanted", force=True)
    until(lambda: current(server) == id)


def test_a_store_that_fails_takes_no_version_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = bare(tmp_path / "registry", 3)
    with serving(registry, tmp_path / "store", Settings(follow_s=0.05, at_once=4, keep_text=True)) as server:
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

    def load(_: Version, parts: Parts) -> Parts:
        if down.is_set():
            broken(parts.engine)
        return parts

    with serving(registry, tmp_path / "store", load=load) as server:
        for id in ("v0002", "v0003"):
            asked(server, 20)
            over(server, registry, id)
        down.set()
        broken(server.service.engine)
        until(lambda: asked(server) and current(server) == "v0002")
        assert set(asked(server, 30)) == {503}
        until(lambda: not server.service.releases._refused)
    assert registry.state().standing == ("v0001", "v0002")


def test_a_trial_is_held_against_what_the_other_did_meanwhile(tmp_path: Path) -> None:
    registry = bare(tmp_path / "registry", 2)
    with serving(registry, tmp_path / "store") as server:
        releases = server.service.releases
        releases._current.counts.all = 5000
        registry.try_out("v0002", "canary", 30, "wanted", force=True)
        until(lambda: releases._trial)
        for live in (releases._current, releases._trial[0]):
            broken(live.service.engine)
        assert set(asked(server, 40)) == {503}
        assert releases._trial[0].counts.failed >= 5
        assert not releases._refused
    assert registry.state().trial


def test_a_version_that_was_good_for_long_is_not_judged_by_the_one_before(tmp_path: Path) -> None:
    registry = bare(tmp_path / "registry", 2)
    with serving(registry, tmp_path / "store") as server:
        asked(server, 20)
        over(server, registry, "v0002")
        server.service.releases._before.all = 5000
        server.service.releases._current.counts.all = JUDGED
        broken(server.service.engine)
        assert set(asked(server, 60)) == {503}
        assert not server.service.releases._refused
    assert registry.state().current == "v0002"


def test_what_failed_here_is_served_once_it_is_promoted_again(tmp_path: Path) -> None:
    registry = bare(tmp_path / "registry", 2)
    with serving(registry, tmp_path / "store") as server:
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

    def load(found: Version, parts: Parts) -> Parts:
        if found.id == "v0003":
            tries.append(found.id)
            if len(tries) == 1:
                raise ModelError("There is no memory left.")
        return parts

    with serving(registry, tmp_path / "store", load=load) as server:
        releases = server.service.releases
        registry.try_out("v0002", "canary", 100, "wanted", force=True)
        until(lambda: releases._trial)
        registry.end_trial("enough")
        registry.promote("v0003", "wanted", force=True)
        until(lambda: tries)
        until(lambda: not releases._trial)
        until(lambda: current(server) == "v0003")
        assert len(tries) == 2
        assert server.told == ["The registry can't be followed; what is served stays: There is no memory left."]


def test_an_index_that_changes_while_a_version_is_loaded_is_named_by_its_answers(tmp_path: Path) -> None:
    registry = bare(tmp_path / "registry", 3)
    loading, go = threading.Event(), threading.Event()

    def load(found: Version, parts: Parts) -> Parts:
        if found.id != "v0001":
            loading.set()
            assert go.wait(20)
        return parts

    with serving(registry, tmp_path / "store", load=load) as server:
        releases = server.service.releases
        registry.try_out("v0003", "canary", 1, "wanted", force=True)
        assert loading.wait(20)
        releases.goes_over_to("content-2")
        go.set()
        until(lambda: releases._trial)
        assert releases._trial[0].service.served.index == "content-2"
        loading.clear()
        go.clear()
        registry.promote("v0002", "wanted", force=True)
        assert loading.wait(20)
        releases.goes_over_to("content-3")
        go.set()
        until(lambda: current(server) == "v0002")
        assert server.service.served.index == "content-3"
        assert server.service.assistant.versions["index"] == "content-3"
        assert releases._trial[0].service.served.index == "content-3"


def test_shadows_take_only_places_that_are_free_and_stop_in_time(tmp_path: Path) -> None:
    registry = bare(tmp_path / "registry", 2)
    registry.try_out("v0002", "shadow", 100)
    ended: list[bool] = []
    shadows: list[str] = []

    class Slow(Assistant):
        """Answers at once as the first version, and as the shadow only when it is told to stop."""

        def ask(self, question: str, *, cancelled: Callable[[], bool], **options: Any) -> Any:
            if self.versions.get("model") == "v0002":
                shadows.append(question)
                until(cancelled)
                ended.append(True)
            yield from super().ask(question, cancelled=cancelled, **options)

    def load(found: Version, parts: Parts) -> Parts:
        parts.assistant.versions["model"] = found.id
        return parts

    settings = Settings(follow_s=0.05, at_once=3, answer_s=2.0)
    with serving(registry, tmp_path / "store", settings, load, lambda engine: Slow(engine, INDEX)) as server:
        releases = server.service.releases
        body = {"question": "Does it help?", "max_new_tokens": 1}
        statuses = [server.ask("/v1/ask", body).status for _ in range(6)]
        assert set(statuses) == {200}
        assert 1 <= len(shadows) <= 3, shadows
        # A thread that was timed out ends, and only then its place is free.
        until(lambda: len(ended) == len(shadows))
        until(lambda: server.service.admission.inside == 0)
        until(lambda: releases._trial is None or releases._trial[0].users == 0)


def test_a_server_that_ends_counts_no_shadow_as_failed(tmp_path: Path) -> None:
    registry = bare(tmp_path / "registry", 2)
    registry.try_out("v0002", "shadow", 100)
    go = threading.Event()

    class Ends(Assistant):
        """As the shadow, meets an engine that is closed when the server ends."""

        def ask(self, question: str, *, cancelled: Callable[[], bool], **options: Any) -> Any:
            if self.versions.get("model") == "v0002":
                go.wait(20)
                raise EngineError("The engine is closed.")
            yield from super().ask(question, cancelled=cancelled, **options)

    def load(found: Version, parts: Parts) -> Parts:
        parts.assistant.versions["model"] = found.id
        return parts

    settings = Settings(follow_s=0.05, at_once=8)
    with serving(registry, tmp_path / "store", settings, load, lambda engine: Ends(engine, INDEX)) as server:
        live = server.service.releases._trial[0]
        for number in range(5):
            assert server.ask("/v1/ask", {"question": f"Does {number} help?", "max_new_tokens": 1}).status == 200
        until(lambda: live.users == 5)
        server.service.ready = False
        go.set()
        until(lambda: live.users == 0)
        assert live.counts.failed == 0
    assert registry.state().trial
