"""The drift watcher of a running server: a thread that checks new requests, and pauses most of the time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from meditune.errors import DataError, MedituneError
from meditune.operate.drift import drift_detection, drift_report
from meditune.operate.drift.drift_detection import RequestSource, advance, model_for
from meditune.operate.drift.monitor import Monitor
from meditune.operate.drift.notifications import Channel, Outbox, from_environment, messages
from meditune.operate.drift.reference import load
from meditune.store import open_store
from meditune.store.overview import Notes

log = logging.getLogger(__name__)
BATCH = 16
PAUSE_FACTOR = 3.0
"""Length of a pause, as a multiple of the duration of the work before it"""
Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class WatcherOptions:
    """The options of the watcher."""

    store: str
    reference: Path
    every_s: float = 60.0
    link: str = ""


def state_of(reference: Path) -> Path:
    """Return the path of a reference's default state file."""
    return reference.with_name(f"{reference.name}.state")


def outbox_of(reference: Path) -> Path:
    """Return the path of the file, next to a reference, that records the delivery of alerts."""
    return reference.with_name(f"{reference.name}.alerts.json")


class _Ended(Exception):  # noqa: N818 - nothing is wrong
    """Raised when the server stops; the remaining requests are checked after the next start."""


class DriftWatcher:
    """A thread that checks a store for drift until it is stopped."""

    def __init__(self, options: WatcherOptions, report: Report, channels: Sequence[Channel] = ()) -> None:
        """`report` receives the facts of each check. Raises DataError if the reference cannot be read."""
        self.options, self._report, self._channels = options, report, list(channels)
        self._reference = load(options.reference)
        self._notes = Notes(open_store(options.store))
        self._outbox = Outbox(outbox_of(options.reference))
        self._state = state_of(options.reference)
        self._lock = FileLock(self._state.with_name(f".{self._state.name}.lock"))
        self._model = model_for(self._reference, None)
        self._monitor: Monitor | None = None
        self._seen, self._remarks = -1, list[str]()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drift", daemon=True)

    def start(self) -> DriftWatcher:
        """Start the thread."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop the thread, and save the state."""
        self._over.set()
        self._thread.join()

    def check_once(self) -> dict[str, Any]:
        """Run one check, send messages about changed alerts, and return the facts of the check.

        Errors aren't raised; `problem` in the facts describes them.
        """
        try:
            found, problem = self._check_requests(), ""
        except MedituneError as error:
            found, problem = {}, str(error)
            log.error("Cannot check drift", extra={"why": problem})
        except _Ended:
            raise
        except Exception as error:
            found, problem = {}, f"{type(error).__name__}, see the server's log"
            log.exception("Cannot check drift")
        facts = {"reference": str(self.options.reference.resolve()), "problem": problem, "unsent": []} | found
        self._report(facts)
        try:
            self._notes.put(f"drift/{self.options.reference.resolve()}", facts)
            # Answers may have been deleted while the check ran.
            self._notes.forget_deleted()
        except MedituneError as error:
            log.error("Cannot store the drift results", extra={"why": str(error)})
        return facts

    def _run(self) -> None:
        with suppress(_Ended):
            while not self._over.is_set():
                self.check_once()
                self._over.wait(self.options.every_s)
        if self._monitor is not None:
            try:
                self._monitor.save(self._state)
            except MedituneError as error:
                log.error("Cannot save the drift state", extra={"why": str(error)})
            self._lock.release()

    def _check_requests(self) -> dict[str, Any]:
        source = RequestSource(self.options.store)
        monitor = self._locked_monitor(source)
        count, forgot = monitor.count, drift_detection.forget_evidence(monitor, source.has)
        if (last := source.last()) != self._seen:
            self._remarks = advance(source, monitor, self._model, BATCH, self._rest).remarks
            self._seen = last
        if forgot or monitor.count != count:
            monitor.save(self._state)
        # Messages are sent even without new requests, because failed deliveries are retried.
        news = messages(monitor.all_alerts, None, self.options.link)
        return self._facts(monitor) | {"unsent": self._outbox.send(news, self._channels)}

    def _locked_monitor(self, source: RequestSource) -> Monitor:
        """Return the monitor, after locking its state.

        Raises DataError if another process holds the lock, or if the state belongs to another source.
        """
        if self._monitor is None:
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                busy = f"Another server or check is using {self._state}"
                raise DataError(f"{busy}. This server will start checking when that process ends.") from error
            try:
                exists = self._state.exists()
                monitor = Monitor.load(self._state, self._reference) if exists else Monitor(self._reference)
                drift_detection.refuse_other_source(source, monitor)
            except MedituneError:
                self._lock.release()
                raise
            self._monitor = monitor
        return self._monitor

    def _rest(self, worked_s: float) -> None:
        if self._over.wait(PAUSE_FACTOR * worked_s):
            raise _Ended

    def _facts(self, monitor: Monitor) -> dict[str, Any]:
        signals = {
            name: {key: row[key] for key in ("title", "about", "state")}
            | {"share": drift_report.evidence_share(row["statistic"], row["threshold"])}
            for name, row in drift_report.signals(monitor).items()
        }
        return {
            "sha256": self._reference.sha256,
            "requests": monitor.count,
            "signals": signals,
            "alerts": [alert.as_dict() for alert in monitor.alerts()],
            "over": [alert.as_dict() | {"evidence": {}} for alert in monitor.all_alerts if not alert.is_open][-10:],
            "remarks": self._remarks,
            "link": self.options.link,
        }


def watch(options: WatcherOptions, report: Report) -> DriftWatcher:
    """Start to watch a store. Raises DataError or ModelError if the reference or its model can't be loaded."""
    channels: list[Channel] = []
    try:
        channels = from_environment()
    except DataError as error:
        log.warning("Drift alerts are shown, but not sent: %s", error)
    return DriftWatcher(options, report, channels).start()
