"""Whether the version that is served, or the one that is tried, made answers worse; and taking it back where it did.

That questions change is no version's doing: answers are counted against those of another version to the same questions'
share at the same time, which a trial gives; alerts about inputs take nothing back; and what was gone back to stays.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from meditune.errors import DataError, MedituneError
from meditune.files import read_jsonl
from meditune.model_registry import Counts, Registry, State, Trial, is_worse
from meditune.operate.drift import canaries
from meditune.operate.drift.alerts import Alert
from meditune.operate.drift.drift_watcher import state_of
from meditune.operate.drift.monitor import Monitor
from meditune.operate.drift.reference import load
from meditune.store.answers import Answer, Answers
from meditune.store.open_store import Place, open_store

log = logging.getLogger(__name__)
LESS_IS_WORSE = {"support", "calibration", "confidence"}
"""Signals of numbers that mustn't fall"""
MORE_IS_WORSE = {("outcome", "abstained"), ("ratings", "down")}
"""Categories that mustn't come more often"""
FEWER_IS_WORSE = {("ratings", "up")}
"""Categories that mustn't come less often: of two, an alert names either"""

SAID = {
    "rated down": "{0.failed} of {0.all} people rated {1} down",
    "abstained": "{1} kept {0.failed} of {0.all} answers back",
}
"""What is counted of a version, in words"""


@dataclass(frozen=True)
class VersionCheck:
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
) -> VersionCheck:
    """Look once, and end the trial or roll back where answers got worse.

    `store` is a server's, `reference` what drift checks are held against, with their state beside it unless
    `drift_state` names it, `canary` the results of `meditune drift canary`. An alert counts only where the store still
    has the answer that opened it, which says whose it was.
    """
    registry = Registry(folder)
    state = registry.state()
    if state.current is None:
        raise DataError(f"Nothing in {folder} was promoted yet, so there is nothing to guard.")
    answers = Answers(open_store(store)) if store else None
    if state.trial and answers and (why := list(_beside(answers, state.trial, state.current))):
        registry.end_trial("; ".join(why), of=state.trial.version, withdraw=True)
        return VersionCheck(state.trial.version, state.current, why)
    why = [
        *(_against(_open_alerts(reference, drift_state), answers, state) if reference and answers else ()),
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
            if state.current is None:
                return
            why = list(_against(alerts, answers, state))
            looked = _taken_back(registry, state, why)
            if looked.taken_back:
                log.error("%s was taken back, %s is served: %s", looked.taken_back, looked.served, "; ".join(why))
        except MedituneError as error:
            log.error("Drift speaks against the version that is served, but it can't be taken back: %s", error)

    return told


def _taken_back(registry: Registry, state: State, why: list[str]) -> VersionCheck:
    assert state.current is not None, "the caller has looked"
    if not why:
        return VersionCheck(None, state.current, [f"Nothing speaks against {state.current}."])
    if len(state.standing) < 2:
        return VersionCheck(None, state.current, [*why, "There is no version before it to go back to."])
    begun = state.taken_up()
    if begun and begun.what == "rolled back":
        # It was good before, so something else is wrong, and the versions before it would fall one after the other.
        stays = f"{state.current} is what {begun.version} was rolled back to, so it isn't taken back by itself."
        return VersionCheck(None, state.current, [*why, stays])
    return VersionCheck(state.current, registry.rollback("; ".join(why), of=state.current), why)


def counted(answers: Answers, since: float = 0.0) -> dict[str, dict[str, Counts]]:
    """For each version how many of those who rated it mostly rated it down, and how many of its answers abstained, of
    the answers since then (seconds since 1970).
    """
    found: dict[str, dict[str, Counts]] = {}
    votes: dict[tuple[str, str], int] = Counter()
    for row in answers.exported():
        if row["time"] < since:
            continue
        version = _named(row["model"])
        counts = found.setdefault(version, {"rated down": Counts(), "abstained": Counts()})
        if row["outcome"] in ("answered", "abstained"):
            counts["abstained"].add(row["outcome"] == "abstained")
        for said in row["feedback"]:
            votes[version, said["who"]] += 1 if said["rating"] == "down" else -1
    for (version, _), down in votes.items():
        found[version]["rated down"].add(down > 0)
    return found


def version_of(answer: Answer) -> str:
    """The id of the version that gave an answer; empty where no registry was served."""
    return _named(answer.model)


def _named(model: str) -> str:
    words = model.rpartition(" ")[2].partition("-")
    return words[0] if words[1] else ""


def _beside(answers: Answers, trial: Trial, current: str) -> Iterator[str]:
    """What speaks against the version that is tried, of all that was answered since it is."""
    by_version = counted(answers, datetime.fromisoformat(trial.since).timestamp())
    mine, theirs = by_version.get(trial.version, {}), by_version.get(current, {})
    for what, counts in mine.items():
        beside = theirs.get(what, Counts())
        if is_worse(counts, beside):
            yield " and ".join((SAID[what].format(counts, trial.version), SAID[what].format(beside, current)))


def _open_alerts(reference: Path, place: Path | None) -> list[Alert]:
    """Of the last drift check."""
    place = place or state_of(reference)
    return Monitor.load(place, load(reference)).alerts() if place.is_file() else []


def _against(alerts: Sequence[Alert], answers: Answers, state: State) -> Iterator[str]:
    """Alerts that say that answers got worse, and that opened with an answer of the current version."""
    for alert in alerts:
        opened = answers.get(alert.opened_id)
        if opened and is_rated_worse(alert) and version_of(opened) == state.current:
            yield f"drift in {alert.signal} ({alert.severity}): {alert.said}"


def is_rated_worse(alert: Alert) -> bool:
    """Whether an alert speaks against the answers, and not only of change."""
    if (alert.signal, alert.what) in MORE_IS_WORSE:
        return alert.after > alert.before
    if (alert.signal, alert.what) in FEWER_IS_WORSE:
        return alert.after < alert.before
    return alert.signal in LESS_IS_WORSE and not alert.what and alert.effect < 0


def _canaries(path: Path, state: State) -> Iterator[str]:
    """Canaries that the current version answered worse since it is served."""
    runs: Sequence[dict[str, Any]] = read_jsonl(path)
    begun = state.taken_up()
    if runs and begun and str(runs[-1].get("time", "")) >= begun.when:
        verdict = canaries.verdict(path, state.current)
        if verdict["alert"]:
            yield f"canaries: {verdict['said']}"
