"""The loop: what is due is done, failures are tried again, alerts hurry, and it goes on after it was stopped.

What breaks a stage is shown and tried again later; what is only not there yet isn't a fault.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from filelock import FileLock

from meditune import model_registry
from meditune.model_registry import Registry, Trial
from meditune.model_registry import State as RegistryState
from meditune.operate import loop
from meditune.operate.drift import check, reference
from meditune.operate.drift.check import RequestSource
from meditune.operate.drift.monitor import Monitor
from meditune.operate.loop import Config, Stage, State, load
from meditune.store.answers import Answer, Answers
from meditune.store.database import SQLiteDatabase
from tests.commands import Bench, bench, jsonl, meditune, rows
from tests.operate.drift.streams import requests, write_facts
from tests.operate.drift.test_alerts import listening
from tests.registry_runs import finished, with_versions

EASY = "within: {perplexity: 100000}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with bench(tmp_path_factory.mktemp("loop")) as made:
        yield made


@pytest.fixture(scope="module")
def first(place: Bench) -> Path:
    folder = place.folder.parent / "first"
    with_versions(folder, finished(place, evaluate__answers=8))
    return folder


@pytest.fixture
def config(first: Path, tmp_path: Path) -> Path:
    shutil.copytree(first, tmp_path / "registry")
    Answers(SQLiteDatabase(tmp_path / "store"))
    (tmp_path / "easy.yaml").write_text(EASY)
    path = tmp_path / "loop.yaml"
    path.write_text(
        "registry: registry\nstore: store\nguard: {every: 10m}\npromote: {after: 1s, answers: 3}\nretrain:\n"
        "  labels: [labels.jsonl]\n  least: 5\n  settings: [train.epochs=1]\n  gate: easy.yaml\n"
        "  gate_new: easy.yaml\n  then: canary\n"
    )
    return path


def test_it_trains_tries_and_promotes_when_each_is_due(config: Path, tmp_path: Path) -> None:
    done = meditune("loop", config, "--once")
    assert done.code == 0, done
    assert "guard: No evidence against v0001." in done.out
    assert "retrain: 0 of 0 rows are new, but at least 5 are needed" in done.out
    assert "promote: no version is on trial as a canary" in done.out
    assert meditune("loop", config, "--once").out == ""
    jsonl(tmp_path / "labels.jsonl", rows(40))
    past(config, "retrain", 8 * 86_400)
    done = meditune("loop", config, "--once")
    assert "on trial as a canary in 10 %" in done.out, done
    registry, answers = Registry(tmp_path / "registry"), Answers(SQLiteDatabase(tmp_path / "store"))
    past(config, "promote", 3600)
    assert "and given 0 answers" in meditune("loop", config, "--once").out
    for number in range(3):
        answers.keep(Answer(f"ask-{number}", "", "ask", f"registry v0002-{registry.get('v0002').weights}"))
    past(config, "promote", 3600)
    time.sleep(1.1)
    assert "promote: v0002 is served from now on" in meditune("loop", config, "--once").out
    assert registry.state().current == "v0002"
    shown = meditune("loop", config, "--status").out
    assert "retrain  done" in shown
    assert "promote  done" in shown


def test_a_stage_that_fails_keeps_no_other_from_its_turn_and_is_tried_again(config: Path, tmp_path: Path) -> None:
    text = config.read_text()
    canaries = "canary: {questions: none.jsonl, results: results.jsonl, url: 'http://127.0.0.1:9'}\n"
    config.write_text(f"{text}{canaries}drift: {{reference: none}}\n")
    done = meditune("loop", config, "--once")
    assert done.code == 1
    assert "canary: FAILED: " in done.out
    assert "drift: FAILED: " in done.out
    assert "guard: No evidence" in done.out
    assert "2 of the stages failed" in done.err
    state = loop.load_state(tmp_path / "registry" / loop.FILE)
    assert state.stage("canary").failures == 1
    now = time.time()
    assert 0 < state.stage("canary").due_in(6 * 3600, now) <= 60
    past(config, "canary", 61)
    assert "canary: FAILED" in meditune("loop", config, "--once").out
    assert 60 < loop.load_state(tmp_path / "registry" / loop.FILE).stage("canary").due_in(6 * 3600, time.time()) <= 120


def test_a_clock_that_is_set_and_an_alert_make_a_stage_due() -> None:
    now = time.time()
    assert Stage(ended=now + 5 * 86_400).due_in(3600, now) == 0
    assert 0 < Stage(ended=now - 10).due_in(3600, now) <= 3590
    state = State({"retrain": Stage(ended=now - 2 * 3600)}, waiting=["retrain"])
    assert loop._is_due("retrain", 7 * 86_400, state)
    state.waiting = []
    assert not loop._is_due("retrain", 7 * 86_400, state)


def test_a_wrong_configuration_is_named_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.write_text("registry: r\nretrain:\n  every: often\n  lest: 3\nguard: {every: 0m}\n")
    meditune("loop", path).refused(
        2, "line 3: retrain.every: 'often' is not a duration", "line 4: retrain.lest: no such key", "guard.every"
    )
    path.write_text("registry: r\n")
    meditune("loop", path).refused(2, "no stage is named")
    for nobody in ('""', '"  "', "[all, '']"):
        names = nobody if nobody.startswith("[") else f"[{nobody}]"
        path.write_text(f"registry: registry\nretrain:\n  trust: {names}\n")
        meditune("loop", path).refused(2, "line 3: retrain.trust", "would trust callers without a key")
    path.write_text("registry: r\nguard: {}\n")
    meditune("loop", path, "--once").refused(1, "is not a model registry", "meditune registry add")
    assert load(path).registry == tmp_path / "r"


def test_it_is_stopped_and_goes_on_and_is_alone(place: Bench, config: Path, tmp_path: Path) -> None:
    jsonl(tmp_path / "labels.jsonl", rows(40))
    with place.started("loop", config) as process:
        wait_for(tmp_path / "registry" / "work" / "retrain.json")
        second = meditune("loop", config, "--once")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    second.refused(1, "Another loop is already running in")
    assert Registry(tmp_path / "registry").state().trial is None
    done = meditune("loop", config, "--once")
    assert "on trial as a canary" in done.out, done
    assert list(Registry(tmp_path / "registry").state().versions) == ["v0001", "v0002"]


def test_where_the_server_watches_drift_by_itself_its_alerts_are_taken(config: Path, tmp_path: Path) -> None:
    good = write_facts(tmp_path / "good.jsonl", requests(400, 1))
    reference.save(check.fit_reference(RequestSource(good), None, None, 17), tmp_path / "reference")
    config.write_text(f"{config.read_text()}drift: {{reference: reference}}\n")
    with FileLock(tmp_path / ".reference.state.lock"):
        assert "drift: the server checks for drift itself, no alert" in meditune("loop", config, "--once").out
        worse = write_facts(tmp_path / "worse.jsonl", requests(200, 3, first=1000, confidence=(3, 8)))
        monitor = Monitor(reference.load(tmp_path / "reference"))
        for each in RequestSource(worse).requests():
            monitor.add(each)
        monitor.save(tmp_path / "reference.state")
        past(config, "drift", 3601)
        done = meditune("loop", config, "--once")
    assert "drift: ALERT: confidence (large)" in done.out, done
    # The alert makes retraining due, whatever the calendar says; experts have said nothing yet.
    assert loop.load_state(tmp_path / "registry" / loop.FILE).waiting == ["retrain"]


def past(config: Path, stage: str, seconds: float) -> None:
    """Let a stage have ended so long ago."""
    path = load(config).registry / loop.FILE
    said = json.loads(path.read_text())
    said["stages"][stage]["ended"] -= seconds
    path.write_text(json.dumps(said))


def wait_for(path: Path) -> None:
    end = time.monotonic() + 120
    while not path.is_file():
        assert time.monotonic() < end, f"{path} didn't come"
        time.sleep(0.05)


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
    SQLiteDatabase(tmp_path / "store")
    told: list[str] = []
    assert loop.loop(loop_config, told.append, once=True) == 1
    assert told[0] == "queue: FAILED: RuntimeError: CUDA out of memory"
    assert told[1].startswith("promote: v0002 has run")
    assert loop.loop(loop_config, told.append, once=True) == 1
    assert len(told) == 2, "it is tried again after a while"


def test_a_queue_that_cant_be_made_is_a_fault_and_one_without_questions_is_none(
    loop_config: Config, tmp_path: Path
) -> None:
    answers = Answers(SQLiteDatabase(tmp_path / "store"))
    outcome, said = loop.queue(loop_config, loop.State())
    assert (outcome, "no answers yet" in said) == ("done", True)
    answers.keep(Answer("a", "k", "ask", "tiny", question="Does the herb help?", answer="It helps."))
    (tmp_path / "queues" / "stray").mkdir(parents=True)
    told: list[str] = []
    assert loop.loop(loop_config, told.append, once=True) == 1
    assert told[0].startswith("queue: FAILED: ")
    (tmp_path / "queues" / "stray").rmdir()
    assert loop.queue(loop_config, loop.State())[1].startswith("1 queued for experts")
    outcome, said = loop.queue(loop_config, loop.State())
    assert (outcome, "none is left to ask" in said) == ("done", True)


def test_only_what_a_canary_answered_since_it_is_out_counts(loop_config: Config, tmp_path: Path) -> None:
    answers = Answers(SQLiteDatabase(tmp_path / "store"))
    for number in range(6):
        answers.keep(Answer(f"shadow-{number}", "", "shadow", "clinic v0002-0123456789ab"))
        answers.keep(Answer(f"early-{number}", "", "ask", "clinic v0002-0123456789ab", time=time.time() - 7200))
        answers.keep(Answer(f"other-{number}", "", "ask", "clinic v0001-0123456789ab"))
    answers.keep(Answer("one", "", "ask", "clinic v0002-0123456789ab"))
    outcome, said = loop.promote(loop_config, loop.State())
    assert (outcome, said) == ("done", "v0002 has run as a canary for 1.0 hours and given 1 answers")


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
    assert b"critical canaries wrong: chest" in body
