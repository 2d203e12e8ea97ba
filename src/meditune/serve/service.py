"""What a running server holds: the model and its engine, the assistant, the store, and who waits.

A server's sign of life in the store, by which `meditune status` and /admin know all servers that share it.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from meditune import __version__
from meditune.assistant.triage import Triage
from meditune.engines.engine import Engine
from meditune.errors import MedituneError
from meditune.observability import LOGGER
from meditune.serve.admission import Admission, TriageQueue
from meditune.serve.api_errors import ApiError
from meditune.serve.auth import Authenticator
from meditune.serve.chat_prompts import ChatPrompts
from meditune.serve.metrics import Metrics
from meditune.serve.settings import Settings
from meditune.serve.store_access import Clock, run_in_store_thread
from meditune.store.answers import Answers
from meditune.store.overview import Notes

if TYPE_CHECKING:
    from meditune.serve.version_router import VersionRouter


class Event(Protocol):
    """One thing that the assistant tells on its way to an answer."""

    @property
    def kind(self) -> str:
        """sources, text, sentence, notice or answer."""

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""


class AnswersQuestions(Protocol):
    """Whatever answers a question with sources, citations and safety (assistant/assistant.py)."""

    def ask(
        self,
        question: str,
        *,
        style: Literal["plain", "expert"] = "plain",
        k: int | None = None,
        sources: Sequence[str] | None = None,
        history: Sequence[tuple[str, str]] = (),
        max_new_tokens: int | None = None,
        cancelled: Callable[[], bool],
        found: Triage | None = None,
    ) -> Iterator[Event]:
        """Events, the last of which is the answer; `found` is what `judge` says of the question, if that is known."""

    versions: dict[str, str]
    """What answers are told with: `model`, `index` ..."""

    def judge(self, question: str, before: Sequence[str] = ()) -> Triage:
        """What is done with a message before any model sees it."""


class EmbedsTexts(Protocol):
    """A sentence model."""

    @property
    def tokenizer(self) -> Any:
        """As the package tokenizers has them"""

    @property
    def size(self) -> int:
        """Numbers of a vector"""

    def embed(self, texts: Sequence[str]) -> Any:
        """(n, size) numbers, each row of length 1."""


@dataclass(frozen=True)
class Served:
    """What is served, by name and version."""

    name: str
    """As clients call it"""
    version: str
    """A hash of the weights"""
    created: int
    """Seconds since 1970"""
    index: str = ""
    """The hash of the index's content; empty without one"""

    @property
    def fingerprint(self) -> str:
        """What OpenAI calls system_fingerprint: model and index."""
        return f"fp_{self.version[:12]}" + (f"_{self.index[:12]}" if self.index else "")


@dataclass
class Service:
    """Everything that routes need."""

    served: Served
    engine: Engine
    prompts: ChatPrompts
    settings: Settings
    access: Authenticator
    answers: Answers | None = None
    assistant: AnswersQuestions | None = None
    embeds: Callable[[], EmbedsTexts] | None = None
    """Opens the sentence model; it is kept after the first time"""
    embedding: str = ""
    """Its name"""
    metrics: Metrics = field(default_factory=Metrics)
    releases: VersionRouter | None = None
    """The registry whose versions are served, where it is one"""
    ready: bool = True
    started: float = field(default_factory=time.time)
    broken_off: int = 0
    """Requests that the server's end broke off"""
    address: str = ""
    """Where it listens, as soon as it does"""

    def __post_init__(self) -> None:
        settings = self.settings
        self._clock: Clock | None = None
        costs = self.metrics.costs
        (costs.prompt, costs.completion), costs.hourly = settings.prices, settings.hourly
        self.admission = Admission(settings.at_once, settings.waiting, settings.wait_s)
        # Asks last long, so they have threads of their own: the loop's are for what is short.
        self.asks = ThreadPoolExecutor(settings.at_once, thread_name_prefix="meditune-ask")
        # Long texts take a while to encode, before a place in the engine is asked for.
        self.encoding = ThreadPoolExecutor(2, thread_name_prefix="meditune-encode")
        self.triage = TriageQueue(settings.triage_threads, settings.triage_waiting, settings.triage_wait_s)
        self.metrics.triage_waiting.set_function(lambda: self.triage.waiting)
        self.metrics.running.set_function(lambda: self.admission.inside)
        self.metrics.waiting.set_function(lambda: self.admission.waiting)
        self.metrics.engine_up.set_function(lambda: self.engine.failure() is None)
        self.tell_model(1)

    def goes_over_to(self, content: str) -> None:
        """Note that the index has another content from now on."""
        self.tell_model(0)
        self.served = replace(self.served, index=content)
        if self.assistant is not None:
            self.assistant.versions["index"] = content
        self.tell_model(1)

    def tell_model(self, is_served: int) -> None:
        """Let the metrics say whether this model is served."""
        served = self.served
        self.metrics.model.labels(served.name, served.version, self.engine.name, served.index).set(is_served)

    def close(self) -> None:
        """Free the model, or every version of it that is loaded."""
        if self.releases is not None:
            self.releases.close()
        else:
            self.engine.close()

    def models(self) -> list[str]:
        """Names that requests may use."""
        return [self.served.name, *([self.embedding] if self.embeds else [])]

    def must_serve(self, name: str, embedding: bool = False) -> None:
        """Raise ApiError 404 where a request names a model that isn't served for that."""
        right = self.embedding if embedding else self.served.name
        if name == right:
            return
        near = difflib.get_close_matches(name, [right], 1)
        hint = f"Did you mean {right}?" if near else f"This server has {right}."
        raise ApiError(404, f"There is no model {name[:100]!r} here. {hint}", "model_not_found", "model")

    async def prune(self) -> int:
        """Delete what is older than the settings want; how many answers.

        Nothing goes for a day after the clock jumped: it is wrong then, or was, and what looks old may not be.
        """
        if not self.answers or not self.settings.keep_days:
            return 0
        if self._clock is None:
            self._clock = Clock(await asyncio.to_thread(self._last_sign, self.answers))
        if not self._clock.trusted():
            LOGGER.warning("The clock jumped: what looks old is kept for a day yet")
            return 0
        if self.access.usage:
            await run_in_store_thread(self.access.usage.prune, self.settings.keep_days)
        return await run_in_store_thread(self.answers.prune, self.settings.keep_days)

    @staticmethod
    def _last_sign(answers: Answers) -> float:
        """The latest time that the store knows of, other than of this moment."""
        beats = [note.time for note in Notes(answers.base).all("server")]
        return max([answers.latest(), *(beat for beat in beats if beat < time.time() - 60)])


EVERY_S = 30.0
FORGOTTEN_S = 7 * 86_400.0
"""A server that was lost so long ago is news no more"""


async def send_heartbeats(service: Service) -> None:
    """Write it again and again; when cancelled, take it out: this server has ended as it should."""
    if service.answers is None:
        return
    notes, name = Notes(service.answers.base), f"server/{socket.gethostname()}:{os.getpid()}:{id(service):x}"
    in_trouble = cleared = False
    try:
        while True:
            try:
                if not cleared:
                    await run_in_store_thread(_clear, notes, service.address)
                    cleared = True
                await run_in_store_thread(notes.put, name, facts(service))
                in_trouble = False
            except MedituneError as error:
                if not in_trouble:
                    LOGGER.error("The store can't be written", extra={"why": str(error)})
                in_trouble = True
            await asyncio.sleep(EVERY_S)
    finally:
        with suppress(MedituneError):
            notes.remove(name)


def _clear(notes: Notes, address: str) -> None:
    """Take out servers of long ago, and one that was killed in this one's place."""
    for note in notes.all("server"):
        if time.time() - note.time > FORGOTTEN_S or (address and note.facts.get("address") == address):
            notes.remove(note.name)


def facts(service: Service) -> dict[str, object]:
    """What is told of a server."""
    served = service.served
    return {
        "address": service.address,
        "model": served.name,
        "version": served.version,
        "index": served.index,
        "engine": service.engine.name,
        "started": service.started,
        "running": service.admission.inside,
        "waiting": service.admission.waiting,
        "meditune": __version__,
    }
