"""The engine for models exported with `meditune export --to gguf`: llama.cpp in this process, through xllamacpp.

It is small, starts quickly, and runs on nearly every machine. llama.cpp batches answers itself; each one is requested
from its own thread. Prompts and answers are exchanged as tokens, so llama.cpp's tokenizer isn't used.
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
"""Number of most likely tokens returned for each position of a scored text"""
SCORED_AT_ONCE = 3
"""Number of texts scored at once; more would displace the cached prompts of answers"""
CACHE_TOKENS = 16_384
"""Number of tokens in the cache for all prompts and answers together"""
CERTAIN = 1000.0
"""Logit bias that makes llama.cpp generate a token; it still reports the token's probability without the bias"""


class LlamacppEngine:
    """An exported GGUF model."""

    def __init__(self, folder: Path, at_once: int = 32) -> None:
        """Open the model. Raises ModelError if xllamacpp isn't installed or llama.cpp can't open the file."""
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
        """See engine.py. The five most likely tokens of each position are returned, too; each token is one request."""
        check_scorable(len(prompt), max(map(len, texts), default=0), self.context_tokens)

        def scored(text: Sequence[int]) -> list[TokenLogprob]:
            return [self._likely([*prompt, *text[:place]], token) for place, token in enumerate(text)]

        # In other threads, because llama.cpp would swallow a Ctrl-C during its callbacks.
        return list(self._scoring.map(scored, texts))

    def load(self) -> EngineLoad:
        """See engine.py."""
        with self._counting:
            return EngineLoad(self._running, len(self._started) - self._running)

    def opened(self) -> None:
        """See engine.py. The model is already open."""

    def failure(self) -> EngineError | None:
        """See engine.py. llama.cpp has no thread that ends alone: its fatal errors end this process."""
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
            # A server that is released before its loop runs waits for the loop forever.
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
        except Exception as error:  # noqa: BLE001 - it is passed on in the job's last chunk
            answer.fail(error)
        except BaseException as error:
            answer.fail(EngineError(f"An answer was interrupted ({type(error).__name__})."))
            raise
        finally:
            with self._counting:
                self._running -= 1
                self._started.discard(answer)

    def _write(self, answer: ScheduledRequest) -> None:
        def take(chunk: dict[str, Any]) -> bool:
            """Process a chunk, and return True to end the answer."""
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
        """Wait until there is room for this many tokens, because llama.cpp would otherwise end a running answer."""
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
        """Return the tokens of a piece of text, of which llama.cpp reports only the last one.

        There are several if a character has several tokens, because llama.cpp waits until the character is complete.
        """
        if not text or text.isascii() or self.tokenizer.decode([last]) == text:
            return [last]
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids if ids and ids[-1] == last else [last]

    def _of(self, answer: ScheduledRequest, token: int, said: dict[str, Any]) -> TokenLogprob | None:
        if not answer.job.logprobs:
            return None
        return (
            _token_logprob(said) if token == said["id"] else self._likely([*answer.job.prompt, *answer.tokens], token)
        )

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
            found.extend(
                _token_logprob(said) for said in (chunk["choices"][0].get("logprobs") or {}).get("content", [])
            )
            return False

        request = _request(GenerationRequest(before, 1, logprobs=OTHERS))
        self._asked(request | {"logit_bias": [[token, CERTAIN]], "ignore_eos": False}, take)
        if not found or found[0].token != token:
            raise EngineError(f"llama.cpp didn't return the log-probability of token {token}.")
        return found[0]

    def _asked(self, request: dict[str, Any], take: Callable[[dict[str, Any]], bool]) -> None:
        """Send a request; errors in `take`, which llama.cpp calls, are raised here."""
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
        # Without these values, llama.cpp would restrict the distribution.
        "top_k": 0,
        "min_p": 0.0,
        # llama.cpp only reports tokens together with their log-probabilities.
        "logprobs": max(job.logprobs, 1),
    }
    if job.seed is not None:
        request["seed"] = job.seed % 2**32
    if job.json_schema is not None:
        request["json_schema"] = dict(job.json_schema)
    return request


def _token_logprob(said: dict[str, Any]) -> TokenLogprob:
    return TokenLogprob(said["id"], said["logprob"], {one["id"]: one["logprob"] for one in said["top_logprobs"]})


def server(file: Path, tokens: int, at_once: int, key: str) -> Any:
    """Return llama.cpp's server for a GGUF file, with room for `tokens` tokens; its HTTP port requires `key`.

    Raises ModelError if xllamacpp isn't installed or the file can't be opened.
    """
    llama = import_package("llamacpp", "xllamacpp")
    settings = llama.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx = tokens
    settings.n_parallel = at_once
    # All texts share the cache.
    settings.kv_unified = True
    # Without this, Gemma 3 drops tokens outside its windows, and with them the shared prefixes.
    settings.swa_full = True
    settings.warmup = False
    settings.verbosity = 0
    settings.cpuparams.n_threads = cores()
    settings.cpuparams_batch.n_threads = cores()
    # The server also listens on this machine; a random key keeps others out.
    settings.api_keys = [key]
    try:
        return llama.Server(settings)
    except RuntimeError as error:
        raise ModelError(f"llama.cpp can't open {file}: {error}. Export the model again.") from error
