"""The engine for a model that runs on a server with OpenAI's API, such as vLLM.

Prompts are sent as token ids, with Meditune's prompt format and special tokens, so the server must serve the same
model. Constraints on answers are sent in vLLM's parameters. Since servers ignore parameters that they don't know, each
answer is checked against its constraint.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from meditune.engines.engine import (
    ALTERNATIVES,
    Finish,
    GenerationChunk,
    GenerationRequest,
    RunningGeneration,
    TokenLogprob,
    check_request,
    check_scorable,
)
from meditune.engines.scheduler import ThreadPoolEngine
from meditune.errors import DataError, EngineError, ModelError
from meditune.http_client import Backoff, HttpClient, TransientError

SECONDS = 300.0
"""Timeout in seconds for a server's response"""
PROBE_S = 10.0
"""Interval in seconds between checks that the server is alive"""
PROBE_TIMEOUT_S = 5.0
PROBE_AGAIN_S = 0.5
UNKNOWN_CONTEXT = 2048
"""Assumed context length in tokens if the server doesn't report it"""
MODEL_VARIABLE = "MEDITUNE_ENGINE_MODEL"
"""Environment variable with the id of the model to use on a server that serves several models"""
CANCELLED = GenerationChunk("", finish="cancelled")
MARK = "token_id:"
"""Prefix of a token's id in vLLM's responses, as in token_id:123"""


class ForwardedRequest:
    """A request that runs on the server."""

    def __init__(self) -> None:
        self.cancelled = False
        self._socket: Any = None

    def cancel(self) -> None:
        """End the request now; its last chunk reports the cancellation. The server notices the closed connection."""
        self.cancelled = True
        self._cut()

    def answered_by(self, response: Any) -> None:
        """Make `cancel` close this response's connection, even while a thread is reading from the connection."""
        self._socket = response.extensions["network_stream"].get_extra_info("socket")
        if self.cancelled:
            self._cut()

    def _cut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class OpenAIEngine(ThreadPoolEngine[ForwardedRequest]):
    """An engine that forwards requests to a server."""

    def __init__(
        self, url: str, tokenizer: Any, key: str | None = None, concurrency: int = 32, served_as: str | None = None
    ) -> None:
        """Connect to the server. Raises EngineError if it doesn't answer, or if it is unclear which model to use."""
        import httpx2

        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Each request has its own connection, which is closed to cancel the request.
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._http = HttpClient(Backoff(attempts=1), EngineError, headers=headers, timeout=SECONDS, limits=limits)
        try:
            served = self._json("GET", "/models")["data"]
            meant = _meant(served, served_as, self.url)
            self._model = meant["id"]
            # vLLM lists a context length only for the base model, not for its adapters.
            entries = [meant, *(one for one in served if one["id"] == meant.get("parent"))]
            lengths = [one["max_model_len"] for one in entries if one.get("max_model_len")]
            context_tokens = int(lengths[0]) if lengths else UNKNOWN_CONTEXT
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(
                f"{self.url}/models doesn't list its models in the form of OpenAI's API. Check the address, and that "
                "the server is ready."
            ) from error
        super().__init__(f"server {self._model}", tokenizer, context_tokens, concurrency)
        self._probing = threading.Lock()
        self._probed, self._suspected = time.monotonic(), False
        self._gone: EngineError | None = None

    def start(self, request: GenerationRequest, deliver: Callable[[GenerationChunk], None]) -> RunningGeneration:
        """See engine.py. If the server ignores an answer's constraint, the last chunk has an error."""
        check_request(request, self.context_tokens)
        forwarded = ForwardedRequest()
        return self._submit(forwarded, lambda: self._run(request, deliver, forwarded))

    def score(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[TokenLogprob]]:
        """See engine.py. Raises EngineError if the server doesn't return log-probabilities of given texts."""
        check_scorable(prompt, texts, self.context_tokens)
        return [self._scored(prompt, text) if text else [] for text in texts]

    def failure(self) -> EngineError | None:
        """See engine.py. The server is asked for its models every `PROBE_S` seconds, and after a failed request.

        The server counts as gone when two successive attempts fail, so that one lost packet doesn't end answers.
        """
        if closed := super().failure():
            return closed
        with self._probing:
            if self._gone is None and (self._suspected or time.monotonic() - self._probed >= PROBE_S):
                self._suspected = False
                if not self._answers():
                    time.sleep(PROBE_AGAIN_S)
                    if not (self._answers() or self._closing):
                        self._gone = EngineError(f"{self.url} no longer answers. Check that server.")
                self._probed = time.monotonic()
            return self._gone

    def _answers(self) -> bool:
        """Return whether the server lists its models and this model is among them."""
        try:
            response = self._http.request("GET", f"{self.url}/models", timeout=PROBE_TIMEOUT_S)
            return response.status_code < 400 and self._model in {one["id"] for one in response.json()["data"]}
        except (TransientError, ValueError, KeyError, TypeError, RuntimeError):
            # The response isn't a list of models, or the client was closed in the meantime.
            return False

    def close(self) -> None:
        """See engine.py."""
        super().close()
        self._http.close()

    def _run(
        self, request: GenerationRequest, deliver: Callable[[GenerationChunk], None], forwarded: ForwardedRequest
    ) -> None:
        try:
            if forwarded.cancelled:
                deliver(CANCELLED)
                return
            for chunk in self._chunks(request, forwarded):
                deliver(chunk)
        except Exception as error:  # noqa: BLE001 - the request's last chunk contains the error
            if forwarded.cancelled:
                deliver(CANCELLED)
                return
            self._suspected = True
            if isinstance(error, TransientError):
                error = EngineError(f"{self.url} {error} during an answer. Check that server.")
            deliver(GenerationChunk("", error=error))

    def _chunks(self, request: GenerationRequest, forwarded: ForwardedRequest) -> Iterator[GenerationChunk]:
        written = ""
        finish: Finish | None = None
        with self._http.stream("POST", f"{self.url}/completions", json=self._body(request)) as response:
            forwarded.answered_by(response)
            if response.status_code == 400 and request.json_schema is not None:
                raise ModelError(f"This JSON schema can't be enforced: {_reason(response.read())}")
            if response.status_code >= 400:
                raise self._refused(response)
            for choice in _choices(_lines(response.iter_bytes())):
                if forwarded.cancelled:
                    yield CANCELLED
                    return
                text = choice.get("text") or ""
                written += text
                reason = choice.get("finish_reason") or None
                if reason not in {None, "stop", "length"}:
                    raise EngineError(f"{self.url} ended an answer with finish reason {reason}. Check its log.")
                finish = finish or reason
                tokens, logprobs = self._tokens(choice, text)
                if text or tokens:
                    yield GenerationChunk(text, tokens, logprobs if request.logprobs else ())
        if finish is None:
            raise EngineError(f"{self.url} ended an answer without a finish reason. Check that server's log.")
        _check_constraint(request, written, finish, self.url)
        yield GenerationChunk("", finish=finish)

    def _tokens(self, choice: dict[str, Any], text: str) -> tuple[tuple[int, ...], tuple[TokenLogprob, ...]]:
        """Return the tokens and log-probabilities of a chunk of text, without the token that ends the answer.

        If the response contains no token ids, Meditune's tokenizer provides them, without log-probabilities.
        """
        tokens = (choice.get("logprobs") or {}).get("tokens") or []
        numbers = [_number(token) for token in tokens]
        if tokens and None not in numbers:
            logprobs = _logprobs(choice["logprobs"], range(len(tokens)))
            if choice.get("finish_reason") == "stop" and logprobs[-1].token in self.tokenizer.all_special_ids:
                logprobs.pop()
            return tuple(each.token for each in logprobs), tuple(logprobs)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return tuple(ids), ()

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(request.prompt),
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            # Without these values, defaults of the server or the model would change the distribution.
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stream": True,
            "return_tokens_as_token_ids": True,
        }
        if request.seed is not None:
            body["seed"] = request.seed % 2**31
        if request.stop:
            body["stop"] = list(request.stop)
        if request.logprobs:
            body["logprobs"] = request.logprobs
        if request.choices:
            body["structured_outputs"] = {"choice": list(request.choices)}
        if request.json_schema is not None:
            body["structured_outputs"] = {"json": dict(request.json_schema)}
        return body

    def _scored(self, prompt: Sequence[int], text: Sequence[int]) -> list[TokenLogprob]:
        body = {"model": self._model, "prompt": [*prompt, *text], "max_tokens": 1, "temperature": 0, "echo": True}
        body |= {"logprobs": ALTERNATIVES, "return_tokens_as_token_ids": True}
        returned = self._json("POST", "/completions", body)["choices"][0].get("logprobs") or {}
        places = range(len(prompt), len(prompt) + len(text))
        if len(returned.get("tokens") or []) < places.stop or _number(returned["tokens"][places.start]) is None:
            raise EngineError(
                f"{self.url} doesn't return the log-probabilities of a given text (echo with logprobs, as vLLM "
                "does). Measure the model in this process instead: --engine transformers."
            )
        return _logprobs(returned, places)

    def _json(self, method: str, path: str, body: Any = None) -> Any:
        try:
            response = self._http.request(method, f"{self.url}{path}", json=body)
        except (TransientError, DataError) as error:
            raise EngineError(
                f"No server answers at {self.url} ({error}). Start one, for example with `vllm serve FOLDER`, and "
                "specify its address up to and including /v1."
            ) from error
        if response.status_code >= 400:
            raise self._refused(response)
        return response.json()

    def _refused(self, response: Any) -> EngineError:
        hint = " Check the key." if response.status_code in {401, 403} else ""
        return EngineError(f"{self.url} answered {response.status_code} to {response.request.url.path}.{hint}")


def _meant(served: list[dict[str, Any]], served_as: str | None, url: str) -> dict[str, Any]:
    """Return the server's entry for the requested model. Raises EngineError if there is none, or several."""
    ids = ", ".join(one["id"] for one in served) or "none"
    if served_as is None and len(served) > 1:
        raise EngineError(
            f"{url} serves several models: {ids}. Choose one with {MODEL_VARIABLE}=ID, or serve only the merged model."
        )
    found = [one for one in served if served_as in {None, one["id"]}]
    if not found:
        raise EngineError(f"{url} doesn't serve {served_as or 'a model'} ({MODEL_VARIABLE}); its models: {ids}.")
    return found[0]


def _lines(parts: Iterator[bytes]) -> Iterator[str]:
    """Yield the lines of a stream of bytes. A line ends with LF or CRLF; U+2028, for example, is a part of its line."""
    rest = b""
    for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode(errors="replace")
    yield rest.decode(errors="replace")


def _choices(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yield the choices in a stream of server-sent events; [DONE] becomes a choice with only a finish reason."""
    for line in lines:
        if line.startswith("data:") and line[5:].strip() == "[DONE]":
            yield {"finish_reason": "stop"}
        elif line.startswith("data:"):
            event = json.loads(line[5:])
            if "error" in event:
                raise EngineError("The server ended an answer with an error.")
            yield from event.get("choices", [])


def _reason(body: bytes) -> str:
    """Return the message in the body of an error in the form of OpenAI's API."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "the model's server refuses it."


def _number(token: str) -> int | None:
    return int(token.removeprefix(MARK)) if token.startswith(MARK) else None


def _logprobs(returned: dict[str, Any], places: range) -> list[TokenLogprob]:
    found = []
    for place in places:
        others = (returned.get("top_logprobs") or [])[place : place + 1] or [None]
        numbered = {_number(token): value for token, value in (others[0] or {}).items()}
        known = {token: value for token, value in numbered.items() if token is not None}
        found.append(TokenLogprob(_number(returned["tokens"][place]) or 0, returned["token_logprobs"][place], known))
    return found


def _check_constraint(request: GenerationRequest, written: str, finish: Finish, url: str) -> None:
    """Raise EngineError if a complete answer isn't one of the given texts, or isn't JSON although it should be."""
    # The length or a stop text may have cut one of the given texts.
    ends = ("",) if finish == "length" else request.stop
    begun = any(choice.startswith(written + end) for choice in request.choices for end in ends)
    if request.choices and not begun and written not in request.choices:
        raise EngineError(f"{url} doesn't restrict answers to given texts, as vLLM does.")
    if request.json_schema is not None and finish == "stop":
        try:
            json.loads(written)
        except ValueError as error:
            raise EngineError(f"{url} doesn't restrict answers to a JSON schema, as vLLM does.") from error
