"""The engine for models exported with `meditune export --to gguf`: llama.cpp in this process, through xllamacpp.

llama.cpp batches answers itself; each answer is requested in its own thread. Prompts and answers are exchanged as
tokens, so llama.cpp's tokenizer isn't used.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from meditune.engines.engine import (
    ALTERNATIVES,
    GenerationChunk,
    GenerationRequest,
    RunningGeneration,
    TokenLogprob,
    check_request,
    check_scorable,
)
from meditune.engines.exported_model import ExportedModel, import_package, read_exported_model
from meditune.engines.sampling import ConstraintCompiler
from meditune.engines.scheduler import CLOSED, ScheduledRequest, ThreadPoolEngine
from meditune.engines.tokenizer import PlainTokenizer
from meditune.errors import EngineError, ModelError
from meditune.hardware import cores, memory_gb

log = logging.getLogger(__name__)
SCORING_THREADS = 3
"""Number of texts scored at once; more texts would displace the cached prompts of answers"""
CACHE_TOKENS, MIN_CACHE_TOKENS = 16_384, 2048
"""Number of tokens in the cache for all prompts and answers together: more if the model's context is longer, and less
if the cache would take more than half of the free memory"""
CERTAIN = 1000.0
"""Logit bias that makes llama.cpp generate a token; the reported probability of the token doesn't include the bias"""


class LlamacppEngine(ThreadPoolEngine[ScheduledRequest]):
    """An exported GGUF model."""

    def __init__(self, folder: Path, concurrency: int = 32) -> None:
        """Open the model. Raises ModelError if xllamacpp isn't installed or llama.cpp can't open the file."""
        model = read_exported_model(folder)
        file = folder / next(name for name in model.files if name.endswith(".gguf"))
        wanted = max(CACHE_TOKENS, model.context_tokens)
        self._free = self._cells = min(wanted, max(MIN_CACHE_TOKENS, _fitting_tokens(model, file)))
        context_tokens = min(model.context_tokens, self._cells)
        if context_tokens < model.context_tokens:
            log.warning(
                "Prompt and answer may have at most %s tokens together instead of %s, because the cache of llama.cpp "
                "may take only half of the free memory.",
                f"{context_tokens:,}",
                f"{model.context_tokens:,}",
            )
        super().__init__(f"llamacpp {model.weights}", PlainTokenizer(folder), context_tokens, concurrency)
        self._ends, self._vocabulary = frozenset(model.stop_tokens), model.config()["vocab_size"]
        self._constraints = ConstraintCompiler(self.tokenizer, model.stop_tokens, folder)
        self._key = secrets.token_urlsafe(32)
        self._room = threading.Condition()
        self._server: Any = server(file, self._cells, concurrency, self._key)
        self._scoring = ThreadPoolExecutor(SCORING_THREADS, thread_name_prefix="meditune-llamacpp-score")

    def start(self, request: GenerationRequest, deliver: Callable[[GenerationChunk], None]) -> RunningGeneration:
        """See engine.py."""
        check_request(request, self.context_tokens)
        # llama.cpp would ignore a JSON schema that it can't enforce.
        self._constraints.compile(request)
        answer = ScheduledRequest(request, deliver, self.tokenizer)
        return self._submit(answer, lambda: self._run(answer))

    def score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[TokenLogprob]]:
        """See engine.py. The five most likely tokens of each position are returned, too.

        Scoring each token requires a request of its own.
        """
        check_scorable(prompt, texts, self.context_tokens)

        def scored(text: Sequence[int]) -> list[TokenLogprob]:
            with self._memory(len(prompt) + len(text)):
                return [self._logprob_of([*prompt, *text[:place]], token) for place, token in enumerate(text)]

        # Texts of one token are scored one after the other, so that llama.cpp reads the prompt once. Texts at the same
        # time would all read it.
        groups = [texts] if all(len(text) == 1 for text in texts) else [[text] for text in texts]
        with self._counting:
            if self._closing:
                raise EngineError(CLOSED)
            # Texts are scored in other threads, because llama.cpp would swallow a Ctrl-C during its callbacks.
            results = self._scoring.map(lambda group: [scored(text) for text in group], groups)
        return [one for group in results for one in group]

    def tokenize(self, text: str) -> list[int]:
        """Return a prompt's tokens by llama.cpp's own tokenizer, with BOS and special tokens, as in Ollama."""
        import httpx2

        body = {"content": text, "add_special": True, "parse_special": True}
        options: dict[str, Any] = {"headers": {"Authorization": f"Bearer {self._key}"}, "trust_env": False}
        ids: list[int] = httpx2.post(f"{self._server.listening_address}/tokenize", json=body, **options).json()[
            "tokens"
        ]
        return ids

    def close(self) -> None:
        """See engine.py."""
        super().close()
        self._scoring.shutdown()
        if self._server is not None:
            # A server that is released before its loop runs would wait for the loop forever, so send a request first.
            self._server.handle_completions(_request(GenerationRequest([0], 1)), lambda _: True)
        self._server = None

    def _run(self, answer: ScheduledRequest) -> None:
        try:
            if answer.cancelled:
                answer.end("cancelled")
            elif answer.request.choices:
                answer.choose(self.score, min(self._ends))
            else:
                self._write(answer)
        except Exception as error:  # noqa: BLE001 - the request's last chunk contains the error
            answer.fail(error)
        except BaseException as error:
            answer.fail(EngineError(f"An answer was interrupted ({type(error).__name__})."))
            raise

    def _write(self, answer: ScheduledRequest) -> None:
        def logprob(token: int, reported: dict[str, Any]) -> TokenLogprob:
            if token == reported["id"]:
                return _token_logprob(reported)
            return self._logprob_of([*answer.request.prompt, *answer.tokens], token)

        def take(chunk: dict[str, Any]) -> bool:
            """Process a chunk, and return True to end the answer."""
            if not answer.tokens:
                answer.cached = int((chunk.get("timings") or {}).get("cache_n", answer.cached))
            choice = chunk["choices"][0]
            for reported in (choice.get("logprobs") or {}).get("content", []):
                for token in self._tokens(choice["text"], reported["id"]):
                    if token in self._ends:
                        answer.end()
                    elif not answer.ended:
                        answer.take(token, logprob(token, reported) if answer.request.logprobs else None)
            return answer.ended or answer.cancelled

        tokens = len(answer.request.prompt) + answer.request.max_new_tokens
        # `_logprob_of` may read the prompt and the answer again.
        with self._memory(2 * tokens if answer.request.logprobs else tokens):
            if not answer.cancelled:
                self._send(_request(answer.request), take)
        answer.end("cancelled" if answer.cancelled else "stop")

    @contextmanager
    def _memory(self, tokens: int) -> Iterator[None]:
        """Wait until there is room for this many tokens, because llama.cpp would otherwise end a running answer."""
        tokens = min(tokens, self._cells)
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
        """Return the tokens of a text; llama.cpp reports only the last token of a multi-token character."""
        if not text or text.isascii() or self.tokenizer.decode([last]) == text:
            return [last]
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids if ids and ids[-1] == last else [last]

    def _logprob_of(self, before: list[int], token: int) -> TokenLogprob:
        reported = self._reported(before, token, ALTERNATIVES)
        if reported and reported.token == token:
            return reported
        # llama.cpp doesn't report a token that ends inside a character, except as an alternative to another token.
        reported = self._reported(before, min(self._ends), self._vocabulary)
        if not reported or token not in reported.others:
            raise EngineError(f"llama.cpp didn't return the log-probability of token {token}.")
        best = dict(islice(reported.others.items(), ALTERNATIVES))
        return TokenLogprob(token, reported.others[token], best)

    def _reported(self, before: list[int], token: int, alternatives: int) -> TokenLogprob | None:
        """Return the log-probability of `token`, and those of the most likely tokens, if llama.cpp reports them."""
        found: list[TokenLogprob] = []

        def take(chunk: dict[str, Any]) -> bool:
            found.extend(map(_token_logprob, (chunk["choices"][0].get("logprobs") or {}).get("content", [])))
            return False

        body = _request(GenerationRequest(before, 1, logprobs=alternatives))
        self._send(body | {"logit_bias": [[token, CERTAIN]], "ignore_eos": False}, take)
        return found[0] if found else None

    def _send(self, body: dict[str, Any], take: Callable[[dict[str, Any]], bool]) -> None:
        """Send a request. llama.cpp calls `take` with each chunk; an error in `take` is raised here."""
        broken: list[BaseException] = []

        def guarded(chunk: Any) -> bool:
            try:
                if "error" in chunk:
                    raise EngineError(f"llama.cpp: {chunk['error'].get('message', chunk['error'])}")
                return take(chunk)
            except BaseException as error:  # noqa: BLE001 - raised below; C++ could not handle it
                broken.append(error)
                return True

        self._server.handle_completions(body, guarded)
        if broken:
            raise broken[0]


def _request(request: GenerationRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt": list(request.prompt),
        "max_tokens": request.max_new_tokens,
        "stream": True,
        "cache_prompt": True,
        "temperature": request.temperature,
        "top_p": request.top_p,
        # Without these values, llama.cpp would restrict the distribution.
        "top_k": 0,
        "min_p": 0.0,
        # Without this value, only the last chunk says how much of the prompt was cached.
        "timings_per_token": True,
        # llama.cpp reports tokens only together with their log-probabilities.
        "logprobs": max(request.logprobs, 1),
    }
    if request.seed is not None:
        body["seed"] = request.seed % 2**32
    if request.json_schema is not None:
        body["json_schema"] = dict(request.json_schema)
    return body


def _token_logprob(reported: dict[str, Any]) -> TokenLogprob:
    return TokenLogprob(
        reported["id"], reported["logprob"], {one["id"]: one["logprob"] for one in reported["top_logprobs"]}
    )


def _fitting_tokens(model: ExportedModel, file: Path) -> int:
    """Return the number of tokens whose keys and values (FP16) take half of the memory left by the weights."""
    vectors, size = model.cached_vectors()
    tokens = int(memory_gb()[1] * 1e9 - file.stat().st_size) // 2 // (vectors * size * 2)
    return tokens // MIN_CACHE_TOKENS * MIN_CACHE_TOKENS


def server(file: Path, tokens: int, concurrency: int, key: str) -> Any:
    """Return llama.cpp's server for a GGUF file. Its HTTP port requires `key`. Raises ModelError on failure."""
    llama = import_package("llamacpp", "xllamacpp")
    settings = llama.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx = tokens
    settings.n_parallel = concurrency
    # All texts share the cache.
    settings.kv_unified = True
    # Without this setting, Gemma 3 drops tokens outside its attention windows, and shared prefixes with them.
    settings.swa_full = True
    # By default, llama.cpp also copies up to 8 GiB of the prompts that it removes from the cache.
    settings.cache_ram_mib = 0
    settings.warmup = False
    settings.verbosity = 0
    settings.cpuparams.n_threads = cores()
    settings.cpuparams_batch.n_threads = cores()
    # The server also opens an HTTP port on this machine; a random key keeps other programs out.
    settings.api_keys = [key]
    try:
        return llama.Server(settings)
    except RuntimeError as error:
        raise ModelError(f"llama.cpp can't open {file}: {error}. Export the model again.") from error
