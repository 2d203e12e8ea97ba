"""The drift monitor: `add` each request, and read `alerts`. Each request advances the e-detectors of all signals.

An alert opens when there is enough evidence for a large enough change. It can grow more severe, and it closes when the
change is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from meditune.errors import DataError
from meditune.operate.drift import e_detectors
from meditune.operate.drift.e_detectors import RECENT, WINDOW, Arrays, BlockTrack, Effect, NumberTrack, ShareTrack
from meditune.operate.drift.reference import Reference
from meditune.operate.drift.reference import read as read_arrays
from meditune.operate.drift.reference import write as write_arrays
from meditune.operate.drift.signals import BY_NAME, DESCRIBED, MEANING, Request

AnyTrack = NumberTrack | ShareTrack | BlockTrack
Severity = Literal["slight", "small", "medium", "large"]
SEVERITIES: tuple[Severity, ...] = ("slight", "small", "medium", "large")

CUTS: dict[Effect, tuple[float, float, float]] = {
    "Cliff's delta": (0.147, 0.33, 0.474),
    "Cohen's h": (0.2, 0.5, 0.8),
    "MMD": (0.05, 0.15, 0.3),
}
"""Lower bounds of small, medium and large effects. The bounds for Cliff's delta are from Romano et al. 2006, and those
for Cohen's h from Cohen 1988. The bounds for the MMD agree with both on the same streams (`benchmarks/drift.py`).
"""
STEP = 10


@dataclass(frozen=True)
class Policy:
    """The policy for opening and closing alerts."""

    false_alarms: float = 0.1
    """Expected number of false alarms, over all signals, in `requests` requests without drift"""
    requests: int = 10_000
    min_severity: Severity = "small"
    """A less severe change opens no alert, however strong the evidence is."""
    close_at: float = 0.5
    """Fraction of the smallest effect that opens an alert. An alert closes if its effect stays below this fraction for
    `hold` requests.
    """
    hold: int = 50
    cool_down: int = 200


@dataclass(kw_only=True)
class Alert:
    """An alert about a change in one signal."""

    id: str
    signal: str
    about: str
    title: str
    what: str
    """The category or direction that changed most; empty if the signal has only one column"""
    message: str = ""
    """A sentence about the change. In JSON, the key is `said`, because programs rely on that name."""
    severity: Severity = "slight"
    effect: float = 0.0
    effect_name: Effect
    before: float = 0.0
    after: float = 0.0
    statistic: float = 0.0
    threshold: float
    since: int
    """Number of the request at which the change probably began, as counted by the monitor"""
    since_id: str
    opened: int
    opened_id: str
    closed: int | None = None
    column: int = 0
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """True until the alert closes."""
        return self.closed is None

    def as_dict(self) -> dict[str, Any]:
        """Return the alert as a dict for JSON."""
        stored = asdict(self)
        return {"said": stored.pop("message"), **stored, "state": "open" if self.is_open else "closed"}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Alert:
        """Return the alert from the result of `as_dict`."""
        facts = {"message": stored["said"], **stored}
        return cls(**{each.name: facts[each.name] for each in fields(cls)})


def severity(effect: float, name: Effect) -> Severity:
    """Return the severity of an effect size."""
    return SEVERITIES[sum(abs(effect) >= cut for cut in CUTS[name])]


_STATE = ("column", "since", "opened", "open", "level", "small_for", "cool_until")


class AlertTracker:
    """Opens and closes the alerts of one signal."""

    def __init__(self, track: AnyTrack, threshold: float, policy: Policy) -> None:
        self.track, self.threshold, self.policy = track, threshold / track.weight, policy
        self.open = False
        self.column = self.since = self.opened = self.level = self.small_for = self.cool_until = 0

    def step(self, count: int) -> Literal["", "opened", "grew", "closed"]:
        """Advance to request number `count`; return how the alert changed, or "" if it didn't."""
        return self._while_open(count) if self.open else self._while_closed(count)

    def _while_closed(self, count: int) -> Literal["", "opened"]:
        track = self.track
        if track.detector.statistic < self.threshold or count < self.cool_until:
            return ""
        column, since = track.detector.strongest_bet()
        level = SEVERITIES.index(severity(track.effect(column, since), track.effect_name))
        if level < SEVERITIES.index(self.policy.min_severity):
            return ""
        self.open, self.column, self.opened, self.level, self.small_for = True, column, count, level, 0
        self.since = since
        track.forget(since)
        track.absorbing = False
        return "opened"

    def _while_open(self, count: int) -> Literal["", "grew", "closed"]:
        if count % STEP:
            return ""
        name = self.track.effect_name
        effect = abs(self.track.effect(self.column))
        smallest = CUTS[name][max(0, SEVERITIES.index(self.policy.min_severity) - 1)]
        gone = effect < self.policy.close_at * smallest and count - self.opened >= WINDOW
        self.small_for = self.small_for + STEP if gone else 0
        if self.small_for >= self.policy.hold:
            self.open, self.cool_until = False, count + self.policy.cool_down
            self.track.absorbing = True
            self.track.detector.restart()
            return "closed"
        level = SEVERITIES.index(severity(effect, name))
        if level > self.level and count - self.opened >= self.policy.hold:
            self.level = level
            return "grew"
        return ""


def change_sentence(alert: Alert) -> str:
    """Return a sentence about the change."""
    signal = BY_NAME.get(alert.signal)
    if signal is None:
        return (
            f"Questions as a whole differ from the reference: MMD {alert.after:.2f}; about 0 is expected without drift."
        )
    if signal.kind == "category":
        named = f" of {alert.what!r}" if alert.what else ""
        return f"{signal.title}: the share{named} went from {100 * alert.before:.1f}% to {100 * alert.after:.1f}%."
    named = f" ({alert.what})" if alert.what else ""
    word = signal.rise_word if alert.effect > 0 else signal.fall_word
    if alert.effect > 0 and alert.after <= alert.before:
        word = "distributed differently"
    return f"{signal.title}{named}: {word}, median {alert.before:.3g} before and {alert.after:.3g} now."


KIND = "state"
DELAYED_SIGNALS = ("feedback", "ratings", "calibration")
"""Signals whose values are only known some time after the answer"""
HISTORY = 20_000
_SAVED = ("count", "last", "last_id", "source", "first_rows", "missing", "outcomes")
"""Attributes of a monitor that its state file contains as they are"""
_ADVICE = "Delete this state file; the next check then starts from the reference."


class Monitor:
    """Compares requests with a reference, one request at a time. Not thread-safe."""

    def __init__(self, reference: Reference, policy: Policy | None = None) -> None:
        self.reference, self.policy = reference, policy or Policy()
        self.count, self.last, self.last_id = 0, int(reference.about.get("last", 0)), ""
        self.source = ""
        """The store or file that the requests come from, as RequestSource names it; empty if it isn't known"""
        self.first_rows: list[str] = []
        """The hashes of the first requests of a file; empty for a store"""
        self.all_alerts: list[Alert] = []
        self.missing: dict[str, int] = dict.fromkeys(reference.signals, 0)
        self.history: deque[NDArray[np.float32]] = deque(maxlen=HISTORY)
        self.outcomes = 0
        """Number of the last request whose ratings were added"""
        self._ids: deque[str] = deque(maxlen=RECENT)
        self._numbers: dict[str, int] = {}
        self.tracks: dict[str, AnyTrack] = {name: NumberTrack(name, rows) for name, rows in reference.numbers.items()}
        self.tracks |= {name: ShareTrack(counts) for name, counts in reference.shares.items()}
        if reference.features is not None:
            self.tracks[MEANING] = BlockTrack(reference.features)
        self._prompt = [name for name in self.tracks if name not in DELAYED_SIGNALS]
        self._late = [name for name in self.tracks if name in DELAYED_SIGNALS]
        limit = e_detectors.threshold(self.policy.false_alarms, self.policy.requests, len(self.tracks))
        self._watches = {name: AlertTracker(track, limit, self.policy) for name, track in self.tracks.items()}

    def add(self, request: Request) -> list[Alert]:
        """Add one request; return the alerts that opened, grew or closed."""
        self.count += 1
        self.last, self.last_id = request.sequence or self.count, request.id
        if len(self._ids) == RECENT:
            self._numbers.pop(self._ids[0], None)
        self._ids.append(request.id)
        self._numbers[request.id] = self.count
        # Seeded by the request's number, so that a resumed check breaks ties in the same way as an uninterrupted one.
        rng = np.random.default_rng([self.reference.about["seed"], self.count])
        changed = self._take(request, self._prompt, rng, self.count)
        self.history.append(np.array([track.detector.statistic for track in self.tracks.values()], dtype=np.float32))
        return changed

    def add_outcome(self, request: Request) -> list[Alert]:
        """Add the ratings of an earlier request; return the alerts that opened, grew or closed.

        Call this in the order of the requests. A request that isn't later than the last one is ignored.
        """
        number = self.number_of(request.id)
        if number is None or number <= self.outcomes:
            return []
        self.outcomes = number
        rng = np.random.default_rng([self.reference.about["seed"], number, 1])
        return self._take(request, self._late, rng, number)

    def alerts(self) -> list[Alert]:
        """Return the open alerts, most severe first."""
        found = [alert for alert in self.all_alerts if alert.is_open]
        return sorted(found, key=lambda alert: (-SEVERITIES.index(alert.severity), alert.since))

    def limits(self) -> dict[str, float]:
        """Return the threshold of each signal."""
        return {name: watch.threshold for name, watch in self._watches.items()}

    def number_of(self, id: str) -> int | None:
        """Return a request's number, or None if it wasn't added or is too old."""
        return self._numbers.get(id)

    def recent_ids(self) -> list[str]:
        """Return the ids of the last RECENT requests, newest first."""
        return list(reversed(self._ids))

    def _id_of(self, number: int) -> str:
        place = number - (self.count - len(self._ids)) - 1
        return self._ids[place] if 0 <= place < len(self._ids) else ""

    def _take(self, request: Request, names: Sequence[str], rng: np.random.Generator, number: int) -> list[Alert]:
        shape, vector = self.reference.shape, request.vector
        for name in names:
            track = self.tracks[name]
            if isinstance(track, BlockTrack):
                features = None
                if vector is not None and shape.kernel is not None:
                    features = shape.kernel.features(vector[None])[0]
                is_known = track.add(features, number, rng)
            else:
                is_known = track.add(BY_NAME[name].read(request, shape), number, rng)
            self.missing[name] += not is_known
        events = {name: self._watches[name].step(self.count) for name in names}
        return [self._alert(name, event, request.id) for name, event in events.items() if event]

    def _alert(self, name: str, event: str, request_id: str) -> Alert:
        tracker = self._watches[name]
        track, column = tracker.track, tracker.column
        if event == "opened":
            alert = Alert(
                id=f"{self.reference.sha256[:8] or 'fitted'}-{name}-{self.count}",
                signal=name,
                about=DESCRIBED[name].about,
                title=DESCRIBED[name].title,
                what=track.columns[column] if len(track.columns) > 1 else "",
                effect_name=track.effect_name,
                threshold=tracker.threshold,
                since=tracker.since,
                since_id=self._id_of(tracker.since),
                opened=self.count,
                # Ratings are read late, so the alert isn't about the latest answer.
                opened_id=request_id,
                column=column,
            )
            self.all_alerts.append(alert)
        alert = next(each for each in reversed(self.all_alerts) if each.signal == name)
        if event == "closed":
            alert.closed = self.count
            return alert
        alert.effect = track.effect(column, alert.since)
        alert.severity = severity(alert.effect, alert.effect_name)
        alert.before, alert.after = track.before_and_after(column, alert.since)
        alert.statistic = track.detector.statistic
        alert.message = change_sentence(alert)
        return alert

    def save(self, path: Path) -> None:
        """Save the monitor's state atomically."""
        stored: Arrays = {}
        for name, track in self.tracks.items():
            stored |= {f"{name}/{key}": value for key, value in track.saved().items()}
        stored["history"] = np.array(self.history, dtype=np.float32).reshape(len(self.history), len(self.tracks))
        about = {
            "reference": self.reference.sha256,
            "policy": self.policy.__dict__,
            **{name: getattr(self, name) for name in _SAVED},
            "ids": list(self._ids),
            "alerts": [alert.as_dict() for alert in self.all_alerts],
            "watches": {name: {key: vars(watch)[key] for key in _STATE} for name, watch in self._watches.items()},
        }
        write_arrays(path, KIND, about, stored)

    @classmethod
    def load(cls, path: Path, reference: Reference) -> Monitor:
        """Return the monitor that `save` stored. Raises DataError if the file is damaged or has another reference."""
        about, stored, _ = read_arrays(path, KIND, _ADVICE)
        try:
            if about["reference"] != reference.sha256:
                raise DataError(f"{path} belongs to another reference. {_ADVICE}")
            return cls._restored(about, stored, reference)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is damaged, or another version of Meditune wrote it. {_ADVICE}") from error

    @classmethod
    def _restored(cls, about: Mapping[str, Any], stored: Arrays, reference: Reference) -> Monitor:
        _require_keys(about["policy"], [each.name for each in fields(Policy)])
        _require_keys(about["missing"], reference.signals)
        monitor = cls(reference, Policy(**about["policy"]))
        for name in _SAVED:
            setattr(monitor, name, about[name])
        monitor._ids.extend(about["ids"])
        first = monitor.count - len(monitor._ids) + 1
        monitor._numbers = {id: first + place for place, id in enumerate(monitor._ids)}
        monitor.all_alerts = [Alert.from_dict(each) for each in about["alerts"]]
        monitor.history.extend(stored["history"])
        for name, track in monitor.tracks.items():
            arrays = {key.partition("/")[2]: value for key, value in stored.items() if key.startswith(f"{name}/")}
            track.restore(arrays)
            _require_keys(about["watches"][name], _STATE)
            vars(monitor._watches[name]).update(about["watches"][name])
        return monitor


def _require_keys(stored: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise KeyError unless a stored mapping has exactly these keys."""
    if differing := stored.keys() ^ set(names):
        raise KeyError(*sorted(differing))
