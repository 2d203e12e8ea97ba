"""The drift monitor: `add` each request, and read `alerts`. Each request advances the e-detectors of all signals."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meditune.errors import DataError
from meditune.operate.drift import e_detectors
from meditune.operate.drift.alerts import SEVERITIES, Alert, AlertTracker, AnyTrack, Policy, change_sentence, severity
from meditune.operate.drift.reference import Arrays, Reference
from meditune.operate.drift.reference import read as read_arrays
from meditune.operate.drift.reference import write as write_arrays
from meditune.operate.drift.signal_tracks import RECENT, BlockTrack, NumberTrack, ShareTrack
from meditune.operate.drift.signals import BY_NAME, MEANING, MEANING_TITLE, Request

Floats = NDArray[np.float64]


def _tracks(reference: Reference) -> dict[str, AnyTrack]:
    """Return a track for each signal of the reference, by name."""
    tracks: dict[str, AnyTrack] = {name: NumberTrack(name, values) for name, values in reference.numbers.items()}
    tracks |= {name: ShareTrack(counts) for name, counts in reference.shares.items()}
    if reference.features is not None:
        tracks[MEANING] = BlockTrack(reference.features)
    return tracks


KIND = "state"
DELAYED_SIGNALS = ("feedback", "ratings", "calibration")
"""Signals that are only known some time after the answer"""
HISTORY = 20_000
"""Number of requests whose statistics are stored for the plot"""
_ADVICE = "Delete it; the next check starts from the reference."
_OLD_POLICY_KEYS = {"alarms": "false_alarms", "least": "min_severity"}
"""Names in the states of earlier versions"""


class Monitor:
    """A comparison of requests with a reference, one request at a time. It is not thread-safe.

    A request takes well under a millisecond (`benchmarks/drift.py`), without its embedding, which the caller computes.
    """

    def __init__(self, reference: Reference, policy: Policy | None = None) -> None:
        self.reference, self.policy = reference, policy or Policy()
        self.count, self.last, self.last_id = 0, int(reference.about.get("last", 0)), ""
        self.all_alerts: list[Alert] = []
        self.missing: dict[str, int] = dict.fromkeys(reference.signals, 0)
        self.history: deque[NDArray[np.float32]] = deque(maxlen=HISTORY)
        self.outcomes = 0
        """Number of the last request whose outcome is known"""
        self._ids: deque[str] = deque(maxlen=RECENT)
        self._numbers: dict[str, int] = {}
        self.tracks = _tracks(reference)
        self._prompt = [name for name in self.tracks if name not in DELAYED_SIGNALS]
        self._late = [name for name in self.tracks if name in DELAYED_SIGNALS]
        limit = e_detectors.threshold(self.policy.false_alarms, self.policy.requests, len(self.tracks))
        self._watches = {name: AlertTracker(track, limit, self.policy) for name, track in self.tracks.items()}

    def add(self, request: Request) -> list[Alert]:
        """Add one request; return the alerts that opened, grew or closed."""
        self.count += 1
        self.last, self.last_id = request.sequence or self.count, request.id
        self._number(request.id)
        # Seeded by the request's number, so that a resumed check breaks ties in the same way as an uninterrupted one.
        rng = np.random.default_rng([self.reference.about["seed"], self.count])
        self._take(request, self._prompt, rng)
        changed = self._stepped(self._prompt)
        self.history.append(np.array([track.detector.statistic for track in self.tracks.values()], dtype=np.float32))
        return changed

    def add_outcome(self, request: Request) -> list[Alert]:
        """Add the outcome of an earlier request: its ratings, or that it has none.

        Call it in the order of the requests. A request that had its outcome added, or is too old, is ignored.
        """
        number = self.number_of(request.id)
        if number is None or number <= self.outcomes:
            return []
        self.outcomes = number
        rng = np.random.default_rng([self.reference.about["seed"], number, 1])
        self._take(request, self._late, rng, number)
        return self._stepped(self._late)

    def alerts(self) -> list[Alert]:
        """Return the open alerts, the largest first."""
        found = [alert for alert in self.all_alerts if alert.is_open]
        return sorted(found, key=lambda alert: (-SEVERITIES.index(alert.severity), alert.since))

    def limits(self) -> dict[str, float]:
        """The threshold of each signal."""
        return {name: watch.threshold for name, watch in self._watches.items()}

    def number_of(self, id: str) -> int | None:
        """Return a request's number, or None if it wasn't added or is too old."""
        return self._numbers.get(id)

    def id_of(self, number: int) -> str:
        """Return the id of a request by its number, or "" if it is too old."""
        place = number - (self.count - len(self._ids)) - 1
        return self._ids[place] if 0 <= place < len(self._ids) else ""

    def _number(self, id: str) -> None:
        if len(self._ids) == RECENT:
            self._numbers.pop(self._ids[0], None)
        self._ids.append(id)
        self._numbers[id] = self.count

    def _stepped(self, names: Sequence[str]) -> list[Alert]:
        watches = {name: self._watches[name] for name in names}
        return [self._alert(name, what) for name, watch in watches.items() if (what := watch.step(self.count))]

    def _take(
        self, request: Request, names: Sequence[str], rng: np.random.Generator, number: int | None = None
    ) -> None:
        shape, vector = self.reference.shape, request.vector
        for name in names:
            track = self.tracks[name]
            if isinstance(track, BlockTrack):
                features = None
                if vector is not None and shape.kernel is not None:
                    features = shape.kernel.features(vector[None])[0]
                is_known = track.add(features, number or self.count, rng)
            else:
                is_known = track.add(BY_NAME[name].read(request, shape), number or self.count, rng)
            self.missing[name] += not is_known

    def _alert(self, name: str, event: str) -> Alert:
        watch = self._watches[name]
        if event == "opened":
            alert = self._opened(name, watch)
            self.all_alerts.append(alert)
            return alert
        alert = next(each for each in reversed(self.all_alerts) if each.signal == name)
        if event == "closed":
            alert.closed = self.count
        else:
            self._measure(alert, watch)
        return alert

    def _opened(self, name: str, tracker: AlertTracker) -> Alert:
        signal, track, column = BY_NAME.get(name), tracker.track, tracker.column
        several = len(track.columns) > 1
        alert = Alert(
            id=f"{self.reference.sha256[:8] or 'fitted'}-{name}-{self.count}",
            signal=name,
            about=signal.about if signal else "inputs",
            title=signal.title if signal else MEANING_TITLE,
            what=track.columns[column] if several else "",
            message="",
            severity="small",
            effect=0.0,
            effect_name=track.effect_name,
            before=0.0,
            after=0.0,
            statistic=0.0,
            threshold=tracker.threshold,
            since=tracker.since,
            since_id=self.id_of(tracker.since),
            opened=self.count,
            opened_id=self.last_id,
            column=column,
        )
        self._measure(alert, tracker)
        return alert

    def _measure(self, alert: Alert, tracker: AlertTracker) -> None:
        """Measure the current size of the change."""
        track = tracker.track
        alert.effect = track.effect(tracker.column, alert.since)
        alert.severity = severity(alert.effect, alert.effect_name)
        alert.before, alert.after = track.before_and_after(tracker.column, alert.since)
        alert.statistic = track.detector.statistic
        alert.message = change_sentence(alert)

    def save(self, path: Path) -> None:
        """Save the monitor's state atomically."""
        stored: Arrays = {}
        for name, track in self.tracks.items():
            stored |= {f"{name}/{key}": value for key, value in track.saved().items()}
        stored["history"] = np.array(self.history, dtype=np.float32).reshape(len(self.history), len(self.tracks))
        about = {
            "reference": self.reference.sha256,
            "policy": self.policy.__dict__,
            "count": self.count,
            "last": self.last,
            "last_id": self.last_id,
            "outcomes": self.outcomes,
            "ids": list(self._ids),
            "missing": self.missing,
            "alerts": [alert.__dict__ for alert in self.all_alerts],
            "watches": {name: watch.saved() for name, watch in self._watches.items()},
        }
        write_arrays(path, KIND, about, stored)

    @classmethod
    def load(cls, path: Path, reference: Reference) -> Monitor:
        """Load a monitor's state. Raises DataError if it belongs to a different reference."""
        about, stored, _ = read_arrays(path, KIND, _ADVICE)
        if about["reference"] != reference.sha256:
            raise DataError(f"{path} belongs to another reference. {_ADVICE}")
        policy = {_OLD_POLICY_KEYS.get(name, name): value for name, value in about["policy"].items()}
        monitor = cls(reference, Policy(**policy))
        for name in ("count", "last", "last_id", "missing", "outcomes"):
            setattr(monitor, name, about[name])
        monitor._ids.extend(about["ids"])
        first = monitor.count - len(monitor._ids) + 1
        monitor._numbers = {id: first + place for place, id in enumerate(monitor._ids)}
        monitor.all_alerts = [Alert.from_dict(each) for each in about["alerts"]]
        monitor.history.extend(stored["history"])
        for name, track in monitor.tracks.items():
            arrays = {key.partition("/")[2]: value for key, value in stored.items() if key.startswith(f"{name}/")}
            track.restore(arrays)
            monitor._watches[name].restore(about["watches"][name])
        return monitor
