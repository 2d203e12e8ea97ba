"""Whether the version that is served, or the one that is tried, made answers worse; and taking it back where it did.

That questions change is no version's doing, so alerts about inputs take nothing back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from meditune.errors import DataError, MedituneError
from meditune.files import read_jsonl
from meditune.operate.drift import canaries
from meditune.operate.drift.alerts import Alert
from meditune.operate.drift.monitor import Monitor
from meditune.operate.drift.reference import load
from meditune.operate.drift.watching import state_of
from meditune.registry.failing import Counts, is_failing
from meditune.registry.registry import Registry
from meditune.registry.state import State
from meditune.store.answers import Answer, Answers
from meditune.store.opening import Place, open_store

log = logging.getLogger(__name__)
LESS_IS_WORSE = {"support", "ratings", "calibration", "confidence"}
"""Signals of numbers that mustn't fall"""
MORE_IS_WORSE = {"outcome": {"abstained"}, "ratings": {"down"}, "unanswerable": {"nothing found"}}
"""Categories that mustn't come more often"""


@dataclass(frozen=True)
class Looked:
    """What a look found."""

    taken_back: str | None = None
    """The version, if any"""
    served: str = ""
    why: list[str] = field(default_factory=list)
    """Sentences that speak against a version, or say that nothing does"""


def guard(
    folder: Path,
    store: Place | None = None,
    reference: Path | None = None,
    drift_state: Path | None = None,
    canary: Path | None = None,
) -> Looked:
    """Look once, and end the trial or roll back where answers got worse.

    `store` is a server's, `reference` what drift checks are held against, with their state beside it unless
    `drift_state` names it, `canary` the results of `meditune drift canary`.
    """
    registry = Registry(folder)
    state = registry.state()
    if state.current is None:
        raise DataError(f"Nothing in {folder} was promoted yet, so there is nothing to guard.")
    answers = Answers(open_store(store)) if store else None
    by_version = counted(answers) if answers else {}
    if state.trial and (why := list(_beside(by_version, state.trial.version, state.current))):
        registry.end_trial("; ".join(why), of=state.trial.version, withdraw=True)
        return Looked(state.trial.version, state.current, why)
    before = state.standing[-2] if len(state.standing) > 1 else None
    why = [
        *(_beside(by_version, state.current, before) if before else ()),
        *(_against(_open_alerts(reference, drift_state), answers, state) if reference else ()),
        *(_canaries(canary, state) if canary else ()),
    ]
    return _taken_back(registry, state, why)


def on_drift(
    folder: Path, store: Place, then: Callable[[Mapping[str, Any]], None]
) -> Callable[[Mapping[str, Any]], None]:
    """For a server that watches drift: rolls back by what each look found, and hands it on to `then`."""
    registry, answers = Registry(folder), Answers(open_store(store))
    names = [field.name for field in fields(Alert)]

    def told(found: Mapping[str, Any]) -> None:
        then(found)
        alerts = [Alert(**{name: row[name] for name in names}) for row in found.get("alerts", ())]
        try:
            state = registry.state()
            why = list(_against(alerts, answers, state)) if alerts and state.current else []
            if why and len(state.standing) > 1:
                looked = _taken_back(registry, state, why)
                log.error("%s was taken back, %s is served: %s", looked.taken_back, looked.served, "; ".join(why))
        except MedituneError as error:
            log.error("Drift speaks against the version that is served, but it can't be taken back: %s", error)

    return told


def _taken_back(registry: Registry, state: State, why: list[str]) -> Looked:
    assert state.current is not None, "the caller has looked"
    if not why:
        return Looked(None, state.current, [f"Nothing speaks against {state.current}."])
    if len(state.standing) < 2:
        return Looked(None, state.current, [*why, "There is no version before it to go back to."])
    return Looked(state.current, registry.rollback("; ".join(why), of=state.current), why)


def counted(answers: Answers) -> dict[str, dict[str, Counts]]:
    """For each version how many of its ratings were down, and how many of its answers abstained."""
    found: dict[str, dict[str, Counts]] = {}
    for _, answer, ratings in answers.in_order():
        counts = found.setdefault(version_of(answer), {"rated down": Counts(), "abstained": Counts()})
        if answer.outcome in ("answered", "abstained"):
            counts["abstained"].add(answer.outcome == "abstained")
        for rating in ratings:
            counts["rated down"].add(rating == "down")
    return found


def version_of(answer: Answer) -> str:
    """The id of the version that gave an answer; empty where no registry was served."""
    words = answer.model.rpartition(" ")[2].partition("-")
    return words[0] if words[1] else ""


def _beside(by_version: dict[str, dict[str, Counts]], id: str, other: str) -> Iterator[str]:
    mine, theirs = by_version.get(id, {}), by_version.get(other, {})
    for what, counts in mine.items():
        beside = theirs.get(what, Counts())
        if is_failing(counts, beside):
            yield (
                f"{counts.failed} of {counts.all} answers of {id} were {what}, and {beside.failed} of {beside.all} of "
                f"{other}"
            )


def _open_alerts(reference: Path, place: Path | None) -> list[Alert]:
    """Of the last drift check."""
    place = place or state_of(reference)
    return Monitor.load(place, load(reference)).alerts() if place.is_file() else []


def _against(alerts: Sequence[Alert], answers: Answers | None, state: State) -> Iterator[str]:
    """Alerts that say that answers got worse, and that opened with an answer of the current version."""
    for alert in alerts:
        opened = answers.get(alert.opened_id) if answers else None
        if says_worse(alert) and (opened is None or version_of(opened) == state.current):
            yield f"drift in {alert.signal} ({alert.severity}): {alert.said}"


def says_worse(alert: Alert) -> bool:
    """Whether an alert speaks against the answers, and not only of change."""
    if alert.what in MORE_IS_WORSE.get(alert.signal, ()):
        return alert.after > alert.before
    return alert.signal in LESS_IS_WORSE and not alert.what and alert.effect < 0


def _canaries(path: Path, state: State) -> Iterator[str]:
    """Canaries that got worse since the current version was promoted."""
    runs: Sequence[dict[str, Any]] = read_jsonl(path)
    if runs and str(runs[-1].get("time", "")) >= (state.promoted_at() or ""):
        verdict = canaries.verdict(path)
        if verdict["alert"]:
            yield f"canaries: {verdict['said']}"
