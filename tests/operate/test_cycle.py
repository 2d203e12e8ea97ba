"""The whole cycle on real components with a tiny model: a server on the loopback, users, drift, experts, the next
version, its gate, promotion under load, worse answers, and back.
"""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from meditune.cli.loop import FILE
from meditune.files import cache_folder
from meditune.model_registry import Registry
from meditune.operate.label_queue import examples
from meditune.serve.settings import Settings
from tests.commands import bench, jsonl, meditune
from tests.loopback_server import Running
from tests.operate.test_label_queue import judge
from tests.serve.test_version_router import current, kept, serving
from tests.test_model_registry import finished
from tests.waiting import until

pytest.importorskip("lancedb")
pytestmark = pytest.mark.slow

GOOD, DRIFTED = 230, 90
EMBEDDING = "all-minilm-l6-v2-int8"
QUICK = Settings(follow_s=0.1, concurrency=8, keep_text=True, feedback_per_minute=6000)


def usual(number: int) -> str:
    """What is asked in the good time."""
    return f"Does treatment {number} help adults with pain?"


def drifted(number: int) -> str:
    """What comes then: other words, of other people, at greater length."""
    return (
        f"My little daughter coughs every night since last week and herb number {number} was recommended by our "
        "neighbour; is that of any use for her, and how long should we wait before we see somebody about it?"
    )


def told(number: int) -> str:
    """What an expert says to that."""
    return f"Herb number {number} does nothing for a cough. See somebody after three weeks, or at once with fever."


def asked(server: Running, questions: list[str]) -> list[dict[str, Any]]:
    """The answers to these questions, in their order."""

    def ask(question: str) -> dict[str, Any]:
        reply = server.ask("/v1/ask", {"question": question, "max_new_tokens": 2})
        assert reply.status == 200, reply
        answer: dict[str, Any] = reply.json
        return answer

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(ask, questions))


def rated(server: Running, answers: list[dict[str, Any]], rating: str) -> None:
    for each in answers:
        assert server.ask("/v1/feedback", {"id": each["id"], "rating": rating}).status == 200


def test_a_whole_cycle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_folder("models").parent
    if not (cache / "models" / EMBEDDING).is_dir():
        pytest.skip(f"{EMBEDDING} isn't downloaded")
    with bench(tmp_path / "bench") as place:
        monkeypatch.setenv("MEDITUNE_CACHE", str(cache))
        registry = Registry(tmp_path / "registry")
        meditune("registry", "add", registry.folder, finished(place, evaluate__answers=8)).ok()
        store, config = tmp_path / "store", tmp_path / "loop.yaml"
        with serving(registry, store, QUICK) as server:
            _good_time(server, store, tmp_path)
            config.write_text(
                "registry: registry\nstore: store\ndrift: {reference: reference, every: 1s}\nguard: {every: 1s}\n"
                "queue: {folder: queues, budget: 200, every: 1h}\n"
                "retrain: {min_rows: 20, held_out: 0.5, set: [train.epochs=4, train.learning_rate=1e-2], every: 1h}\n"
            )
            first = meditune("loop", config, "--once").ok()
            assert "drift: done" in first.out
            assert server.service.served.version.startswith("v0001-")

            rated(server, asked(server, [drifted(number) for number in range(DRIFTED)])[:30], "down")
            aged(config, 3600)
            alarmed = meditune("loop", config, "--once")
            assert "drift: ALERT: Drift: " in alarmed.out, alarmed
            assert "length (large)" in alarmed.out
            # Whose questions change is no version's doing.
            assert "No evidence against v0001." in alarmed.out
            assert "meditune annotate serve" in alarmed.out, alarmed

            _experts(tmp_path / "queues")
            aged(config, 3600)
            with Asking(server) as replies:
                trained = meditune("loop", config, "--once")
                assert "v0002 passed its gate against v0001 and is now served." in trained.out, trained
                until(lambda: current(server) == "v0002")
                seen = len(replies)
                until(lambda: len(replies) > seen + 4)
            assert set(replies) == {200}
            gate = registry.get("v0002").gate
            assert gate
            new = gate["on"]["new"]
            assert new["comparison"]["perplexity"]["better"] is True
            assert new["figures"]["after"]["perplexity"] < new["figures"]["before"]["perplexity"]
            assert asked(server, [drifted(1000)])[0]["versions"]["model"].startswith("v0002-")

            # It gets something wrong that no version may.
            known = {"id": "chest", "question": usual(4000), "contains": ["see somebody today"], "critical": True}
            canary = f"{{questions: canaries.jsonl, output: results.jsonl, url: '{server.address}', every: 1s}}"
            jsonl(tmp_path / "canaries.jsonl", [known])
            # Drift that is still there would have it trained again at once, sometimes.
            others = [line for line in config.read_text().splitlines() if not line.startswith("retrain:")]
            config.write_text("\n".join([*others, f"canary: {canary}\n"]))
            aged(config, 3600)
            taken_back = meditune("loop", config, "--once")
            assert "guard: ALERT: v0002 was withdrawn; v0001 is served." in taken_back.out, taken_back
            until(lambda: current(server) == "v0001")
            assert asked(server, [usual(5000)])[0]["versions"]["model"].startswith("v0001-")
        models = {row["model"].split()[1].partition("-")[0] for row in kept(store)}
        assert models == {"v0001", "v0002"}
        history = [(each.what, each.version) for each in registry.state().history]
        assert history[-3:] == [("added", "v0002"), ("promoted", "v0002"), ("rolled back", "v0002")]


def _good_time(server: Running, store: Path, folder: Path) -> None:
    answers = asked(server, [usual(number) for number in range(GOOD)])
    rated(server, answers[::8], "up")
    rated(server, answers[4:40:8], "down")
    meditune("drift", "fit", store, "-o", folder / "reference", "--embedding", EMBEDDING).ok()


def _experts(queues: Path) -> None:
    """Somebody who knows judges the queue: herbs don't help, and what was answered to all else was nothing."""
    queue = max(queues.iterdir())
    said: dict[str, tuple[str | None, str | None, str]] = {}
    for example in examples(queue).values():
        words = example.question.partition("herb number ")[2].split()
        if words:
            said[example.id] = ("no", "wrong", told(int(words[0])))
    assert len(said) >= 25, f"the queue has {len(said)} drifted questions"
    judge(queue, "expert", said)


def aged(config: Path, seconds: float) -> None:
    """Let every stage have ended so long ago."""
    path = config.parent / "registry" / FILE
    state = json.loads(path.read_text())
    for stage in state["stages"].values():
        stage["ended"] -= seconds
    path.write_text(json.dumps(state))


class Asking:
    """Users who go on asking inside the block; the statuses of what they got."""

    def __init__(self, server: Running) -> None:
        self.server, self.statuses, self.over = server, [], threading.Event()

    def __enter__(self) -> list[int]:
        self.thread = threading.Thread(target=self._ask)
        self.thread.start()
        return self.statuses

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join(60)

    def _ask(self) -> None:
        while not self.over.is_set():
            body = {"question": drifted(3000 + len(self.statuses)), "max_new_tokens": 2}
            self.statuses.append(self.server.ask("/v1/ask", body).status)
            self.over.wait(0.2)
