"""A wrapper that restarts a server's engine when the engine dies, with exponential back-off.

The dead engine's requests end with an error. Until the next engine is open, new requests fail with an error that says
when to retry. If the engine can't be restarted, `failure` returns the reason. The server's process should then end, so
that its supervisor (systemd, Docker, Kubernetes) starts a new process.
"""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from meditune.engines.engine import (
    Engine,
    EngineLoad,
    GenerationChunk,
    GenerationRequest,
    RunningGeneration,
    TokenLogprob,
)
from meditune.engines.scheduler import CLOSED
from meditune.errors import EngineError, EngineUnavailableError, MedituneError

log = logging.getLogger(__name__)
CHECK_S = 0.25
"""Interval in seconds between checks that the engine is alive"""
RESTARTS = 6
"""Number of restart attempts before the server gives up"""
STABLE_S = 60.0
"""Seconds after which an engine counts as stable; the count of restart attempts then starts again from 0"""
FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 30.0
"""Shortest and longest pause in seconds between restart attempts; each pause is twice as long as the one before"""
STALL_TIMEOUT_S = 360.0
"""Seconds without output after which an engine with requests counts as stuck"""
CLOSE_S = 20.0
"""Seconds that a dead engine may take to free its memory"""
FAILED_RETRY_S = 30.0
"""Seconds after which callers should retry if this process ends: a new process must open the model first"""


class SupervisedEngine:
    """An engine that is restarted when it dies."""

    def __init__(
        self,
        open_engine: Callable[[], Engine],
        restarts: int | None = RESTARTS,
        stalled_s: float = STALL_TIMEOUT_S,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the engine. `opened` waits until it is open, and starts to watch it.

        `restarts` is the maximum number of successive attempts to restart the engine. None means no limit; this suits a
        model on another server, because ending this process wouldn't help there. `on_restart` is called after each
        restart.

        Raises the errors of `open_engine`.
        """
        self._open, self._restarts, self._stalled_s, self._on_restart = open_engine, restarts, stalled_s, on_restart
        began = time.monotonic()
        self._engine: Engine | None = open_engine()
        self._opening_s = time.monotonic() - began
        self.name, self.tokenizer = self._engine.name, self._engine.tokenizer
        self.context_tokens = self._engine.context_tokens
        self._lock = threading.Lock()
        self._generations: set[SupervisedGeneration] = set()
        self._scoring = 0
        self._progress = self._since = began
        self._crashes = 0
        self._failure: EngineUnavailableError | None = None
        self._restart_at = 0.0
        self._wake, self._closing = threading.Event(), False
        self._watcher: threading.Thread | None = None

    def opened(self) -> None:
        """See engine.py. From now on, the engine is watched."""
        assert self._engine is not None, "the engine is opened before anything can end it"
        self._engine.opened()
        self._since = time.monotonic()
        self._opening_s = self._since - self._progress
        self._watcher = threading.Thread(target=self._watch, name="meditune-engine-watch", daemon=True)
        self._watcher.start()

    def start(self, request: GenerationRequest, deliver: Callable[[GenerationChunk], None]) -> RunningGeneration:
        """See engine.py. Raises EngineUnavailableError while there is no engine."""
        with self._lock:
            engine = self._running_engine()
            begun = SupervisedGeneration(self, engine, deliver)
            self._generations.add(begun)
        try:
            begun.runs(engine.start(request, begun.deliver))
        except BaseException as error:
            with self._lock:
                self._generations.discard(begun)
            if isinstance(error, EngineError) and self.lost(engine):
                raise self.unavailable() from error
            raise
        return begun

    def score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[TokenLogprob]]:
        """See engine.py. Raises EngineUnavailableError while there is no engine."""
        with self._lock:
            engine = self._running_engine()
            self._scoring += 1
        try:
            return engine.score(prompt, texts)
        except EngineError as error:
            if self.lost(engine):
                raise self.unavailable() from error
            raise
        finally:
            with self._lock:
                self._scoring -= 1
            self.progressed()

    def load(self) -> EngineLoad:
        """See engine.py."""
        engine = self._engine
        return engine.load() if engine is not None else EngineLoad(0, 0)

    def failure(self) -> EngineError | None:
        """See engine.py. Always returns at once; the error's `given_up` is False while the engine is restarting."""
        return self.unavailable() if self._failure is not None else None

    def close(self) -> None:
        """See engine.py."""
        with self._lock:
            self._closing = True
        self._wake.set()
        if self._watcher is not None:
            self._watcher.join(CLOSE_S)
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def lost(self, engine: Engine) -> bool:
        """Return whether this engine is dead or replaced; if it is dead, the restart begins at once."""
        if engine is self._engine and engine.failure() is None:
            return False
        self._wake.set()
        return True

    def ended(self, request: SupervisedGeneration) -> None:
        """Stop tracking a request that has ended."""
        with self._lock:
            self._generations.discard(request)

    def progressed(self) -> None:
        """Record that the engine delivered something."""
        self._progress = time.monotonic()

    def _running_engine(self) -> Engine:
        """Return the engine for new work. Raises EngineError if there is none."""
        if self._closing:
            raise EngineError(CLOSED)
        if self._failure is not None or self._engine is None:
            raise self.unavailable()
        if not (self._generations or self._scoring):
            self._progress = time.monotonic()
        return self._engine

    def unavailable(self) -> EngineUnavailableError:
        """Return the error for requests while there is no engine."""
        failure = self._failure
        if failure is not None and failure.given_up:
            return failure
        wait = math.ceil(max(1.0, self._restart_at - time.monotonic()) + self._opening_s)
        return EngineUnavailableError("The engine has stopped and is being restarted.", wait)

    def _watch(self) -> None:
        while not self._closing:
            self._wake.wait(CHECK_S)
            self._wake.clear()
            why = self._failure_reason()
            if why and not self._closing and not self._restart_engine(why):
                return

    def _failure_reason(self) -> str:
        """Return why the engine stopped; empty while it works."""
        engine = self._engine
        if engine is None:
            return ""
        failure, silent = engine.failure(), time.monotonic() - self._progress
        if failure is not None:
            return str(failure)
        stalled = (self._generations or self._scoring) and silent > self._stalled_s
        return f"It delivered nothing for {silent:.0f} seconds, although it had work." if stalled else ""

    def _restart_engine(self, why: str) -> bool:
        """End the dead engine's requests and open another one; return False if that fails or the engine is closing."""
        log.error("The engine stopped and is being restarted: %s", why)
        if time.monotonic() - self._since > STABLE_S:
            self._crashes = 0
        self._restart_at = time.monotonic() + self._pause_s()
        with self._lock:
            self._failure = self.unavailable()
            dead, self._engine = self._engine, None
            requests, self._generations = self._generations, set()
        while requests:
            requests.pop().end(self.unavailable())
        if dead is None:
            return False
        closing = threading.Thread(target=dead.close, name="meditune-engine-close", daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        if closing.is_alive():
            self._give_up("The engine is stuck; only ending this process can end it.")
            return False
        # Free the dead engine's weights before the weights are loaded again.
        del dead, closing
        gc.collect()
        return self._retried()

    def _retried(self) -> bool:
        problem = "it stopped each time"
        while self._restarts is None or self._crashes < self._restarts:
            while not self._closing and (left := self._restart_at - time.monotonic()) > 0:
                self._wake.wait(left)
                self._wake.clear()
            if self._closing:
                return False
            self._crashes += 1
            try:
                self._take(self._open())
            except Exception as error:
                problem = str(error)
                self._restart_at = time.monotonic() + self._pause_s()
                expected = isinstance(error, (MedituneError, OSError))
                log.error("The engine can't be restarted: %s", problem or type(error).__name__, exc_info=not expected)
                continue
            return not self._closing
        self._give_up(f"The engine stopped, and {self._restarts} attempts to restart it failed: {problem}")
        return False

    def _take(self, engine: Engine) -> None:
        try:
            engine.opened()
            if engine.name != self.name:
                raise EngineError(f"The model has changed: {engine.name} instead of {self.name}.")
            if engine.context_tokens < self.context_tokens:
                raise EngineError(
                    f"{engine.name} can read only {engine.context_tokens} tokens now instead of {self.context_tokens}: "
                    "the model has changed, or less memory is free."
                )
        except BaseException:
            engine.close()
            raise
        with self._lock:
            if not self._closing:
                self._progress = self._since = time.monotonic()
                self._engine, self._failure = engine, None
        if self._engine is not engine:
            engine.close()
            return
        log.warning("The engine has been restarted")
        self._on_restart()

    def _pause_s(self) -> float:
        return min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._crashes - 1)) if self._crashes else 0.0

    def _give_up(self, why: str) -> None:
        log.critical("%s", why)
        self._failure = EngineUnavailableError(why, FAILED_RETRY_S, given_up=True)


class SupervisedGeneration:
    """A request that ends with an error if its engine dies."""

    def __init__(
        self, supervisor: SupervisedEngine, engine: Engine, deliver: Callable[[GenerationChunk], None]
    ) -> None:
        self._supervisor, self._engine, self._deliver = supervisor, engine, deliver
        self._lock = threading.Lock()
        self._over = self._cancelled = False
        self._running: RunningGeneration | None = None

    def runs(self, running: RunningGeneration) -> None:
        """Store the running request, and cancel it if its cancellation was requested earlier."""
        self._running = running
        if self._cancelled:
            running.cancel()

    def cancel(self) -> None:
        """End the request now; its last chunk reports the cancellation."""
        self._cancelled = True
        if self._running is not None and not self._over:
            self._running.cancel()

    def deliver(self, chunk: GenerationChunk) -> None:
        """Pass a chunk on, unless the request has already ended."""
        self._supervisor.progressed()
        with self._lock:
            if self._over:
                return
            self._over = chunk.is_last
        if chunk.is_last:
            self._supervisor.ended(self)
        if isinstance(chunk.error, EngineError) and self._supervisor.lost(self._engine):
            chunk = replace(chunk, error=self._supervisor.unavailable())
        self._deliver(chunk)

    def end(self, error: EngineError) -> None:
        """End the request with an error, because its engine can no longer end it."""
        with self._lock:
            if self._over:
                return
            self._over = True
        try:
            self._deliver(GenerationChunk("", error=error))
        except Exception:
            log.exception("The receiver of an answer failed")
