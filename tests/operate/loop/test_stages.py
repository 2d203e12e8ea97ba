"""What breaks a stage is shown and tried again later; what is only not there yet isn't a fault."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from meditune import model_registry
from meditune.model_registry import State as RegistryState
from meditune.model_registry import Trial
from meditune.operate import loop
from meditune.operate.loop import Config, load
from meditune.store.answers import Answer, Answers
from meditune.store.database import Base
from tests.commands import jsonl
from tests.operate.drift.test_alerting import listening


@pytest.fixture
def loop_config(tmp_path: Path) -> Config:
    trial = Trial("v0002", "canary", 10, datetime.fromtimestamp(time.time() - 3600, UTC).isoformat(timespec="seconds"))
    (tmp_path / "registry").mkdir()
    model_registry.write(tmp_path / "registry", RegistryState(trial=trial))
    (tmp_path / "loop.yaml").write_text(
        "registry: registry\nstore: store\nqueue: {folder: queues, strategy: random}\n"
        "promote: {after: 1s, answers: 5}\n"
    )
    return load(tmp_path / "loop.yaml")


def test_any_error_of_a_stage_is_noted_and_keeps_no_other_from_its_turn(
    loop_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> loop.Done:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setitem(loop.BY_NAME, "queue", broken)
    Base(tmp_path / "store")
    told: list[str] = []
    assert loop.loop(loop_config, told.append, once=True) == 1
    assert told[0] == "queue: FAILED: RuntimeError: CUDA out of memory"
    assert told[1].startswith("promote: v0002 has stood")
    assert loop.loop(loop_config, told.append, once=True) == 1
    assert len(told) == 2, "it is tried again after a while"


def test_a_queue_that_cant_be_made_is_a_fault_and_one_without_questions_is_none(loop_config: Config, tmp_path: Path) -> None:
    answers = Answers(Base(tmp_path / "store"))
    outcome, said = loop.queue(loop_config, loop.State())
    assert (outcome, "no answers yet" in said) == ("done", True)
    answers.keep(Answer("a", "k", "ask", "tiny", question="Does the herb help?", answer="It helps."))
    (tmp_path / "queues" / "stray").mkdir(parents=True)
    told: list[str] = []
    assert loop.loop(loop_config, told.append, once=True) == 1
    assert told[0].startswith("queue: FAILED: ")
    (tmp_path / "queues" / "stray").rmdir()
    assert loop.queue(loop_config, loop.State())[1].startswith("1 for experts")
    outcome, said = loop.queue(loop_config, loop.State())
    assert (outcome, "nothing left to ask" in said) == ("done", True)


def test_only_what_a_canary_answered_since_it_is_out_counts(loop_config: Config, tmp_path: Path) -> None:
    answers = Answers(Base(tmp_path / "store"))
    for number in range(6):
        answers.keep(Answer(f"shadow-{number}", "", "shadow", "clinic v0002-0123456789ab"))
        answers.keep(Answer(f"early-{number}", "", "ask", "clinic v0002-0123456789ab", time=time.time() - 7200))
        answers.keep(Answer(f"other-{number}", "", "ask", "clinic v0001-0123456789ab"))
    answers.keep(Answer("one", "", "ask", "clinic v0002-0123456789ab"))
    outcome, said = loop.promote(loop_config, loop.State())
    assert (outcome, said) == ("done", "v0002 has stood for 1.0 hours and given 1 answers")


def test_canaries_that_fail_are_told_to_the_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"id": "chest", "question": "Chest pain?", "contains": ["911"], "critical": True}
    jsonl(tmp_path / "questions.jsonl", [asked])
    (tmp_path / "registry").mkdir()
    with listening(reply=b'{"text": "Rest a while."}') as (url, got):
        monkeypatch.setenv("MEDITUNE_ALERT_SLACK", url)
        (tmp_path / "loop.yaml").write_text(
            "registry: registry\ndrift: {reference: reference, notify: true}\n"
            f"canary: {{questions: questions.jsonl, results: results.jsonl, url: '{url}'}}\n"
        )
        outcome, _ = loop.canary(load(tmp_path / "loop.yaml"), loop.State())
    assert outcome == "alert"
    (question, _, _), (path, _, body) = got
    assert (question, path) == ("/secret-path/v1/ask", "/secret-path")
    assert b"critical ones wrong: chest" in body
