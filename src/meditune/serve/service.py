"""The state of a running server, the answers that it stores, and its heartbeats in the store.

`meditune status` and /admin read the heartbeats of all servers that share a store.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from meditune import __version__
from meditune.engines.engine import Engine
from meditune.errors import MedituneError
from meditune.models.sentence_encoder import OnnxSentenceModel
from meditune.observability import LOGGER, error_location
from meditune.serve.admission import Admission, TriageQueue
from meditune.serve.api_errors import ApiError
from meditune.serve.auth import Authenticator, Caller
from meditune.serve.chat_prompts import ChatPrompts
from meditune.serve.metrics import Metrics
from meditune.serve.settings import Settings
from meditune.serve.store_access import Clock, run_in_store_thread
from meditune.store.answers import Answer, Answers
from meditune.store.overview import Notes

if TYPE_CHECKING:
    from meditune.assistant.assistant import Assistant

URGENT_S, METRICS_S = 1.0, 5.0
"""The maximum wait for the store, in seconds: of urgent help, and of an answer whose text isn't stored"""


@dataclass(frozen=True)
class Served:
    """The name and version of the served model."""

    name: str
    """The model's name for clients"""
    version: str
    """A hash of the weights"""
    created: int
    """Seconds since 1970"""
    index: str = ""
    """The hash of the index's content; empty without an index"""

    @property
    def fingerprint(self) -> str:
        """Return OpenAI's `system_fingerprint`, which contains the versions of the model and the index."""
        return f"fp_{self.version[:12]}" + (f"_{self.index[:12]}" if self.index else "")


@dataclass
class Service:
    """The model, engine, assistant, store and queues that the routes use."""

    served: Served
    engine: Engine
    prompts: ChatPrompts
    settings: Settings
    access: Authenticator
    answers: Answers | None = None
    assistant: Assistant | None = None
    embeds: Callable[[], OnnxSentenceModel] | None = None
    """Opens the sentence model at the first call, and returns the same model afterwards"""
    embedding: str = ""
    """The name of the sentence model"""
    metrics: Metrics = field(default_factory=Metrics)
    started: float = field(default_factory=time.time)
    aborted_requests: int = 0
    """The number of requests that the shutdown aborted"""
    address: str = ""
    """The server's URL, as soon as it listens"""

    def __post_init__(self) -> None:
        settings = self.settings
        self._clock: Clock | None = None
        self.embedding_lock, self.embedding_after = asyncio.Lock(), 0.0
        costs = self.metrics.costs
        (costs.prompt, costs.completion), costs.hourly = settings.prices, settings.hourly
        self.admission = Admission(settings.concurrency, settings.queue_size, settings.wait_s)
        # Answers take long, so they have their own threads; the event loop's threads are for short calls.
        self.asks = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="meditune-ask")
        # Tokenizing a long text takes a while, and happens before the request enters the queue.
        self.encoding = ThreadPoolExecutor(2, thread_name_prefix="meditune-encode")
        self.triage = TriageQueue(settings.triage_threads, settings.triage_waiting, settings.triage_wait_s)
        self.metrics.triage_waiting.set_function(lambda: self.triage.waiting)
        self.metrics.running.set_function(lambda: self.admission.active)
        self.metrics.waiting.set_function(lambda: self.admission.waiting)
        self.metrics.engine_up.set_function(lambda: self.engine.failure() is None)
        self.report_served_model(1)

    def switch_index(self, content: str) -> None:
        """Record that the index has new content, whose hash is `content`."""
        self.report_served_model(0)
        self.served = replace(self.served, index=content)
        if self.assistant is not None:
            self.assistant.versions["index"] = content
        self.report_served_model(1)

    def report_served_model(self, is_served: int) -> None:
        """Set the metric that says whether this model is served (1 or 0)."""
        served = self.served
        self.metrics.model.labels(served.name, served.version, self.engine.name, served.index).set(is_served)

    def close(self) -> None:
        """Free the model."""
        self.engine.close()

    def models(self) -> list[str]:
        """Return the model names that requests may use."""
        return [self.served.name, *([self.embedding] if self.embeds else [])]

    def require_model(self, name: str, embedding: bool = False) -> None:
        """Raise ApiError 404 if a request names a model that isn't served for generation (or embedding)."""
        right = self.embedding if embedding else self.served.name
        if name != right:
            hint = f"Did you mean {right}?" if get_close_matches(name, [right], 1) else f"This server has {right}."
            raise ApiError(404, f"There is no model {name[:100]!r} here. {hint}", "model_not_found", "model")

    async def log_answer(
        self, caller: Caller, id: str, route: str, texts: tuple[str, str], outcome: str, facts: dict[str, Any]
    ) -> None:
        """Store an answer's metrics and, if `keep_text` is set, the question and the answer (`texts`).

        Normally, the row is on disk when this returns. Raises MedituneError if a text can't be stored. Urgent help, and
        answers whose texts aren't stored, are sent even if the store fails or is slow. The log then reports that the
        answer wasn't stored in time; a slow write continues in the background.
        """
        self.metrics.outcomes.labels(outcome).inc()
        if self.answers is None:
            return
        served, with_text = self.served, self.settings.keep_text
        model = f"{served.name} {served.version}"
        row = Answer(id, caller.key, route, model, served.index, outcome, facts, *(texts if with_text else ()))
        limit = URGENT_S if outcome == "escalated" else None if with_text else METRICS_S
        try:
            async with asyncio.timeout(limit):
                await run_in_store_thread(self.answers.keep, row)
        except (MedituneError, OSError) as error:
            self.metrics.store_failures.inc()
            if limit is None:
                raise
            LOGGER.error("an answer wasn't stored in time", extra={"outcome": outcome} | error_location(error))

    async def prune(self) -> int:
        """Delete answers older than `keep_days`, and return the number deleted.

        After the clock has jumped, nothing is deleted for a day: the clock is or was wrong, so ages may be wrong, too.
        """
        if not self.answers or not self.settings.keep_days:
            return 0
        if self._clock is None:
            beats = [note.time for note in await asyncio.to_thread(Notes(self.answers.base).all, "server")]
            latest = await asyncio.to_thread(self.answers.latest)
            # This server's own heartbeat is less than a minute old, and says nothing about the clock.
            self._clock = Clock(max([latest, *(beat for beat in beats if beat < time.time() - 60)]))
        if not self._clock.trusted():
            LOGGER.warning("The clock jumped, so no answers are deleted for a day")
            return 0
        if self.access.usage:
            await run_in_store_thread(self.access.usage.prune, self.settings.keep_days)
        return await run_in_store_thread(self.answers.prune, self.settings.keep_days)


EVERY_S = 30.0
HEARTBEAT_RETENTION_S = 7 * 86_400.0
"""The age at which the heartbeat of a lost server is deleted, in seconds"""


async def send_heartbeats(service: Service) -> None:
    """Write the server's heartbeat periodically. On cancellation, which is a normal shutdown, delete the heartbeat."""
    if service.answers is None:
        return
    notes, name = Notes(service.answers.base), f"server/{socket.gethostname()}:{os.getpid()}:{id(service):x}"
    in_trouble = cleared = False
    written: asyncio.Future[None] | None = None

    def clear() -> None:
        # A server that was killed at the same address has left its heartbeat.
        for note in notes.all("server"):
            same_place = service.address and note.facts.get("address") == service.address
            if same_place or time.time() - note.time > HEARTBEAT_RETENTION_S:
                notes.remove(note.name)

    try:
        while True:
            try:
                if not cleared:
                    await run_in_store_thread(clear)
                    cleared = True
                written = asyncio.ensure_future(run_in_store_thread(notes.put, name, facts(service)))
                await asyncio.shield(written)
                in_trouble = False
            except MedituneError as error:
                if not in_trouble:
                    LOGGER.error("The heartbeat can't be written to the store", extra={"why": str(error)})
                in_trouble = True
            await asyncio.sleep(EVERY_S)
    finally:
        # A thread that has begun to write goes on after the cancellation.
        if written is not None:
            with suppress(MedituneError):
                await written
        with suppress(MedituneError):
            notes.remove(name)


def facts(service: Service) -> dict[str, object]:
    """Return the facts about a server that its heartbeat and /v1/admin/status report."""
    served = service.served
    return {
        "address": service.address,
        "model": served.name,
        "version": served.version,
        "index": served.index,
        "engine": service.engine.name,
        "started": service.started,
        "running": service.admission.active,
        "waiting": service.admission.waiting,
        "meditune": __version__,
    }
