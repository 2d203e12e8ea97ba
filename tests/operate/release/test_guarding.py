"""Versions are taken back where answers got worse, by ratings, alerts and canaries; not because questions change."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from meditune.operate.drift.alerts import Alert
from meditune.operate.release.guarding import on_drift, says_worse
from meditune.registry.registry import Registry
from meditune.store.answers import Answer, Answers, Feedback, Rating
from meditune.store.base import Base
from tests.commands import bench, jsonl, meditune
from tests.registry.runs import PASSED, finished, with_versions


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with bench(tmp_path_factory.mktemp("guarding")) as place:
        yield finished(place)


@pytest.fixture
def registry(run: Path, tmp_path: Path) -> Registry:
    return with_versions(tmp_path / "registry", run, PASSED)


def rated(answers: Answers, version: str, count: int, down: int, outcome: str = "answered") -> None:
    """So many rated answers of a version, the first ones rated down."""
    for number in range(count):
        id = f"{version}-{outcome}-{number}"
        answers.keep(Answer(id, "k", "ask", f"clinic {version}-0123456789ab", outcome=outcome))
        rating: Rating = "down" if number < down else "up"
        answers.say(Feedback(id, "k", rating))


def test_a_version_that_is_rated_worse_is_rolled_back(registry: Registry, tmp_path: Path) -> None:
    answers = Answers(Base(tmp_path / "store"))
    words = ("registry", "guard", registry.folder, "--store", tmp_path / "store")
    rated(answers, "v0001", 60, 6)
    registry.promote("v0002")
    rated(answers, "v0002", 20, 3)
    assert meditune(*words).last == "Nothing speaks against v0002."
    rated(answers, "v0002", 20, 20, "abstained")
    done = meditune(*words)
    assert done.code == 6
    assert "were rated down, and 6 of 60 of v0001" in done.out
    assert "were abstained" in done.out
    assert "v0002 was taken back; v0001 is served" in done.err
    assert registry.state().current == "v0001"
    assert "rated down" in registry.state().history[-1].why
    # Once is enough, and what is before it stays.
    assert meditune(*words).code == 0


def test_a_canary_that_is_rated_worse_is_ended(registry: Registry, tmp_path: Path) -> None:
    answers = Answers(Base(tmp_path / "store"))
    registry.try_out("v0002", "canary", 10)
    rated(answers, "v0001", 60, 6)
    rated(answers, "v0002", 10, 9)
    done = meditune("registry", "guard", registry.folder, "--store", tmp_path / "store")
    assert done.code == 6
    state = registry.state()
    assert (state.current, state.trial, state.withdrawn) == ("v0001", None, ("v0002",))


def test_canaries_that_got_worse_since_it_was_promoted_roll_it_back(registry: Registry, tmp_path: Path) -> None:
    good = {f"c{number}": True for number in range(12)}
    bad = dict.fromkeys(good, False)
    early, late = "2020-01-01T00:00:00+00:00", "2099-01-01T00:00:00+00:00"
    registry.promote("v0002")
    results = jsonl(tmp_path / "canaries.jsonl", [{"time": early, "right": good}, {"time": early, "right": bad}])
    words = ("registry", "guard", registry.folder, "--canary", results)
    assert meditune(*words).code == 0
    jsonl(results, [{"time": early, "right": good}, {"time": late, "right": bad}])
    done = meditune(*words)
    assert done.code == 6
    assert "canaries: 0 of 12 right" in done.out
    assert registry.state().current == "v0001"


@pytest.mark.parametrize(
    ("signal", "what", "effect", "before", "after", "worse"),
    [
        ("support", "", -0.4, 0.9, 0.6, True),
        ("support", "", 0.4, 0.6, 0.9, False),
        ("outcome", "abstained", 0.5, 0.1, 0.3, True),
        ("outcome", "answered", 0.5, 0.8, 0.9, False),
        ("ratings", "down", 0.5, 0.1, 0.3, True),
        ("ratings", "up", -0.5, 0.9, 0.7, False),
        ("length", "", 0.5, 10, 40, False),
        ("topics", "heart", 0.5, 0.1, 0.4, False),
    ],
)
def test_only_worse_answers_speak_against_a_version(signal, what, effect, before, after, worse) -> None:
    facts = {"about": "outputs", "title": signal, "said": "", "severity": "medium", "effect_name": "Cohen's h"}
    numbers = {"statistic": 1.0, "threshold": 1.0, "since": 1, "since_id": "a", "opened": 2, "opened_id": "b"}
    alert = Alert(id="a", signal=signal, what=what, effect=effect, before=before, after=after, **facts, **numbers)
    assert says_worse(alert) is worse


def test_a_server_that_watches_drift_takes_back_what_its_alerts_speak_against(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = Answers(Base(tmp_path / "store"))
    for version in ("v0001", "v0002"):
        answers.keep(Answer(version, "k", "ask", f"clinic {version}-0123456789ab"))
    registry.promote("v0002")
    seen: list[object] = []
    told = on_drift(registry.folder, str(tmp_path / "store"), seen.append)
    told({"problem": "", "alerts": [asdict(alert("length", "v0002")), asdict(alert("support", "v0001"))]})
    assert registry.state().current == "v0002"
    told({"problem": "", "alerts": [asdict(alert("support", "v0002"))]})
    assert registry.state().current == "v0001"
    assert "v0002 was taken back, v0001 is served: drift in support" in caplog.text
    told({"problem": "", "alerts": [asdict(alert("support", "v0001"))]})
    assert registry.state().current == "v0001"
    assert len(seen) == 3


def alert(signal: str, opened_id: str) -> Alert:
    """A fall that opened with that answer."""
    facts = {"about": "outputs", "title": signal, "said": "It fell.", "severity": "medium", "effect_name": "Cohen's h"}
    numbers = {"statistic": 1.0, "threshold": 1.0, "since": 1, "since_id": "a", "opened": 2, "opened_id": opened_id}
    return Alert(id="a", signal=signal, what="", effect=-0.4, before=0.9, after=0.6, **facts, **numbers)
