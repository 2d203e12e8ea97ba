"""The thread of an engine that batches in this process: jobs wait in order, join those that run, and end when they end.

Everything that touches the model happens in this one thread, between two steps: new prompts are read, texts are scored,
answers are cancelled.

What engines have in common that batch in this process: a batch of answers, and the thread that works on it.

One job while it runs: its tokens become pieces of text, and someone may end it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

from meditune.engines.engine import (
    EngineLoad,
    Finish,
    GenerationChunk,
    GenerationRequest,
    RunningGeneration,
    TokenLogprob,
    check_request,
)
from meditune.engines.structured_output import ChoiceConstraint
from meditune.engines.tokenizer import Detokenizer
from meditune.errors import EngineError

log = logging.getLogger(__name__)


class ScheduledRequest:
    """A job with what it has got so far. Only the engine's thread calls anything but `cancel`."""

    def __init__(self, job: GenerationRequest, deliver: Callable[[GenerationChunk], None], tokenizer: Any) -> None:
        self.job = job
        self.cancelled = False
        self.tokens: list[int] = []
        self.ended = False
        self._deliver = deliver
        self._wording = Detokenizer(tokenizer, job.prompt, job.stop)
        self._untold: list[int] = []
        self._likely: list[TokenLogprob] = []
        self.cached = 0
        """Tokens of the prompt that needed no reading; not told yet"""

    def cancel(self) -> None:
        """End it now; its last piece says so."""
        self.cancelled = True

    def take(self, token: int, likely: TokenLogprob | None = None) -> None:
        """The answer goes on with this token, and ends where a text that ends it comes or it is long enough."""
        self.tokens.append(token)
        self._untold.append(token)
        if likely is not None:
            self._likely.append(likely)
        text = self._wording.add(token)
        if self._wording.stopped:
            self._tell(text, "stop")
        elif len(self.tokens) >= self.job.max_new_tokens:
            self._tell(text + self._wording.rest(), "stop" if self._wording.stopped else "length")
        elif text:
            self._tell(text)

    def end(self, finish: Finish = "stop") -> None:
        """Nothing more comes."""
        if not self.ended:
            self._tell(self._wording.rest(), finish)

    def fail(self, error: Exception) -> None:
        """Something broke it off."""
        if not self.ended:
            self._tell("", None, error)

    def _tell(self, text: str, finish: Finish | None = None, error: Exception | None = None) -> None:
        if self.ended:
            return
        piece = GenerationChunk(text, tuple(self._untold), tuple(self._likely), finish, error, self.cached)
        self.cached = 0
        self._untold, self._likely = [], []
        self.ended = finish is not None or error is not None
        try:
            self._deliver(piece)
        except Exception:
            log.exception("What a piece was delivered to failed; its answer is cancelled")
            self.cancelled = True


Result = TypeVar("Result")


class Batch(Protocol):
    """Answers that a model continues together."""

    running: list[ScheduledRequest]

    def inside(self) -> AbstractContextManager[None]:
        """What must be around all work with the model, in its thread."""

    def chosen(self, waiting: deque[ScheduledRequest]) -> list[ScheduledRequest]:
        """Take from the left of `waiting` those that join now."""

    def join(self, answers: list[ScheduledRequest]) -> None:
        """Read their prompts; they run from now on."""

    def step(self) -> None:
        """Continue everything that runs, and let go of what has ended or was cancelled."""

    def clear(self) -> None:
        """Forget everything that runs: something went wrong, or the engine closes."""


class Scheduler:
    """Runs a batch in a thread of its own."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._waiting: deque[ScheduledRequest] = deque()
        self._calls: deque[tuple[Future[Any], Callable[[], None]]] = deque()
        self._joining: list[ScheduledRequest] = []
        self._wake = threading.Condition()
        self._closing = False
        self._broken: EngineError | None = None
        self._thread = threading.Thread(target=self._run, name="meditune-engine", daemon=True)
        self._thread.start()

    def start(self, answer: ScheduledRequest) -> None:
        """Put a job at the end of those that wait. Raises EngineError where the engine was closed or is broken."""
        with self._wake:
            self._refuse_closed()
            self._waiting.append(answer)
            self._wake.notify()

    def call(self, work: Callable[[], Result]) -> Result:
        """Do something with the model between two steps, and give what it returns or raise what it raises.

        Raises EngineError where the engine was closed or is broken.
        """
        future: Future[Result] = Future()

        def do() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
                if not isinstance(error, Exception):
                    raise

        with self._wake:
            self._refuse_closed()
            self._calls.append((future, do))
            self._wake.notify()
        return future.result()

    def load(self) -> EngineLoad:
        """How many run and wait."""
        with self._wake:
            return EngineLoad(len(self.batch.running) + len(self._joining), len(self._waiting))

    def failure(self) -> EngineError | None:
        """Return why nothing can be asked any more: the thread broke down, ended, or was told to end."""
        with self._wake:
            ended = not (self._thread.is_alive() or self._closing or self._broken)
        if ended:
            # Whoever waits would wait forever: the thread ended where it couldn't tell anybody.
            self._break_down(RuntimeError("the thread ended"))
        return self._broken or (EngineError("The engine was closed.") if self._closing else None)

    def close(self) -> None:
        """Cancel everything, and wait until the thread has ended."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _refuse_closed(self) -> None:
        if self._broken:
            raise self._broken
        if self._closing:
            raise EngineError("The engine was closed.")

    def _run(self) -> None:
        try:
            with self.batch.inside():
                while self._has_work():
                    self._try_once()
                self._end_all()
        except BaseException as error:
            log.critical("An engine broke down; it takes no more work", exc_info=True)
            self._break_down(error)

    def _try_once(self) -> None:
        try:
            self._once()
        except Exception as error:
            log.exception("An engine's step failed; what ran is broken off")
            for answer in [*self.batch.running, *self._joining]:
                answer.fail(error)
            self._joining = []
            self.batch.clear()

    def _end_all(self) -> None:
        with self._wake:
            left = [*self.batch.running, *self._waiting]
            calls = [call for _, call in self._calls]
            self._waiting.clear()
            self._calls.clear()
        for call in calls:
            call()
        for answer in left:
            answer.end("cancelled")
        self.batch.clear()

    def _break_down(self, error: BaseException) -> None:
        """Tell everyone who waits, and refuse who comes: this thread ends."""
        broken = EngineError(f"The engine broke down ({type(error).__name__}); the log says where. Open it again.")
        broken.__cause__ = error
        with self._wake:
            self._broken = broken
            left, calls = [*self.batch.running, *self._joining, *self._waiting], [*self._calls]
            self.batch.running, self._joining = [], []
            self._waiting.clear()
            self._calls.clear()
        for answer in left:
            answer.fail(broken)
        for future, _ in calls:
            future.set_exception(broken)

    def _has_work(self) -> bool:
        """Wait for something to do; False where the engine is to close."""
        with self._wake:
            while not (self._closing or self._waiting or self._calls or self.batch.running):
                self._wake.wait()
            return not self._closing

    def _once(self) -> None:
        with self._wake:
            call = self._calls.popleft()[1] if self._calls else None
            gone = [answer for answer in self._waiting if answer.cancelled]
            for answer in gone:
                self._waiting.remove(answer)
            self._joining = self.batch.chosen(self._waiting)
        for answer in gone:
            answer.end("cancelled")
        if call:
            call()
        if self._joining:
            self.batch.join(self._joining)
            self._joining = []
        if self.batch.running:
            self.batch.step()


B = TypeVar("B", bound=Batch)


class BatchingEngine(Generic[B]):
    """An engine but for scoring, which each does in its own way."""

    def __init__(self, name: str, tokenizer: Any, context_tokens: int, batch: B) -> None:
        self.name, self.tokenizer, self.context_tokens = name, tokenizer, context_tokens
        self._batch = batch
        self._worker = Scheduler(batch)

    def start(self, job: GenerationRequest, deliver: Callable[[GenerationChunk], None]) -> RunningGeneration:
        """See engine.py."""
        self._refuse(job)
        answer = ScheduledRequest(job, deliver, self.tokenizer)
        self._worker.start(answer)
        return answer

    def load(self) -> EngineLoad:
        """See engine.py."""
        return self._worker.load()

    def opened(self) -> None:
        """See engine.py. The model was opened before."""

    def failure(self) -> EngineError | None:
        """See engine.py. Its thread can break down or end."""
        return self._worker.failure()

    def close(self) -> None:
        """See engine.py."""
        self._worker.close()

    def _refuse(self, job: GenerationRequest) -> None:
        """Raise ModelError where the engine can't do what a job asks."""
        check_request(job, self.context_tokens)
        if job.choices:
            ChoiceConstraint(self.tokenizer, job.choices, 0)
