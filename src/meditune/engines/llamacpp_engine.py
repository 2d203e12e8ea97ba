"""llama.cpp in this process, through xllamacpp: small, quick to start, and at home on nearly every machine.

It opens what `meditune export --to gguf` made. llama.cpp batches answers itself; it is asked for each of them from a
thread of its own. Prompts and answers are exchanged as tokens, so that its tokenizer plays no part.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meditune.engines.engine import (
    EngineLoad,
    GenerationChunk,
    GenerationRequest,
    RunningGeneration,
    TokenLogprob,
    check_request,
    check_scorable,
)
from meditune.engines.exported_model import import_package, read_exported_model
from meditune.engines.scheduler import ScheduledRequest
from meditune.engines.structured_output import ChoiceConstraint, constraint_of
from meditune.engines.tokenizer import PlainTokenizer
from meditune.errors import EngineError, ModelError
from meditune.hardware import cores

OTHERS = 5
"""Likeliest tokens that are told of each place in a text that is scored"""
SCORED_AT_ONCE = 3
"""Texts; more would push prompts out of the memory that answers need"""
CACHE_TOKENS = 16_384
"""Keys and values of all prompts and answers together"""
CERTAIN = 1000.0
"""Added to a token's logit it makes llama.cpp write that token, and tell how likely it was without"""


class LlamacppEngine:
    """A GGUF model."""

    def __init__(self, folder: Path, at_once: int = 32) -> None:
        """Raises ModelError where xllamacpp isn't installed or llama.cpp can't open the file."""
        model = read_exported_model(folder)
        self.tokenizer: Any = PlainTokenizer(folder)
        self.name = f"llamacpp {model.weights}"
        self.context_tokens = model.context_tokens
        self._ends = frozenset(model.stop_tokens)
        file = folder / next(name for name in model.files if name.endswith(".gguf"))
        self._server: Any = server(file, max(CACHE_TOKENS, model.context_tokens), at_once, secrets.token_urlsafe(32))
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="meditune-llamacpp")
        self._scoring = ThreadPoolExecutor(SCORED_AT_ONCE, thread_name_prefix="meditune-llamacpp-score")
        self._counting = threading.Lock()
        self._room = threading.Condition()
        self._free = max(CACHE_TOKENS, model.context_tokens)
        self._started: set[ScheduledRequest] = set()
        self._running = 0
        self._closing = False

    def start(self, job: GenerationRequest, deliver: Callable[[GenerationChunk], None]) -> RunningGeneration:
        """See engine.py."""
        check_request(job, self.context_tokens)
        if job.choices:
            ChoiceConstraint(self.tokenizer, job.choices, 0)
        answer = ScheduledRequest(job, deliver, self.tokenizer)
        with self._counting:
            if self._closing:
                raise EngineError("The engine was closed.")
            self._started.add(answer)
            self._threads.submit(self._run, answer)
        return answer

    def score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[TokenLogprob]]:
        """See engine.py. Of each place the five likeliest tokens are told, too. llama.cpp is asked token by token."""
        check_scorable(len(prompt), max(map(len, texts), default=0), self.context_tokens)

        def scored(text: Sequence[int]) -> list[TokenLogprob]:
            return [self._likely([*prompt, *text[:place]], token) for place, token in enumerate(text)]

        # In threads of their own: llama.cpp would swallow a ctrl-C that strikes while it calls back.
        return list(self._scoring.map(scored, texts))

    def load(self) -> EngineLoad:
        """See engine.py."""
        with self._counting:
            return EngineLoad(self._running, len(self._started) - self._running)

    def opened(self) -> None:
        """See engine.py. The model was opened before."""

    def failure(self) -> EngineError | None:
        """See engine.py. llama.cpp has no thread that ends alone: what breaks it down ends this process."""
        return EngineError("The engine was closed.") if self._closing else None

    def close(self) -> None:
        """See engine.py."""
        with self._counting:
            self._closing = True
            for answer in self._started:
                answer.cancel()
        self._threads.shutdown()
        self._scoring.shutdown()
        if self._server is not None:
            # A server that is let go of before its loop runs waits for that loop forever.
            self._server.handle_completions(_request(GenerationRequest([0], 1)), lambda _: True)
        self._server = None

    def _run(self, answer: ScheduledRequest) -> None:
        with self._counting:
            self._running += 1
        try:
            if answer.cancelled:
                answer.end("cancelled")
            elif answer.job.choices:
                self._choose(answer)
            else:
                self._write(answer)
        except Exception as error:  # noqa: BLE001 - it is handed on, as the job's last piece
            answer.fail(error)
        except BaseException as error:
            answer.fail(EngineError(f"An answer was broken off ({type(error).__name__})."))
            raise
        finally:
            with self._counting:
                self._running -= 1
                self._started.discard(answer)

    def _write(self, answer: ScheduledRequest) -> None:
        def take(chunk: dict[str, Any]) -> bool:
            """True ends it."""
            if "error" in chunk:
                raise EngineError(f"llama.cpp: {chunk['error'].get('message', chunk['error'])}")
            answer.cached = int((chunk.get("timings") or {}).get("cache_n", answer.cached))
            choice = chunk["choices"][0]
            for said in (choice.get("logprobs") or {}).get("content", []):
                for token in self._tokens(choice["text"], said["id"]):
                    if token in self._ends:
                        answer.end()
                    elif not answer.ended:
                        answer.take(token, self._of(answer, token, said))
            return answer.ended or answer.cancelled

        with self._memory(len(answer.job.prompt) + answer.job.max_new_tokens):
            self._asked(_request(answer.job), take)
        answer.end("cancelled" if answer.cancelled else "stop")

    @contextmanager
    def _memory(self, tokens: int) -> Iterator[None]:
        """Wait until so many tokens have room beside the others that run, or llama.cpp would break one off."""
        with self._room:
            self._room.wait_for(lambda: self._free >= tokens)
            self._free -= tokens
        try:
            yield
        finally:
            with self._room:
                self._free += tokens
                self._room.notify_all()

    def _tokens(self, text: str, last: int) -> list[int]:
        """The tokens of a piece of text, of which llama.cpp tells the last one only.

        There are more where a character takes several: llama.cpp waits until it is whole.
        """
        if not text or text.isascii() or self.tokenizer.decode([last]) == text:
            return [last]
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids if ids and ids[-1] == last else [last]

    def _of(self, answer: ScheduledRequest, token: int, said: dict[str, Any]) -> TokenLogprob | None:
        if not answer.job.logprobs:
            return None
        return _told(said) if token == said["id"] else self._likely([*answer.job.prompt, *answer.tokens], token)

    def _choose(self, answer: ScheduledRequest) -> None:
        end = min(self._ends)
        texts = ChoiceConstraint(self.tokenizer, answer.job.choices, end).texts
        scored = self.score(answer.job.prompt, [[*text, end] for text in texts])
        for likely in constraint_of(scored, answer.job):
            answer.take(likely.token, likely if answer.job.logprobs else None)
            if answer.ended:
                break
        answer.end()

    def _likely(self, before: list[int], token: int) -> TokenLogprob:
        found: list[TokenLogprob] = []

        def take(chunk: dict[str, Any]) -> bool:
            if "error" in chunk:
                raise EngineError(f"llama.cpp: {chunk['error'].get('message', chunk['error'])}")
            found.extend(_told(said) for said in (chunk["choices"][0].get("logprobs") or {}).get("content", []))
            return False

        request = _request(GenerationRequest(before, 1, logprobs=OTHERS))
        self._asked(request | {"logit_bias": [[token, CERTAIN]], "ignore_eos": False}, take)
        if not found or found[0].token != token:
            raise EngineError(f"llama.cpp didn't tell how likely token {token} is.")
        return found[0]

    def _asked(self, request: dict[str, Any], take: Callable[[dict[str, Any]], bool]) -> None:
        """Put a request; what goes wrong in `take`, which llama.cpp calls, is raised here."""
        broken: list[BaseException] = []

        def guarded(chunk: Any) -> bool:
            try:
                return take(chunk)
            except BaseException as error:  # noqa: BLE001 - raised below; C++ could not handle it
                broken.append(error)
                return True

        self._server.handle_completions(request, guarded)
        if broken:
            raise broken[0]


def _request(job: GenerationRequest) -> dict[str, Any]:
    request: dict[str, Any] = {
        "prompt": list(job.prompt),
        "max_tokens": job.max_new_tokens,
        "stream": True,
        "cache_prompt": True,
        "temperature": job.temperature,
        "top_p": job.top_p,
        # llama.cpp cuts off more than was asked for, unless told not to.
        "top_k": 0,
        "min_p": 0.0,
        # Tokens are told with their likelihood only.
        "logprobs": max(job.logprobs, 1),
    }
    if job.seed is not None:
        request["seed"] = job.seed % 2**32
    if job.json_schema is not None:
        request["json_schema"] = dict(job.json_schema)
    return request


def _told(said: dict[str, Any]) -> TokenLogprob:
    return TokenLogprob(said["id"], said["logprob"], {one["id"]: one["logprob"] for one in said["top_logprobs"]})


def server(file: Path, tokens: int, at_once: int, key: str) -> Any:
    """llama.cpp's server on a GGUF file, with room for so many tokens; over HTTP it asks for the key.

    Raises ModelError where xllamacpp isn't installed or the file can't be opened.
    """
    llama = import_package("llamacpp", "xllamacpp")
    settings = llama.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx = tokens
    settings.n_parallel = at_once
    # Texts share the memory as they need it.
    settings.kv_unified = True
    # Gemma 3 forgets what its windows have left, and with it the beginnings that others share.
    settings.swa_full = True
    settings.warmup = False
    settings.verbosity = 0
    settings.cpuparams.n_threads = cores()
    settings.cpuparams_batch.n_threads = cores()
    # It listens on this machine as well; nobody else is to ask it.
    settings.api_keys = [key]
    try:
        return llama.Server(settings)
    except RuntimeError as error:
        raise ModelError(f"llama.cpp can't open {file}: {error}. Export the model again.") from error
