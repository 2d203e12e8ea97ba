"""A registry while it is served: the current version, one that is tried beside it, and going over without a gap.

Each version that is loaded has a view of the service: the same queue, store and limits, its own model. A request takes
its view once and keeps it to its end; a version that is served no longer is closed when its last request has ended.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from meditune.engines.engine import Engine
from meditune.errors import MedituneError
from meditune.registry.failing import Counts, is_failing
from meditune.registry.registry import Registry
from meditune.registry.state import Trial
from meditune.registry.version import Version
from meditune.serve.logs import LOGGER
from meditune.serve.prompting import Prompts
from meditune.serve.service import Asks, Served, Service


@dataclass(frozen=True)
class Parts:
    """A model that is open."""

    served: Served
    engine: Engine
    prompts: Prompts
    assistant: Asks


@dataclass(eq=False)
class Live:
    """A version that is loaded."""

    id: str
    service: Service
    counts: Counts = field(default_factory=Counts)
    users: int = 0
    """Requests that are on their way with it"""
    retired: bool = False


class Releases:
    """What of a registry is loaded, and who gets which version."""

    def __init__(
        self,
        registry: Registry,
        load: Callable[[Version], Parts],
        follow_s: float,
        told: Callable[[str], None] = LOGGER.error,
    ) -> None:
        """`told` hears of versions that can't be served, and of those that were rolled back."""
        self.registry, self._load, self._follow_s, self._told = registry, load, follow_s, told
        self._lock = threading.RLock()
        self._current: Live | None = None
        self._trial: tuple[Live, Trial] | None = None
        self._before = Counts()
        """Of the version before the current one"""
        self._refused: set[str] = set()
        """Versions that failed here; where the registry can't be written to, nobody else knows"""
        self._seen: Any = None
        self._wake, self._ended = threading.Event(), False
        self.service: Service | None = None

    def begin(self, make: Callable[[Parts], Service]) -> Service:
        """Load what the registry says, make the service of it, and follow the registry from now on.

        Raises DataError where no version can be served.
        """
        found = self.registry.servable(self._told)
        self.service = service = make(self._load(found))
        service.releases = self
        self._current = Live(found.id, self._view(service))
        self._sync()
        threading.Thread(target=self._followed, name="registry", daemon=True).start()
        return service

    def enter(self, conversation: str) -> Live:
        """The version for a request of this conversation; every `enter` needs a `leave`."""
        with self._lock:
            live = self._chosen(conversation)
            live.users += 1
            return live

    def shadow(self, conversation: str) -> Live | None:
        """The version that answers this conversation unseen, if any; it needs a `leave`, too."""
        with self._lock:
            if self._trial is None or self._trial[1].mode != "shadow" or not _falls(conversation, self._trial[1]):
                return None
            self._trial[0].users += 1
            return self._trial[0]

    def leave(self, live: Live, failed: bool | None) -> None:
        """A request has ended; None where it says nothing of the version."""
        with self._lock:
            live.users -= 1
            if failed is not None:
                live.counts.add(failed)
            trip = failed and self._is_failing(live)
            close = live.retired and live.users == 0
        if trip:
            threading.Thread(target=self._take_back, args=(live,), name="rollback", daemon=True).start()
        if close:
            _close(live)

    def goes_over_to(self, content: str) -> None:
        """The index that all versions share has another content from now on."""
        with self._lock:
            services = [live.service for live in self._loaded()]
            if self.service is not None:
                services.append(self.service)
            for service in services:
                service.goes_over_to(content)

    def close(self) -> None:
        """Close every version."""
        self._ended = True
        self._wake.set()
        with self._lock:
            for live in self._loaded():
                live.service.engine.close()

    def _loaded(self) -> list[Live]:
        return [live for live in (self._current, self._trial[0] if self._trial else None) if live]

    def _chosen(self, conversation: str) -> Live:
        assert self._current is not None, "begin has loaded one"
        if self._trial and self._trial[1].mode == "canary" and _falls(conversation, self._trial[1]):
            return self._trial[0]
        return self._current

    def _followed(self) -> None:
        while not self._ended:
            self._wake.wait(self._follow_s)
            self._wake.clear()
            if not self._ended:
                self._sync()

    def _sync(self) -> None:
        """Go over to what the registry says, if that has changed; what can't be had is told, and the rest stays."""
        try:
            state = self.registry.state()
            seen = (state.standing, state.trial, frozenset(self._refused))
            if seen == self._seen:
                return
            self._seen = seen
            self._serve(self._wanted(state.standing))
            self._try(state.trial if state.trial and state.trial.version not in self._refused else None)
        except (MedituneError, OSError, RuntimeError, ValueError) as error:
            # Whatever a version's files do to its engine: this thread must go on following.
            self._told(f"The registry can't be followed; what is served stays: {error}")

    def _wanted(self, standing: tuple[str, ...]) -> Version:
        """The last version that stands and is whole, but for those that failed here."""
        found = self.registry.servable(self._told)
        if found.id not in self._refused:
            return found
        left = [id for id in standing if id not in self._refused]
        return self.registry.checked(left[-1]) if left else found

    def _serve(self, found: Version) -> None:
        was = self._current
        assert was is not None, "begin has loaded one"
        if was.id == found.id:
            return
        tried = self._trial[0] if self._trial and self._trial[0].id == found.id else None
        live = tried or self._opened(found)
        with self._lock:
            self._current, self._before = live, was.counts
            live.counts = Counts()
            if tried:
                self._trial = None
            self._base_is(live)
        LOGGER.info("another version is served", extra={"version": found.id, "before": was.id})
        self._retire(was)

    def _try(self, trial: Trial | None) -> None:
        was = self._trial
        if trial is None or (self._current and trial.version == self._current.id):
            live = None
        elif was and was[0].id == trial.version:
            live = was[0]
        else:
            live = self._opened(self.registry.checked(trial.version))
        with self._lock:
            self._trial = (live, trial) if live and trial else None
        if was and was[0] is not live and was[0] is not self._current:
            self._retire(was[0])

    def _opened(self, found: Version) -> Live:
        parts = self._load(found)
        assert self.service is not None, "begin has made it"
        view = self._view(self.service)
        view.served, view.engine, view.prompts, view.assistant = (
            parts.served,
            parts.engine,
            parts.prompts,
            parts.assistant,
        )
        view.tell_model(1)
        return Live(found.id, view)

    def _view(self, service: Service) -> Service:
        """The service with a model of its own; all else is shared."""
        return copy.copy(service)

    def _base_is(self, live: Live) -> None:
        """What isn't asked for a version's sake (names, the API's description) is told by the current one."""
        assert self.service is not None, "begin has made it"
        for name in ("served", "engine", "prompts", "assistant"):
            setattr(self.service, name, getattr(live.service, name))

    def _retire(self, live: Live) -> None:
        with self._lock:
            live.retired = True
            close = live.users == 0
        live.service.tell_model(0)
        if close:
            _close(live)

    def _is_failing(self, live: Live) -> bool:
        if self._trial and live is self._trial[0] and self._current:
            return is_failing(live.counts, self._current.counts)
        return live is self._current and self._before.all > 0 and is_failing(live.counts, self._before)

    def _take_back(self, live: Live) -> None:
        """End the trial of a version that fails, or go back from it."""
        with self._lock:
            if live.id in self._refused:
                return
            self._refused.add(live.id)
            tried = bool(self._trial and self._trial[0] is live)
        why = f"{live.counts.failed} of {live.counts.all} of its requests failed"
        try:
            if tried:
                self.registry.end_trial(why, of=live.id, withdraw=True)
            else:
                self.registry.rollback(why, of=live.id)
        except MedituneError as error:
            self._told(f"{live.id} isn't served here any more ({why}), but the registry wasn't changed: {error}")
        else:
            self._told(f"{live.id} was taken back: {why}")
        self._wake.set()


def _falls(conversation: str, trial: Trial) -> bool:
    """Whether a conversation is in a trial's share; it is for all of the trial or for none of it."""
    digest = hashlib.sha256(f"{trial.version}\n{conversation}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < trial.percent / 100


def _close(live: Live) -> None:
    threading.Thread(target=live.service.engine.close, name=f"close {live.id}", daemon=True).start()
