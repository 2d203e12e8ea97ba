"""`meditune loop`: runs the stages that are due, retries failures, resumes after it was stopped, checks its file."""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer.main

from meditune import model_registry
from meditune.cli import loop
from meditune.cli.loop import FILE, Config, StageState, load_states, run, run_stage
from meditune.cli.main import cli_app
from meditune.errors import DriftError
from meditune.model_registry import Registry, Trial
from meditune.store.answers import Answer, Answers
from meditune.store.database import SQLiteDatabase
from tests.commands import Bench, jsonl, meditune, rows
from tests.operate.drift.test_alerts import receiver
from tests.test_model_registry import bare, finished, with_versions
from tests.waiting import until

EASY = "within: {perplexity: 100000}\n"
COMMANDS = typer.main.get_command(cli_app)


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
        "  labels: [labels.jsonl]\n  min_rows: 5\n  set: [train.epochs=1]\n  gate: easy.yaml\n"
        "  gate_new: easy.yaml\n  on_pass: canary\n"
    )
    return path


def test_it_trains_tries_and_promotes_when_each_is_due(config: Path, tmp_path: Path) -> None:
    done = meditune("loop", config, "--once").ok()
    assert "No evidence against v0001.\nguard: done\n" in done.out
    assert "0 of 0 rows are new, but at least 5 are needed" in done.out
    assert "promote: done: no version is on trial" in done.out
    assert meditune("loop", config, "--once").out == ""
    jsonl(tmp_path / "labels.jsonl", rows(40))
    past(config, "retrain", 8 * 86_400)
    done = meditune("loop", config, "--once")
    assert "is a canary in 10%" in done.out, done
    past(config, "retrain", 8 * 86_400)
    assert "retrain: done: another version is on trial" in meditune("loop", config, "--once").out
    registry, answers = Registry(tmp_path / "registry"), Answers(SQLiteDatabase(tmp_path / "store"))
    for number in range(3):
        answers.keep(Answer(f"ask-{number}", "", "ask", f"registry v0002-{registry.get('v0002').weights}"))
    past(config, "promote", 3600)
    time.sleep(1.1)
    assert "promote: done: v0002 is now served" in meditune("loop", config, "--once").out
    assert registry.state().current == "v0002"
    shown = meditune("loop", config, "--status").out
    assert "retrain  done" in shown
    assert "promote  done" in shown


def test_failed_stages_are_retried_at_growing_intervals_and_stop_no_other(config: Path, tmp_path: Path) -> None:
    text = config.read_text()
    canaries = "canary: {questions: none.jsonl, output: results.jsonl, url: 'http://127.0.0.1:9'}\n"
    config.write_text(f"{text}{canaries}drift: {{reference: none}}\n")
    done = meditune("loop", config, "--once")
    assert done.code == 1
    assert "canary: FAILED: " in done.out
    assert "drift: FAILED: " in done.out
    assert "guard: done" in done.out
    assert "2 of the stages failed" in done.err
    state = load_states(tmp_path / "registry")["canary"]
    assert (state.outcome, state.failures) == ("failed", 1)
    assert 0 < state.due_in(6 * 3600) <= 60
    past(config, "canary", 61)
    assert "canary: FAILED" in meditune("loop", config, "--once").out
    assert 60 < load_states(tmp_path / "registry")["canary"].due_in(6 * 3600) <= 120


def test_a_clock_that_is_set_back_makes_a_stage_due() -> None:
    now = time.time()
    assert StageState(ended=now + 5 * 86_400).due_in(3600) == 0
    assert 0 < StageState(ended=now - 10).due_in(3600) <= 3590


def test_every_problem_of_a_configuration_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.write_text("registry: r\nretrain:\n  every: often\n  min_row: 3\nguard: {every: 0m}\nserve: {}\nqueue: 7d\n")
    meditune("loop", path).refused(
        2,
        "line 3: retrain.every: 'often' is not a duration",
        "line 4: retrain.min_row: no such option; did you mean min_rows?",
        "line 5: guard.every",
        "line 6: serve: no such key",
        "line 7: queue: give options",
    )
    path.write_text(
        "registry: r\nstore: s\ndrift: {every: 1h}\nretrain: {min_rows: 0}\npromote: {after: 1, answers: many}\n"
    )
    meditune("loop", path).refused(
        2, "line 3: drift: Missing", "--reference", "line 4: retrain: Invalid value for '--min-rows'", "promote.after"
    )
    path.write_text(
        "registry: r\nstore: s\ncanary: {questions: [a, b], output: [c]}\nqueue: {folder: 3}\npromote: {answers: [1]}\n"
    )
    meditune("loop", path).refused(
        2,
        "line 3: canary: Got unexpected extra argument",
        "line 3: canary.output: ['c'] is not text",
        "line 4: queue.folder: 3 is not text",
        "line 5: promote.answers: [1] is not a whole number",
    )
    path.write_text("registry: r\ndrift:\n  source: s\n  reference: r\n  notify: no\n")
    meditune("loop", path).refused(2, "line 5: drift.notify: write true or false, not 'no'")
    path.write_text("registry: r\n")
    meditune("loop", path).refused(2, "no stage is named")
    path.write_text("guard: {}\n")
    meditune("loop", path).refused(2, "registry: missing")
    path.write_text("registry: r\nguard:\n")
    meditune("loop", path, "--once").refused(3, "is not a registry", "meditune registry add")


def test_a_retraining_without_any_training_data_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDITUNE_STORE", raising=False)
    bare(tmp_path / "registry", 1)
    (tmp_path / "loop.yaml").write_text(
        "registry: registry\nqueue: {sources: [s], folder: q}\nretrain: {labels: l.jsonl, literature: [l]}\n"
    )
    config = Config(tmp_path / "loop.yaml", COMMANDS)
    assert run_stage(config, "retrain") == ("done", "no training data yet")
    config.shared["store"] = "s"
    assert given(config, "retrain", monkeypatch)["min_rows"] == 50
    config.stages["retrain"]["min_rows"] = 20
    assert given(config, "retrain", monkeypatch)["min_rows"] == 20


def test_paths_in_the_home_folder_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    bare(tmp_path / "registry", 1)
    jsonl(tmp_path / "results.jsonl", [{}])
    labels = jsonl(tmp_path / "labels.jsonl", rows(1))
    (tmp_path / "queues" / "first").mkdir(parents=True)
    (tmp_path / "loop.yaml").write_text(
        "registry: ~/registry\nstore: ~/store\nguard: {}\ncanary: {questions: ~/q, output: ~/results.jsonl}\n"
        "queue: {folder: ~/queues}\nretrain: {labels: [~/labels.jsonl, ~/none.jsonl]}\n"
    )
    config = Config(tmp_path / "loop.yaml", COMMANDS)
    assert config.registry == tmp_path / "registry"
    assert given(config, "guard", monkeypatch)["canary"] == tmp_path / "results.jsonl"
    retrain = given(config, "retrain", monkeypatch)
    assert (retrain["labels"], retrain["queue"]) == ([labels], [tmp_path / "queues" / "first"])
    assert retrain["store"] == str(tmp_path / "store")
    assert given(config, "queue", monkeypatch)["earlier_queue"] == [tmp_path / "queues" / "first"]


def test_it_is_stopped_and_resumes_and_is_alone(place: Bench, config: Path, tmp_path: Path) -> None:
    jsonl(tmp_path / "labels.jsonl", rows(40))
    with place.started("loop", config) as process:
        until((tmp_path / "registry" / "work" / "retrain.json").is_file)
        second = meditune("loop", config, "--once")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    second.refused(1, "Another loop is already running in")
    assert Registry(tmp_path / "registry").state().trial is None
    done = meditune("loop", config, "--once")
    assert "is a canary in" in done.out, done
    assert list(Registry(tmp_path / "registry").state().versions) == ["v0001", "v0002"]


def past(config: Path, stage: str, seconds: float) -> None:
    """Let a stage have ended so long ago."""
    path = config.parent / "registry" / FILE
    stored = json.loads(path.read_text())
    stored["stages"][stage]["ended"] -= seconds
    path.write_text(json.dumps(stored))


@pytest.fixture
def loop_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    (tmp_path / "registry").mkdir()
    begun = datetime.fromtimestamp(time.time() - 3600, UTC).isoformat(timespec="seconds")
    model_registry.write(tmp_path / "registry", model_registry.State(trial=Trial("v0002", 10, begun)))
    (tmp_path / "loop.yaml").write_text(
        "registry: registry\nstore: store\nqueue: {folder: queues, strategy: random}\n"
        "promote: {after: 1s, answers: 5}\n"
    )
    monkeypatch.chdir(tmp_path)
    return Config(tmp_path / "loop.yaml", COMMANDS)


@pytest.mark.parametrize(
    ("error", "outcome", "failed"),
    [
        (RuntimeError("CUDA out of memory"), "FAILED: RuntimeError: CUDA out of memory", 1),
        (DriftError("drift in length"), "ALERT: drift in length", 0),
    ],
)
def test_any_error_of_a_stage_is_recorded_and_stops_no_other(
    loop_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: str, failed: int
) -> None:
    real = run_stage

    def broken(config: Config, name: str) -> tuple[loop.Outcome, str]:
        if name == "queue":
            raise error
        return real(config, name)

    monkeypatch.setattr(loop, "run_stage", broken)
    SQLiteDatabase(tmp_path / "store")
    lines: list[str] = []
    assert run(loop_config, lines.append, once=True) == failed
    assert lines[0] == f"queue: {outcome}"
    assert lines[1].startswith("promote: done: v0002 stays a canary")
    assert run(loop_config, lines.append, once=True) == failed
    assert len(lines) == 2, "neither stage is due yet"


def test_stages_that_are_no_longer_configured_are_neither_counted_nor_shown(
    loop_config: Config, tmp_path: Path
) -> None:
    now = time.time()
    states = {"update": StageState(now, "failed"), "queue": StageState(now, "done"), "promote": StageState(now, "done")}
    text = json.dumps({"stages": {name: asdict(state) for name, state in states.items()}})
    (tmp_path / "registry" / FILE).write_text(text)
    assert run(loop_config, print, once=True) == 0
    assert "update" not in meditune("loop", "loop.yaml", "--status").out


def test_a_queue_that_cant_be_made_fails_and_one_without_questions_is_done(loop_config: Config, tmp_path: Path) -> None:
    answers = Answers(SQLiteDatabase(tmp_path / "store"))
    lines: list[str] = []
    run(loop_config, lines.append, once=True)
    assert lines[0].startswith("queue: done: ")
    assert "no answers yet" in lines[0]
    answers.keep(Answer("a", "k", "ask", "tiny", question="Does the herb help?", answer="It helps."))
    (tmp_path / "queues" / "stray").mkdir(parents=True)
    past(tmp_path / "loop.yaml", "queue", 8 * 86_400)
    assert run(loop_config, lines.append, once=True) == 1
    assert lines[-1].startswith("queue: FAILED: ")
    (tmp_path / "queues" / "stray").rmdir()
    for outcome in ("queue: done", "queue: done: "):
        past(tmp_path / "loop.yaml", "queue", 8 * 86_400)
        run(loop_config, lines.append, once=True)
        assert lines[-1].startswith(outcome)
    assert "none is left to ask" in lines[-1]
    assert len(list((tmp_path / "queues").iterdir())) == 1


def test_only_answers_of_the_canary_since_its_trial_began_count(loop_config: Config, tmp_path: Path) -> None:
    answers = Answers(SQLiteDatabase(tmp_path / "store"))
    for number in range(6):
        answers.keep(Answer(f"early-{number}", "", "ask", "clinic v0002-0123456789ab", time=time.time() - 7200))
        answers.keep(Answer(f"other-{number}", "", "ask", "clinic v0001-0123456789ab"))
        answers.keep(Answer(f"urgent-{number}", "", "ask", "clinic v0002-0123456789ab", outcome="escalated"))
    answers.keep(Answer("one", "", "ask", "clinic v0002-0123456789ab"))
    assert run_stage(loop_config, "promote") == ("done", "v0002 stays a canary, after 1.0 hours and 1 answers")


def test_the_drift_check_also_sends_what_the_canaries_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(
        tmp_path / "questions.jsonl",
        [{"id": "chest", "question": "Chest pain?", "contains": ["911"], "critical": True}],
    )
    bare(tmp_path / "registry", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.yaml").write_text(
        "registry: registry\nstore: store\ndrift: {reference: reference, notify: true}\n"
        "canary: {questions: questions.jsonl, output: results.jsonl}\n"
    )
    config = Config(tmp_path / "loop.yaml", COMMANDS)
    assert "canary" not in given(config, "drift", monkeypatch)
    with receiver(reply=b'{"text": "Rest a while."}') as (url, _):
        config.stages["canary"]["url"] = url
        with pytest.raises(DriftError, match="critical canaries wrong: chest"):
            run_stage(config, "canary")
    assert given(config, "drift", monkeypatch)["canary"] == Path("results.jsonl")
    assert given(config, "drift", monkeypatch)["notify"] is True


def given(config: Config, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The parameters with which a stage calls its command."""
    got: dict[str, object] = {}
    with monkeypatch.context() as patch:
        patch.setattr(config.commands[name], "invoke", lambda context: got.update(context.params))
        run_stage(config, name)
    return {key: value for key, value in got.items() if value is not None}
