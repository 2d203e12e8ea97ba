"""The drift monitor: `add` each request, and read `alerts`. Each request advances the e-detectors of all signals."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meditune.errors import DataError
from meditune.operate.drift import e_detectors
from meditune.operate.drift.alerts import Alert, AlertTracker, AnyTrack, Policy, change_sentence, effect_name, severity
from meditune.operate.drift.e_detectors import Bank
from meditune.operate.drift.reference import Arrays, Reference
from meditune.operate.drift.reference import read as read_arrays
from meditune.operate.drift.reference import write as write_arrays
from meditune.operate.drift.signal_tracks import RECENT, BlockTrack, NumberTrack, ShareTrack
from meditune.operate.drift.signals import BY_NAME, MEANING, MEANING_TITLE, Request

Floats = NDArray[np.float64]


class Ensemble:
    """The tracks of all signals by name, with their banks of bets."""

    def __init__(self, reference: Reference) -> None:
        self._shape = reference.shape
        self._numbers = Bank(
            [values.shape[1] for values in reference.numbers.values()], len(e_detectors.POWERS) * 2 + 2
        )
        self._shares = Bank([len(counts) + 1 for counts in reference.shares.values()], len(e_detectors.ODDS))
        self._blocks = Bank([1] if reference.features is not None else [], len(e_detectors.BLOCK_POWERS))
        self.numbers: dict[str, NumberTrack] = {}
        for place, (name, values) in enumerate(reference.numbers.items()):
            several = values.shape[1] > 1
            columns = [f"direction {number + 1}" if several else name for number in range(values.shape[1])]
            self.numbers[name] = NumberTrack(columns, self._numbers.seat(place), values)
        self.shares: dict[str, ShareTrack] = {}
        for place, (name, counts) in enumerate(reference.shares.items()):
            sizes = np.array(list(counts.values()), dtype=np.float64)
            self.shares[name] = ShareTrack(list(counts), self._shares.seat(place), sizes)
        self._before = np.concatenate([[], *(track.before for track in self.shares.values())])
        self.blocks = {}
        if reference.features is not None:
            self.blocks[MEANING] = BlockTrack(self._blocks.seat(0), reference.features)

    @property
    def tracks(self) -> dict[str, NumberTrack | ShareTrack | BlockTrack]:
        """All tracks, in the order of the reference's signals."""
        return {**self.numbers, **self.shares, **self.blocks}

    def take(self, request: Request, names: Collection[str], count: int, rng: np.random.Generator) -> list[str]:
        """Add a request's values for these signals; return the names of signals without a value."""
        unknown: list[str] = []
        p = self._ranked(self.numbers, request, names, count, rng, unknown)
        if p is not None:
            self._numbers.pay(e_detectors.number_bets(p), count)
        p = self._ranked(self.shares, request, names, count, rng, unknown)
        if p is not None:
            self._shares.pay(e_detectors.share_bets(p, self._before), count)
        if MEANING in self.blocks and MEANING in names:
            self._take_vector(request, count, rng, unknown)
        return unknown

    def _ranked(
        self,
        tracks: dict[str, NumberTrack] | dict[str, ShareTrack],
        request: Request,
        names: Collection[str],
        count: int,
        rng: np.random.Generator,
        unknown: list[str],
    ) -> Floats | None:
        """Return (all columns,) p-values, NaN for missing values; None if all are missing."""
        found, some = [], False
        for name, track in tracks.items():
            p = None
            if name in names:
                values = BY_NAME[name].read(request, self._shape)
                p = track.ranked(values, rng.random(len(track.columns)), count)
                if p is None:
                    unknown.append(name)
            some |= p is not None
            found.append(np.full(len(track.columns), np.nan) if p is None else p)
        return np.concatenate(found) if some else None

    def _take_vector(self, request: Request, count: int, rng: np.random.Generator, unknown: list[str]) -> None:
        kernel = self._shape.kernel
        if request.vector is None or kernel is None:
            unknown.append(MEANING)
            return
        tested = self.blocks[MEANING].tested(kernel.features(request.vector[None])[0], count, rng)
        if tested:
            p, first = tested
            self._blocks.pay(e_detectors.block_bets(np.array([p])), first)


KIND = "state"
LATE = ("feedback", "ratings", "calibration")
"""Signals that are only known some time after the answer"""
HISTORY = 20_000
"""Number of requests whose statistics are stored for the plot"""
_AFRESH = "Delete it; the next check starts from the reference."


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
        self._ensemble = Ensemble(reference)
        self.tracks: dict[str, AnyTrack] = self._ensemble.tracks
        self._prompt = [name for name in self.tracks if name not in LATE]
        self._late = [name for name in self.tracks if name in LATE]
        limit = e_detectors.threshold(self.policy.alarms, self.policy.requests, len(self.tracks))
        self._watches = {name: AlertTracker(track, limit, self.policy) for name, track in self.tracks.items()}

    def add(self, request: Request) -> list[Alert]:
        """Add one request; return the alerts that opened, grew or closed."""
        self.count += 1
        self.last, self.last_id = request.sequence or self.count, request.id
        self._number(request.id)
        # Seeded by the request's number, so that a resumed check breaks ties in the same way as an uninterrupted one.
        rng = np.random.default_rng([self.reference.about["seed"], self.count])
        self._take(request, self._prompt, rng)
        told = self._stepped(self._prompt)
        self.history.append(np.array([track.seat.statistic for track in self.tracks.values()], dtype=np.float32))
        return told

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
        return sorted(found, key=lambda alert: (-_rank(alert), alert.since))

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
        for name in self._ensemble.take(request, names, number or self.count, rng):
            self.missing[name] += 1

    def _alert(self, name: str, what: str) -> Alert:
        watch = self._watches[name]
        if what == "opened":
            alert = self._opened(name, watch)
            self.all_alerts.append(alert)
            return alert
        alert = next(each for each in reversed(self.all_alerts) if each.signal == name)
        if what == "closed":
            alert.closed = self.count
        else:
            self._measure(alert, watch)
        return alert

    def _opened(self, name: str, watch: AlertTracker) -> Alert:
        signal, track, column = BY_NAME.get(name), watch.track, watch.column
        several = len(track.columns) > 1
        alert = Alert(
            id=f"{self.reference.sha256[:8] or 'fitted'}-{name}-{self.count}",
            signal=name,
            about=signal.about if signal else "inputs",
            title=signal.title if signal else MEANING_TITLE,
            what=track.columns[column] if several else "",
            said="",
            severity="small",
            effect=0.0,
            effect_name=effect_name(track),
            before=0.0,
            after=0.0,
            statistic=0.0,
            threshold=watch.threshold,
            since=watch.since,
            since_id=self.id_of(watch.since),
            opened=self.count,
            opened_id=self.last_id,
            column=column,
        )
        self._measure(alert, watch)
        return alert

    def _measure(self, alert: Alert, watch: AlertTracker) -> None:
        """Measure the current size of the change."""
        track = watch.track
        alert.effect = track.effect(watch.column, alert.since)
        alert.severity = severity(alert.effect, alert.effect_name)
        alert.before, alert.after = track.told(watch.column, alert.since)
        alert.statistic = track.seat.statistic
        alert.said = change_sentence(alert)

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
        about, stored, _ = read_arrays(path, KIND, _AFRESH)
        if about["reference"] != reference.sha256:
            raise DataError(f"{path} belongs to another reference. {_AFRESH}")
        made = cls(reference, Policy(**about["policy"]))
        for name in ("count", "last", "last_id", "missing", "outcomes"):
            setattr(made, name, about[name])
        made._ids.extend(about["ids"])
        first = made.count - len(made._ids) + 1
        made._numbers = {id: first + place for place, id in enumerate(made._ids)}
        made.all_alerts = [Alert(**each) for each in about["alerts"]]
        made.history.extend(stored["history"])
        for name, track in made.tracks.items():
            mine = {key.partition("/")[2]: value for key, value in stored.items() if key.startswith(f"{name}/")}
            track.restore(mine)
            made._watches[name].restore(about["watches"][name])
        return made


def _rank(alert: Alert) -> int:
    return ("slight", "small", "medium", "large").index(alert.severity)
