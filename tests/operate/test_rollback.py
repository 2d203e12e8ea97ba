"""Versions are taken back where answers got worse, by ratings, alerts and canaries; not because questions change."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from meditune.model_registry import Registry
from meditune.operate.drift.monitor import Alert
from meditune.operate.retraining.rollback import is_rated_worse, on_drift
from meditune.store.answers import Answer, Answers, Feedback, Rating
from meditune.store.database import SQLiteDatabase
from tests.commands import Result, jsonl, meditune
from tests.test_model_registry import bare


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return bare(tmp_path / "registry", 4)


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    return Answers(SQLiteDatabase(tmp_path / "store"))


def on(registry: Registry, *ids: str) -> None:
    """Promote these, one after the other."""
    for id in ids:
        registry.promote(id, "wanted", force=True)


def rated(
    answers: Answers, version: str, count: int, down: int, outcome: str = "answered", who: str = "k{}", ago: float = 0
) -> None:
    """So many rated answers of a version, the first ones down, each by a caller of its own unless `who` is one."""
    for number in range(count):
        id = f"{version}-{outcome}-{who}-{number}"
        model = f"clinic {version}-0123456789ab"
        answers.keep(Answer(id, "k", "ask", model, outcome=outcome, time=time.time() - ago))
        rating: Rating = "down" if number < down else "up"
        answers.add_feedback(Feedback(id, who.format(number), rating))


def guarded(registry: Registry, *words: object) -> Result:
    return meditune("registry", "guard", registry.folder, *words)


def test_a_trial_that_is_rated_worse_is_ended(registry: Registry, answers: Answers, tmp_path: Path) -> None:
    registry.start_canary("v0002", 10, "wanted", force=True)
    rated(answers, "v0001", 60, 6)
    rated(answers, "v0002", 10, 9)
    done = guarded(registry, "--store", tmp_path / "store")
    assert done.code == 6
    assert "9 of 10 people rated v0002 down and 6 of 60 people rated v0001 down" in done.out
    state = registry.state()
    assert (state.current, state.trial, state.withdrawn) == ("v0001", None, ("v0002",))


def test_a_trial_that_keeps_more_answers_back_is_ended(registry: Registry, answers: Answers, tmp_path: Path) -> None:
    registry.start_canary("v0002", 10, "wanted", force=True)
    rated(answers, "v0001", 60, 0)
    rated(answers, "v0002", 20, 0, "abstained")
    done = guarded(registry, "--store", tmp_path / "store")
    assert done.code == 6
    assert "v0002 abstained on 20 of 20 questions and v0001 abstained on 0 of 60 questions" in done.out


def test_one_caller_has_one_vote(registry: Registry, answers: Answers, tmp_path: Path) -> None:
    registry.start_canary("v0002", 10, "wanted", force=True)
    rated(answers, "v0001", 60, 6)
    rated(answers, "v0002", 30, 30, who="angry")
    assert guarded(registry, "--store", tmp_path / "store").last == "No evidence against v0001."
    assert registry.state().trial


def test_other_questions_than_before_speak_against_no_version(
    registry: Registry, answers: Answers, tmp_path: Path
) -> None:
    rated(answers, "v0001", 60, 0, ago=86_400)
    on(registry, "v0002")
    rated(answers, "v0002", 30, 30, "abstained")
    assert guarded(registry, "--store", tmp_path / "store").last == "No evidence against v0002."
    # Nor do those that came before a trial: the one that is served had them alone.
    rated(answers, "v0002", 300, 0, ago=86_400)
    registry.start_canary("v0003", 50, "wanted", force=True)
    rated(answers, "v0003", 10, 10, "abstained")
    assert guarded(registry, "--store", tmp_path / "store").last == "No evidence against v0002."
    assert registry.state().trial


GOOD = {f"c{number}": True for number in range(12)}
EARLY, LATE = "2020-01-01T00:00:00+00:00", "2099-01-01T00:00:00+00:00"


def canaries_of(version: str, right: bool, when: str = LATE) -> dict[str, object]:
    """A run that this version answered."""
    return {
        "time": when,
        "right": dict.fromkeys(GOOD, right),
        "models": dict.fromkeys(GOOD, f"{version}-0123456789ab"),
        "critical": ["c0"],
    }


def test_canaries_that_got_worse_since_it_was_promoted_roll_it_back(registry: Registry, tmp_path: Path) -> None:
    on(registry, "v0002")
    first = canaries_of("v0001", True, EARLY)
    results = jsonl(tmp_path / "canaries.jsonl", [first, canaries_of("v0002", False, EARLY)])
    guarded(registry, "--canary", results).ok()
    # What another one answered, or nobody knows who, says nothing of it.
    for run in (canaries_of("v0001", False), {"time": LATE, "right": dict.fromkeys(GOOD, False)}):
        jsonl(results, [first, run])
        guarded(registry, "--canary", results).ok()
    jsonl(results, [first, canaries_of("v0002", False)])
    done = guarded(registry, "--canary", results)
    assert done.code == 6
    assert "canaries: 0 of 12 right" in done.out
    assert registry.state().current == "v0001"


def test_one_bad_run_or_many_take_back_one_version_and_not_all(registry: Registry, tmp_path: Path) -> None:
    on(registry, "v0002", "v0003", "v0004")
    first = canaries_of("v0001", True, EARLY)
    results = jsonl(tmp_path / "canaries.jsonl", [first, canaries_of("v0004", False)])
    assert guarded(registry, "--canary", results).code == 6
    guarded(registry, "--canary", results).ok()
    # The one before it fails them, too, so it isn't the version: an index that broke, say.
    jsonl(results, [first, canaries_of("v0004", False), canaries_of("v0003", False)])
    done = guarded(registry, "--canary", results).ok()
    assert "canaries: 0 of 12 right" in done.out
    assert done.last == "v0003 replaced v0004 in a rollback. Such a version is not rolled back automatically."
    assert registry.state().promoted == ("v0001", "v0002", "v0003")


@pytest.mark.parametrize(
    ("signal", "what", "effect", "before", "after", "worse"),
    [
        ("support", "", -0.4, 0.9, 0.6, True),
        ("support", "", 0.4, 0.6, 0.9, False),
        ("outcome", "abstained", 0.5, 0.1, 0.3, True),
        ("outcome", "answered", 0.5, 0.8, 0.9, False),
        ("ratings", "down", 0.5, 0.1, 0.3, True),
        ("ratings", "up", -0.5, 0.9, 0.7, True),
        ("ratings", "up", 0.5, 0.7, 0.9, False),
        ("length", "", 0.5, 10, 40, False),
        ("topics", "heart", 0.5, 0.1, 0.4, False),
        ("unanswerable", "nothing found", 0.5, 0.1, 0.4, False),
    ],
)
def test_only_worse_answers_speak_against_a_version(signal, what, effect, before, after, worse) -> None:
    found = replace(alert(signal, "b"), what=what, effect=effect, before=before, after=after)
    assert is_rated_worse(found) is worse


def test_a_server_that_watches_drift_takes_back_what_its_alerts_speak_against(
    registry: Registry, answers: Answers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    on(registry, "v0002")
    for version in ("v0001", "v0002"):
        answers.keep(Answer(version, "k", "ask", f"clinic {version}-0123456789ab"))
    seen: list[object] = []
    told = on_drift(registry.folder, str(tmp_path / "store"), seen.append)
    told({"problem": "", "alerts": [alert("length", "v0002").as_dict(), alert("support", "v0001").as_dict()]})
    # Nor is it known whose an answer was that is gone.
    told({"problem": "", "alerts": [alert("support", "deleted").as_dict()]})
    assert registry.state().current == "v0002"
    told({"problem": "", "alerts": [alert("support", "v0002").as_dict()]})
    assert registry.state().current == "v0001"
    assert "v0002 was rolled back, v0001 is served: drift in support" in caplog.text
    told({"problem": "", "alerts": [alert("support", "v0001").as_dict()]})
    assert registry.state().current == "v0001"
    assert len(seen) == 4


def test_a_version_that_was_promoted_again_is_not_taken_back_for_an_old_alert(
    registry: Registry, answers: Answers, tmp_path: Path
) -> None:
    answers.keep(Answer("old", "k", "ask", "clinic v0002-0123456789ab", time=time.time() - 3_600))
    on(registry, "v0002")
    on_drift(registry.folder, str(tmp_path / "store"), lambda _: None)({"alerts": [alert("support", "old").as_dict()]})
    assert registry.state().current == "v0002"


@pytest.mark.parametrize(("outcome", "served"), [("abstained", "v0001"), ("escalated", "v0002")])
def test_fewer_answers_speak_against_a_version_only_if_it_withholds_them(
    registry: Registry, answers: Answers, tmp_path: Path, outcome: str, served: str
) -> None:
    on(registry, "v0002")
    rated(answers, "v0001", 40, 0, ago=500)
    rated(answers, "v0002", 20, 0)
    rated(answers, "v0002", 20, 0, outcome=outcome)
    found = replace(alert("outcome", "v0002-answered-k{}-0"), what="answered", since_id="v0002-answered-k{}-0")
    on_drift(registry.folder, str(tmp_path / "store"), lambda _: None)({"problem": "", "alerts": [found.as_dict()]})
    assert registry.state().current == served


def alert(signal: str, opened_id: str) -> Alert:
    """A fall that opened with that answer."""
    facts = {"about": "outputs", "title": signal, "message": "It fell.", "severity": "medium"}
    facts["effect_name"] = "Cohen's h"
    numbers = {"statistic": 1.0, "threshold": 1.0, "since": 1, "since_id": "a", "opened": 2, "opened_id": opened_id}
    return Alert(id="a", signal=signal, what="", effect=-0.4, before=0.9, after=0.6, **facts, **numbers)
