"""Serving a registry: the current version, a canary, and switches without downtime.

Each loaded version has its own view of the service: its own model, with the shared queue, store and limits. A request
keeps its view until it ends. A retired version is closed when the last request that uses it has ended.
"""

from __future__ import annotations

import copy
import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Request

from meditune.engines.engine import Engine
from meditune.errors import MedituneError
from meditune.model_registry import Counts, Registry, Trial, Version, is_failing
from meditune.models.catalogue import ADAPTER_FILE
from meditune.observability import LOGGER
from meditune.prompts import FILE_NAME as FORMAT_FILE
from meditune.serve.api_errors import SCOPE_KEY, Trace
from meditune.serve.auth import Caller
from meditune.serve.chat_prompts import ChatPrompts
from meditune.serve.service import Served, Service

if TYPE_CHECKING:
    from meditune.assistant.assistant import Assistant

MAX_JUDGED_ANSWERS = 1000
"""The number of requests after a promotion during which a version is compared with its predecessor"""
RETRY_INTERVALS = 12
"""After a version fails to load, the number of registry checks until loading is retried"""


ERRORS = (MedituneError, OSError, RuntimeError, ValueError)
"""Errors that are raised for damaged files; they must not stop the thread that follows the registry"""
NOT_FOLLOWED = "The registry can't be followed, so the served versions don't change. Reason: {}"


@dataclass(frozen=True)
class VersionParts:
    """An open model with its engine, prompts and assistant."""

    served: Served
    engine: Engine
    prompts: ChatPrompts
    assistant: Assistant


def _set_parts(service: Service, parts: VersionParts | Service) -> None:
    for part in fields(VersionParts):
        setattr(service, part.name, getattr(parts, part.name))


@dataclass(eq=False)
class LiveVersion:
    """A loaded version."""

    id: str
    service: Service
    counts: Counts = field(default_factory=Counts)
    baseline: Counts = field(default_factory=Counts)
    """The current version's counts when the trial of this version began"""
    users: int = 0
    """The number of running requests that use this version"""
    retired: bool = False


class RegistryService(Service):
    """The service of a registry, which routes each conversation to one of the loaded versions."""

    releases: VersionRouter
    """The loaded versions; the router sets itself here"""

    def close(self) -> None:
        """Free every loaded version."""
        self.releases.close()


class VersionRouter:
    """The loaded versions of a registry, and the choice of a version for each conversation."""

    def __init__(
        self,
        registry: Registry,
        load: Callable[[Version], VersionParts],
        make: Callable[[VersionParts], RegistryService],
        follow_s: float,
        report: Callable[[str], None] = LOGGER.error,
    ) -> None:
        """Load the registry's current version, `make` the service from it, and follow the registry from then on.

        `report` is called with a message about each version that can't be served or was rolled back. Raises DataError
        if no version can be served.
        """
        self.registry, self._load, self._follow_s, self._report = registry, load, follow_s, report
        self._lock = threading.RLock()
        self._trial: tuple[LiveVersion, Trial] | None = None
        self._before = Counts()
        """The previous version's counts; empty after a rollback, when there is nothing to compare with"""
        self._refused: set[str] = set()
        """Versions that failed on this server; the registry may not record this, as it can be read-only"""
        self._seen: Any = None
        self._failed: tuple[Any, float] = (None, 0.0)
        """The state of the registry that couldn't be served, and the time from which serving it is tried again"""
        self._wake, self._ended = threading.Event(), False
        found = registry.servable(report)
        self.service = make(load(found))
        self.service.releases = self
        self._current = LiveVersion(found.id, copy.copy(self.service))
        self._sync()
        threading.Thread(target=self._follow_registry, name="registry", daemon=True).start()

    def enter(self, conversation: str) -> LiveVersion:
        """Return the version for a request of this conversation. Every `enter` needs a `release`."""
        with self._lock:
            live = self._current
            if self._trial and _is_routed_to_trial(conversation, self._trial[1]):
                live = self._trial[0]
            live.users += 1
            return live

    def release(self, live: LiveVersion, failed: bool | None) -> None:
        """Record that a request has ended. `failed` is None if the result says nothing about the version."""
        with self._lock:
            live.users -= 1
            if failed is not None:
                live.counts.add(failed)
            trip = failed and self._is_failing(live)
            close = live.retired and live.users == 0
        if trip:
            threading.Thread(target=self._roll_back, args=(live,), name="rollback", daemon=True).start()
        if close:
            _close(live)

    def switch_index(self, content: str) -> None:
        """Record that the index, which all versions share, has new content."""
        with self._lock:
            for service in (self.service, *(live.service for live in self._loaded())):
                service.switch_index(content)

    def close(self) -> None:
        """Close every version."""
        self._ended = True
        self._wake.set()
        with self._lock:
            for live in self._loaded():
                live.service.engine.close()

    def _loaded(self) -> list[LiveVersion]:
        return [self._current, *([self._trial[0]] if self._trial else [])]

    def _follow_registry(self) -> None:
        while not self._ended:
            self._wake.wait(self._follow_s)
            self._wake.clear()
            if not self._ended:
                self._sync()

    def _sync(self) -> None:
        """Switch to the versions that the registry names, if they have changed; report those that can't be loaded."""
        try:
            state = self.registry.state()
        except ERRORS as error:
            self._report(NOT_FOLLOWED.format(error))
            return
        refused = frozenset(self._refused)
        seen = (state.promoted, state.trial, refused)
        failed, again = self._failed
        if seen == self._seen or (seen == failed and time.monotonic() < again):
            return
        trial = state.trial if state.trial and state.trial.version not in refused else None
        steps: tuple[Callable[[], None], ...] = (partial(self._serve, state.promoted), partial(self._try, trial))
        in_trouble = False
        for step in steps:
            try:
                step()
            except ERRORS as error:
                in_trouble = True
                self._report(NOT_FOLLOWED.format(error))
        if in_trouble:
            self._failed = (seen, time.monotonic() + RETRY_INTERVALS * self._follow_s)
            return
        # Forget failed versions that the registry no longer names, so that a forced new promotion or trial is served.
        named = {*state.promoted, *([state.trial.version] if state.trial else [])}
        with self._lock:
            self._refused -= refused - named
        self._seen = (state.promoted, state.trial, refused & named)

    def _serve(self, promoted: tuple[str, ...]) -> None:
        """Serve the latest promoted version whose files are complete and that hasn't failed on this server."""
        version = self.registry.servable(self._report, self._refused)
        was = self._current
        if was.id == version.id:
            return
        tried = self._trial[0] if self._trial and self._trial[0].id == version.id else None
        live = tried or self._opened(version)
        with self._lock:
            # A version that is restored by a rollback was served before, so its failures aren't due to a promotion.
            was_before = version.id in promoted and was.id in promoted[: promoted.index(version.id)]
            self._before = was.counts if was_before else Counts()
            self._install(live)
            self._current, live.counts = live, Counts()
            if tried:
                self._trial = None
            elif self._trial:
                self._trial[0].counts, self._trial[0].baseline = Counts(), Counts()
            # Requests that aren't routed to a version, such as for model names and /docs, get this version.
            _set_parts(self.service, live.service)
        LOGGER.info("another version is served", extra={"version": version.id, "before": was.id})
        self._retire(was)

    def _try(self, trial: Trial | None) -> None:
        was = self._trial
        if trial and trial.version == self._current.id:
            trial = None
        live = was[0] if was and trial and was[0].id == trial.version else None
        with self._lock:
            self._trial = (live, trial) if live and trial else None
        if was and was[0] is not live and was[0] is not self._current:
            self._retire(was[0])
        if trial and live is None:
            live = self._opened(self.registry.checked(trial.version))
            with self._lock:
                self._install(live)
                self._trial = (live, trial)
                live.baseline = replace(self._current.counts)

    def _opened(self, version: Version) -> LiveVersion:
        parts = self._load(version)
        view = copy.copy(self.service)
        _set_parts(view, parts)
        view.report_served_model(1)
        return LiveVersion(version.id, view)

    def _install(self, live: LiveVersion) -> None:
        """Record the index's content if it changed while this version was loading. The caller must hold the lock."""
        content = self.service.served.index
        if live.service.served.index != content:
            live.service.switch_index(content)

    def _retire(self, live: LiveVersion) -> None:
        with self._lock:
            live.retired = True
            close = live.users == 0
        live.service.report_served_model(0)
        if close:
            _close(live)

    def _is_failing(self, live: LiveVersion) -> bool:
        if self._trial and live is self._trial[0]:
            return is_failing(live.counts, self._current.counts.since(live.baseline))
        judged = live is self._current and self._before.all > 0 and live.counts.all <= MAX_JUDGED_ANSWERS
        return judged and is_failing(live.counts, self._before)

    def _roll_back(self, live: LiveVersion) -> None:
        """End the trial of a failing version, or roll it back if it is the current one."""
        with self._lock:
            if live.id in self._refused:
                return
            self._refused.add(live.id)
            tried = bool(self._trial and self._trial[0] is live)
        why = f"{live.counts.failed} of {live.counts.all} of its requests failed"
        try:
            if tried:
                self.registry.end_trial(why, expected=live.id, withdraw=True)
            else:
                self.registry.rollback(why, expected=live.id)
        except MedituneError as error:
            self._report(
                f"This server no longer serves {live.id} ({why}), but the registry couldn't be changed: {error}"
            )
        else:
            self._report(f"{live.id} was rolled back: {why}")
        self._wake.set()


def _is_routed_to_trial(conversation: str, trial: Trial) -> bool:
    """Return whether a trial's version answers a conversation. This doesn't change during the trial."""
    digest = hashlib.sha256(f"{trial.version}\n{conversation}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < trial.percent / 100


def _close(live: LiveVersion) -> None:
    threading.Thread(target=live.service.engine.close, name=f"close {live.id}", daemon=True).start()


WEIGHT_SUFFIXES = {".safetensors", ".gguf", ".bin", ".xml", ".onnx"}
HASHED_BYTES = 1 << 20


def fingerprint(place: Path) -> str:
    """Return the SHA-256 of the names, sizes, beginnings and ends of a model's files; empty if there are none.

    `place` is a file, a model's folder (weights, configuration and prompt format) or a run's folder. This takes
    milliseconds for files of any size.
    """
    if (place / "model").is_dir() and not (place / "config.json").is_file():
        place = place / "model"
    if place.is_file():
        files = [place]
    else:
        candidates = (
            path
            for path in place.rglob("*")
            if path.suffix in WEIGHT_SUFFIXES or path.name in {ADAPTER_FILE, "config.json", FORMAT_FILE}
        )
        files = sorted(path for path in candidates if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(HASHED_BYTES))
            if size > 2 * HASHED_BYTES:
                stream.seek(-HASHED_BYTES, 2)
            digest.update(stream.read(HASHED_BYTES))
    return digest.hexdigest() if files else ""


def route_request(request: Request, caller: Caller, first: str) -> Service:
    """Return the service of the version for this conversation. The version stays open until the request has ended.

    A conversation is identified by its caller and first question.
    """
    service: Service = request.app.state.service
    if not isinstance(service, RegistryService):
        return service
    releases = service.releases
    live = releases.enter(f"{caller.name}\n{first}")
    trace: Trace = request.scope[SCOPE_KEY]
    trace.facts["version"] = live.service.served.version

    def ended(status: int) -> None:
        # Invalid requests and failures of the store say nothing about the version.
        counts = not trace.store_failed and (status >= 500 or 200 <= status < 300)
        releases.release(live, status >= 500 if counts else None)

    trace.ended.append(ended)
    return live.service
