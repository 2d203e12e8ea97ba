"""Automatic rollback: if the served version or the version on trial made answers worse, that version is withdrawn.

A change in the questions is not a version's fault, so alerts about inputs never cause a rollback. The answers of a
version on trial are compared with the current version's answers in the same period. A version that a rollback restored
isn't rolled back automatically.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from meditune.errors import DataError, MedituneError
from meditune.files import read_jsonl
from meditune.model_registry import Counts, Registry, State, Trial, is_worse
from meditune.operate.drift import canaries
from meditune.operate.drift.drift_watcher import state_of
from meditune.operate.drift.monitor import Alert, Monitor
from meditune.operate.drift.reference import load
from meditune.store import StoreLocation, open_store
from meditune.store.answers import Answers

log = logging.getLogger(__name__)
LESS_IS_WORSE = {"support", "calibration", "confidence"}
MORE_IS_WORSE = {("outcome", "abstained"), ("ratings", "down")}
FEWER_IS_WORSE = {("ratings", "up")}
"""Categories that must not become less frequent; an alert about a signal with two categories can name either."""

REASON_TEXTS = {
    "rated down": "{0.failed} of {0.all} people rated {1} down",
    "abstained": "{1} abstained on {0.failed} of {0.all} questions",
}


@dataclass(frozen=True)
class VersionCheck:
    """The result of a check of the served version and the version on trial."""

    rolled_back: str | None = None
    served: str = ""
    why: list[str] = field(default_factory=list)


def guard(
    folder: Path, store: StoreLocation | None = None, reference: Path | None = None, canary: Path | None = None
) -> VersionCheck:
    """Check once, and end the trial or roll back if answers got worse.

    `reference` is the reference of the drift checks, with their state file next to it. `canary` is a file of canary
    runs. An alert counts only if the store still contains the answer at which the alert opened, because that answer
    names the version.
    """
    registry = Registry(folder)
    state = registry.state()
    if state.current is None:
        raise DataError(f"No version in {folder} has been promoted yet, so there is nothing to guard.")
    answers = Answers(open_store(store)) if store else None
    if state.trial and answers and (why := list(_evidence_against_trial(answers, state.trial, state.current))):
        registry.end_trial("; ".join(why), expected=state.trial.version, withdraw=True)
        return VersionCheck(state.trial.version, state.current, why)
    why = []
    if answers and reference and (place := state_of(reference)).is_file():
        why += _against(Monitor.load(place, load(reference)).alerts(), answers, state)
    begun, runs = state.latest_promotion(), read_jsonl(canary) if canary else []
    if canary and runs and begun and str(runs[-1].get("time", "")) >= begun.when:
        # Only runs since the promotion of the current version are evidence about it.
        verdict = canaries.verdict(canary, state.current)
        why += [f"canaries: {verdict['message']}"] if verdict["alert"] else []
    return _rolled_back(registry, state, why)


def on_drift(
    folder: Path, store: StoreLocation, callback: Callable[[Mapping[str, Any]], None]
) -> Callable[[Mapping[str, Any]], None]:
    """Return a callback for a server's drift checks.

    It passes each result to `callback`, and rolls back the served version if an alert shows that answers got worse.
    """
    registry, answers = Registry(folder), Answers(open_store(store))

    def roll_back_on_alert(result: Mapping[str, Any]) -> None:
        callback(result)
        alerts = [Alert.from_dict(row) for row in result.get("alerts", ())]
        try:
            state = registry.state()
            if state.current is None:
                return
            why = list(_against(alerts, answers, state))
            looked = _rolled_back(registry, state, why)
            if looked.rolled_back:
                log.error("%s was rolled back, %s is served: %s", looked.rolled_back, looked.served, "; ".join(why))
        except MedituneError as error:
            log.error("Drift indicates that the served version is worse, but it cannot be rolled back: %s", error)

    return roll_back_on_alert


def _rolled_back(registry: Registry, state: State, reasons: list[str]) -> VersionCheck:
    assert state.current is not None, "the caller has checked that a version is served"
    if not reasons:
        return VersionCheck(None, state.current, [f"No evidence against {state.current}."])
    if len(state.promoted) < 2:
        return VersionCheck(None, state.current, [*reasons, "There is no earlier version to roll back to."])
    begun = state.latest_promotion()
    if begun and begun.what == "rolled back":
        # The version was good before, so something else is wrong; otherwise all earlier versions would be rolled back
        # in turn.
        stays = (
            f"{state.current} replaced {begun.version} in a rollback. Such a version is not rolled back automatically."
        )
        return VersionCheck(None, state.current, [*reasons, stays])
    return VersionCheck(state.current, registry.rollback("; ".join(reasons), expected=state.current), reasons)


def counts_by_version(answers: Answers, since: float = 0.0) -> dict[str, dict[str, Counts]]:
    """Return, for each version, the counts of users who rated it down and of abstentions since a Unix time."""
    found: dict[str, dict[str, Counts]] = {}
    votes: dict[tuple[str, str], int] = Counter()
    for row in answers.exported():
        if row["time"] < since:
            continue
        version = _named(row["model"])
        counts = found.setdefault(version, {"rated down": Counts(), "abstained": Counts()})
        if row["outcome"] in ("answered", "abstained"):
            counts["abstained"].add(row["outcome"] == "abstained")
        for feedback in row["feedback"]:
            votes[version, feedback["who"]] += 1 if feedback["rating"] == "down" else -1
    for (version, _), down in votes.items():
        found[version]["rated down"].add(down > 0)
    return found


def _named(model: str) -> str:
    """Return the id of the version that gave an answer, or "" if no registry was served."""
    id, dash, _ = model.rpartition(" ")[2].partition("-")
    return id if dash else ""


def _evidence_against_trial(answers: Answers, trial: Trial, current: str) -> Iterator[str]:
    """Yield evidence against the version on trial, from the answers since the trial began."""
    by_version = counts_by_version(answers, datetime.fromisoformat(trial.since).timestamp())
    for what, counts in by_version.get(trial.version, {}).items():
        beside = by_version.get(current, {}).get(what, Counts())
        if is_worse(counts, beside):
            text = REASON_TEXTS[what]
            yield f"{text.format(counts, trial.version)} and {text.format(beside, current)}"


def _against(alerts: Sequence[Alert], answers: Answers, state: State) -> Iterator[str]:
    """Yield alerts that indicate worse answers and opened with an answer of the current version.

    An alert from before the version's latest promotion doesn't count, because whoever promoted it knew of the alert.
    """
    begun = state.latest_promotion()
    since = datetime.fromisoformat(begun.when).timestamp() if begun else 0.0
    for alert in alerts:
        opened = answers.get(alert.opened_id)
        if not opened or _named(opened.model) != state.current or opened.time < since:
            continue
        if is_rated_worse(alert) or _abstains_more(alert, answers):
            yield f"drift in {alert.signal} ({alert.severity}): {alert.message}"


def _abstains_more(alert: Alert, answers: Answers) -> bool:
    """Return whether an alert about fewer answered questions opened because more answers are withheld.

    The alert names only the outcome that changed most, and the users' questions could also cause the others.
    """
    began = answers.get(alert.since_id)
    if not began or (alert.signal, alert.what) != ("outcome", "answered") or alert.after >= alert.before:
        return False
    since, earlier = Counts(), Counts()
    for row in answers.exported():
        if row["outcome"] in ("answered", "abstained"):
            (since if row["time"] >= began.time else earlier).add(row["outcome"] == "abstained")
    return is_worse(since, earlier)


def is_rated_worse(alert: Alert) -> bool:
    """Return whether an alert indicates worse answers, not only a change."""
    if (alert.signal, alert.what) in MORE_IS_WORSE:
        return alert.after > alert.before
    if (alert.signal, alert.what) in FEWER_IS_WORSE:
        return alert.after < alert.before
    return alert.signal in LESS_IS_WORSE and not alert.what and alert.effect < 0
