"""The common parts of engines: an answer in progress, batching in one thread, and one thread for each request.

In a batching engine, one thread uses the model: it generates step by step, and reads prompts, scores texts and cancels
requests between steps.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from meditune.engines.engine import (
    EngineLoad,
    Finish,
    GenerationChunk,
    GenerationRequest,
    RunningGeneration,
    TokenLogprob,
    check_request,
    check_scorable,
)
from meditune.engines.sampling import ChoiceConstraint, ConstraintCompiler, JsonConstraint, choose, top_logprobs
from meditune.engines.tokenizer import Detokenizer
from meditune.errors import EngineError, ModelError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
CLOSED = "The engine was closed."
Result = TypeVar("Result")


class ScheduledRequest:
    """A request with its answer so far. Only `cancel` may be called outside the engine's thread."""

    def __init__(self, request: GenerationRequest, deliver: Callable[[GenerationChunk], None], tokenizer: Any) -> None:
        self.request = request
        self.cancelled = False
        self.tokens: list[int] = []
        self.ended = self.failed = False
        self._deliver, self._tokenizer = deliver, tokenizer
        self._detokenizer = Detokenizer(tokenizer, request.prompt, request.stop)
        self._undelivered: list[int] = []
        self._likely: list[TokenLogprob] = []
        self.cached = 0
        """Number of cached prompt tokens, or 0 once it has been reported"""
        self.constraint: Any = None
        """The answer's constraint (sampling.py), in engines that choose each token themselves"""
        self.sampler: Any = None
        """The answer's TokenSampler (sampling.py), in engines that choose each token themselves"""
        self.state: Any = None
        """The engine's own state for a running answer"""

    def cancel(self) -> None:
        """End the request now; its last chunk reports the cancellation."""
        self.cancelled = True

    def take(self, token: int, likely: TokenLogprob | None = None) -> None:
        """Append a token; the answer ends at a stop text or at its maximum length."""
        self.tokens.append(token)
        self._undelivered.append(token)
        if likely is not None:
            self._likely.append(likely)
        text = self._detokenizer.add(token)
        if self._detokenizer.stopped:
            self._send(text, "stop")
        elif len(self.tokens) >= self.request.max_new_tokens:
            self._send(text + self._detokenizer.rest(), "stop" if self._detokenizer.stopped else "length")
        elif text:
            self._send(text)

    def end(self, finish: Finish = "stop") -> None:
        """End the answer, unless it has already ended."""
        self._send("" if self.ended else self._detokenizer.rest(), finish)

    def fail(self, error: Exception) -> None:
        """End the answer with an error, unless it has already ended."""
        self.failed |= not self.ended
        self._send("", None, error)

    def choose(
        self, score: Callable[[Sequence[int], list[list[int]]], Sequence[Sequence[TokenLogprob]]], end: int
    ) -> None:
        """Answer with one of the request's choices, based on their scores.

        A choice is scored together with the token `end`, which follows it.
        """
        request = self.request
        texts = ChoiceConstraint(self._tokenizer, request.choices, end).texts
        scored = score(request.prompt, [[*text, end] for text in texts])
        for logprob in choose(scored, request):
            if not self.ended:
                self.take(logprob.token, logprob if request.logprobs else None)
        self.end()

    def _send(self, text: str, finish: Finish | None = None, error: Exception | None = None) -> None:
        if self.ended:
            return
        chunk = GenerationChunk(text, tuple(self._undelivered), tuple(self._likely), finish, error, self.cached)
        self.cached = 0
        self._undelivered, self._likely = [], []
        self.ended = chunk.is_last
        try:
            self._deliver(chunk)
        except Exception:
            log.exception("The receiver of an answer failed; the answer is cancelled")
            self.cancelled = True


def add_tokens(logits: torch.Tensor, answers: Sequence[ScheduledRequest], ends: Collection[int]) -> None:
    """Add the next token to each answer, from (N, vocabulary) logits.

    A token in `ends` ends an answer. An error, or logits that aren't finite, end only the answer that they concern.
    """
    highest, best = logits.max(dim=-1)
    for row, is_finite, first, answer in zip(logits, highest.isfinite().tolist(), best.tolist(), answers, strict=True):
        if not is_finite:
            answer.fail(ModelError("The model computes logits that aren't finite for this prompt."))
            continue
        try:
            _add_token(row, first, answer, ends)
        except Exception as error:  # noqa: BLE001 - an error here concerns only this answer
            answer.fail(error)


def _add_token(row: torch.Tensor, best: int, answer: ScheduledRequest, ends: Collection[int]) -> None:
    token = answer.sampler.next_token(row, best)
    if token in ends:
        answer.end()
        return
    count = answer.request.logprobs
    answer.take(token, top_logprobs(row, token, count) if count else None)
    if constraint := answer.sampler.constraint:
        constraint.take(token)
        if constraint.complete:
            answer.end()


class BatchingEngine:
    """An engine that continues a batch of answers in one thread, which alone uses the model.

    A subclass opens its model and then calls this `__init__`, which starts the thread.
    """

    constraints: ConstraintCompiler
    """The compiler of constraints, in engines that choose each token themselves"""

    def __init__(self, name: str, tokenizer: Any, context_tokens: int, concurrency: int) -> None:
        self.name, self.tokenizer, self.context_tokens = name, tokenizer, context_tokens
        self.concurrency = concurrency
        self.running: list[ScheduledRequest] = []
        self._waiting: deque[ScheduledRequest] = deque()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._joining: list[ScheduledRequest] = []
        self._wake = threading.Condition()
        self._closing = False
        self._broken: EngineError | None = None
        self._thread = threading.Thread(target=self._run, name="meditune-engine", daemon=True)
        self._thread.start()

    def start(self, request: GenerationRequest, deliver: Callable[[GenerationChunk], None]) -> RunningGeneration:
        """See engine.py."""
        check_request(request, self.context_tokens)
        answer = ScheduledRequest(request, deliver, self.tokenizer)
        answer.constraint = self._compile_constraint(request)
        with self._wake:
            self._refuse_closed()
            self._waiting.append(answer)
            self._wake.notify()
        return answer

    def score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[TokenLogprob]]:
        """See engine.py. The `ALTERNATIVES` most likely tokens of each position are returned, too."""
        check_scorable(prompt, texts, self.context_tokens)
        return self._call(lambda: self._score(prompt, texts))

    def load(self) -> EngineLoad:
        """See engine.py."""
        with self._wake:
            return EngineLoad(len(self.running) + len(self._joining), len(self._waiting))

    def opened(self) -> None:
        """See engine.py. The model is already open."""

    def failure(self) -> EngineError | None:
        """See engine.py. The engine has failed if its thread has failed."""
        return self._broken or (EngineError(CLOSED) if self._closing else None)

    def close(self) -> None:
        """See engine.py. Waits until the thread has ended."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Surround all use of the model, in the thread that uses it."""
        yield

    def _compile_constraint(self, request: GenerationRequest) -> JsonConstraint | ChoiceConstraint | None:
        """Return the constraint for an answer, or None if it has none or the engine doesn't choose its tokens.

        Raises ModelError if the engine doesn't support the request's constraint or log-probabilities.
        """
        return self.constraints.compile(request)

    def _chosen(self) -> list[ScheduledRequest]:
        """Remove the requests that join now from the front of `_waiting`, and return them: one, if there is room."""
        return [self._waiting.popleft()] if self._waiting and len(self.running) < self.concurrency else []

    def _join(self, answers: list[ScheduledRequest]) -> None:
        """Read the requests' prompts, and add the requests to `running`."""
        raise NotImplementedError

    def _step(self) -> None:
        """Continue all running answers, and remove finished and cancelled ones."""
        raise NotImplementedError

    def _score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[TokenLogprob]]:
        """Return the log-probability of every token of each text after one prompt."""
        raise NotImplementedError

    def _clear(self) -> None:
        """Drop all running answers, after an error or when the engine closes."""
        self.running = []

    def _leave(self) -> None:
        """Remove finished and cancelled answers."""
        for answer in [*self.running]:
            if answer.cancelled:
                answer.end("cancelled")
            if answer.ended:
                self.running.remove(answer)
                answer.state = None

    def _call(self, work: Callable[[], Result]) -> Result:
        """Run a function in the model's thread between two steps, and return its result or raise its error."""
        future: Future[Result] = Future()
        with self._wake:
            self._refuse_closed()
            self._calls.append((future, work))
            self._wake.notify()
        return future.result()

    def _refuse_closed(self) -> None:
        if self._broken or self._closing:
            raise self._broken or EngineError(CLOSED)

    def _run(self) -> None:
        try:
            with self._inside():
                while self._has_work():
                    try:
                        self._once()
                    except Exception as error:
                        log.exception("An engine's step failed; the running answers end with this error")
                        for answer in self.running:
                            answer.fail(error)
                        self._clear()
                left, calls = self._emptied()
                for call in calls:
                    _fulfil(*call)
                for answer in left:
                    answer.end("cancelled")
                self._clear()
        except BaseException as error:
            log.critical("An engine failed and accepts no more requests", exc_info=True)
            self._break_down(error)

    def _break_down(self, error: BaseException) -> None:
        """End all requests with an error, and reject later requests, because this thread is about to end."""
        broken = EngineError(f"The engine failed ({type(error).__name__}); see the log. Open the engine again.")
        broken.__cause__ = error
        left, calls = self._emptied(broken)
        self.running, self._joining = [], []
        for answer in left:
            answer.fail(broken)
        for future, _ in calls:
            future.set_exception(broken)

    def _emptied(self, broken: EngineError | None = None) -> tuple[list[ScheduledRequest], list[Any]]:
        """Record why the engine stops, empty the queues, and return all unfinished requests and calls."""
        with self._wake:
            self._broken = broken
            left, calls = [*self.running, *self._joining, *self._waiting], [*self._calls]
            self._waiting.clear()
            self._calls.clear()
        return left, calls

    def _has_work(self) -> bool:
        """Wait for work, and return True; return False if the engine is closing."""
        with self._wake:
            while not (self._closing or self._waiting or self._calls or self.running):
                self._wake.wait()
            return not self._closing

    def _once(self) -> None:
        with self._wake:
            call = self._calls.popleft() if self._calls else None
            gone = [answer for answer in self._waiting if answer.cancelled]
            for answer in gone:
                self._waiting.remove(answer)
            self._joining = self._chosen()
        for answer in gone:
            answer.end("cancelled")
        if call:
            _fulfil(*call)
        if self._joining:
            try:
                self._join(self._joining)
            except Exception as error:
                log.exception("Prompts can't be read; their requests end with this error")
                for answer in self._joining:
                    answer.fail(error)
            self._joining = []
        if self.running:
            self._step()


def _fulfil(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
        if not isinstance(error, Exception):
            raise


R = TypeVar("R", bound=RunningGeneration)


class ThreadPoolEngine(Generic[R]):
    """The common part of engines that run each request in its own thread: everything except generating and scoring."""

    def __init__(self, name: str, tokenizer: Any, context_tokens: int, concurrency: int) -> None:
        self.name, self.tokenizer, self.context_tokens = name, tokenizer, context_tokens
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix=f"meditune-{name.split()[0]}")
        self.concurrency = concurrency
        self._counting = threading.Lock()
        self._started: set[R] = set()
        self._closing = False

    def load(self) -> EngineLoad:
        """See engine.py."""
        with self._counting:
            return EngineLoad.of(len(self._started), self.concurrency)

    def opened(self) -> None:
        """See engine.py. The model is already open."""

    def failure(self) -> EngineError | None:
        """See engine.py."""
        return EngineError(CLOSED) if self._closing else None

    def close(self) -> None:
        """See engine.py."""
        with self._counting:
            self._closing = True
            for running in self._started:
                running.cancel()
        self._threads.shutdown()

    def _submit(self, running: R, run: Callable[[], None]) -> R:
        """Call `run` in a thread, and return `running`. Raises EngineError if the engine was closed."""

        def counted() -> None:
            try:
                run()
            finally:
                with self._counting:
                    self._started.discard(running)

        with self._counting:
            if self._closing:
                raise EngineError(CLOSED)
            self._started.add(running)
            self._threads.submit(counted)
        return running
