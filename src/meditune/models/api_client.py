"""Models behind an OpenAI-compatible API. Error messages contain neither the key nor text from the request."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from meditune.config.data_options import PromptFormat
from meditune.config.training_options import AddressSpec
from meditune.data.example import DECISIONS
from meditune.errors import ModelError
from meditune.files import read_json, write_json
from meditune.http_client import RETRY_LATER, Backoff, HttpClient, refuse_transient, switched_on
from meditune.models.catalogue import CATALOGUE
from meditune.prompts import CHAT_SYSTEM, DECISION_TOKENS, decision_in, load_format

MAX_MESSAGE_CHARACTERS = 300
"""Maximum number of characters of an API's error message that are shown"""
WINDOW = 20
"""Minimum number of consecutive characters in common with the request that count as an echo of the request"""


def without_echo(message: str, secrets: Iterable[str]) -> str:
    """Return the first MAX_MESSAGE_CHARACTERS of the message, with "…" instead of each part that repeats a secret."""
    # What follows the cut shows whether the end of the shown part begins an echo.
    text = " ".join(message.split())[: MAX_MESSAGE_CHARACTERS + WINDOW]
    masked = [False] * len(text)
    for secret in (" ".join(each.split()) for each in secrets):
        window = min(WINDOW, len(secret))
        for start in range(len(text) - window + 1) if window else ():
            if text[start : start + window] in secret:
                masked[start : start + window] = [True] * window
    shown = list(zip(text, masked, strict=True))[:MAX_MESSAGE_CHARACTERS]
    parts = groupby(shown, key=lambda pair: pair[1])
    return "".join("…" if hidden else "".join(character for character, _ in part) for hidden, part in parts)


BACKOFF = Backoff(attempts=8, first_wait=0.5)
NO_MONEY = {
    *("insufficient_quota", "billing_hard_limit_reached", "credit_balance_exhausted"),
    *("organization_spend_limit_exceeded", "project_spend_limit_exceeded", "organization_usage_limit_exceeded"),
}
ADVICE = {
    401: "Check the key in {variable}.",
    402: "Check the account's credit and limits, then run the same command to resume.",
    403: "Check the permissions of the key in {variable}.",
    404: "Check the model's name and model.api.url. A newly tuned model can take a few minutes to appear; if so, wait, "
    "then run the same command to resume.",
}

TIMEOUT_SECONDS = 120.0
"""Seconds without data from the server after which a request counts as failed and is retried"""

Finder = Callable[[], dict[str, Any] | None]
Texts = Callable[[], Iterable[str]]
"""A function that returns the texts of a request, which no error message may repeat"""


class ApiError(ModelError):
    """The error for a request that the API refused, or that failed several times."""

    def __init__(self, message: str, status: int | None = None, reason: str = "") -> None:
        """`reason` contains the name of the refused parameter, if known, and the API's own message."""
        super().__init__(message)
        self.status, self.reason = status, reason


class Client:
    """A client for one API. It is thread-safe; close it after use."""

    def __init__(self, spec: AddressSpec, key: str | None, advice: str = RETRY_LATER) -> None:
        """`advice` is the last sentence of the error message for a request that has failed several times."""
        import httpx2

        self.host, self._variable, self._key = spec.host, spec.key_variable or "no variable", key
        self._url, self.concurrency = spec.url.rstrip("/"), spec.concurrency
        self._http = HttpClient(
            BACKOFF,
            ApiError,
            advice=advice,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(TIMEOUT_SECONDS, connect=min(10.0, TIMEOUT_SECONDS)),
        )
        self.stopped = self._http.stopped
        """Event that, when set, ends the retries in all threads"""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **parameters: Any) -> dict[str, Any]:
        """Return the JSON object at `path`. Raises ApiError if the request is refused or fails repeatedly."""
        return self._http.retry(lambda: self._request("GET", path, params=parameters), self.host)

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a POST request that is safe to repeat, and return the response's JSON object. Raises ApiError."""
        texts = [message["content"] for message in (body or {}).get("messages", [])]
        return self._http.retry(lambda: self._request("POST", path, lambda: texts, json=body), self.host)

    def create(self, path: str, body: dict[str, Any], find: Finder) -> dict[str, Any]:
        """Create an object at most once, and return it. Before a retry, `find` looks for one from an earlier try."""
        return self._http.retry(lambda: self._request("POST", path, json=body), self.host, find)

    def upload(self, path: Path, name: str, find: Finder) -> dict[str, Any]:
        """Upload a file of training examples as `name`, at most once (like `create`), and return the API's record."""

        def send() -> dict[str, Any]:
            with path.open("rb") as stream:
                form = {"data": {"purpose": "fine-tune"}, "files": {"file": (name, stream, "application/jsonl")}}
                return self._request("POST", "/files", lambda: [path.read_text(encoding="utf-8")], **form)

        return self._http.retry(send, self.host, find)

    def _request(self, method: str, path: str, texts: Texts = list, **options: Any) -> dict[str, Any]:
        """Send one request. Raises TransientError if a retry may succeed, else ApiError."""
        response = self._http.request(method, self._url + path, **options)
        try:
            content = response.json()
        except ValueError:
            content = None
        content = content if isinstance(content, dict) else None
        if response.is_success and content is not None:
            return content
        if response.is_success or response.is_redirect:
            what = "sent a response that isn't a JSON object" if response.is_success else "redirects this request"
            raise ApiError(
                f"{self.host} {what} ({method} {path}). Is {self._url} the address of an OpenAI-compatible API "
                "(model.api.url)?",
                response.status_code,
            )
        raise self._refusal(response, content or {}, texts, f"{method} {path}")

    def _refusal(self, response: Any, content: dict[str, Any], texts: Texts, request: str) -> ApiError:
        """Return the error for a refused request. Raises TransientError if a retry may succeed."""
        error = content.get("error")
        facts = error if isinstance(error, dict) else {"message": error or content.get("detail") or ""}
        status = response.status_code
        if NO_MONEY & {facts.get("type"), facts.get("code")}:
            status = 402
        else:
            refuse_transient(response)
        message = without_echo(str(facts.get("message") or ""), [*texts(), self._key or ""])
        advice = ADVICE.get(status, "").format(variable=self._variable)
        detail = f": {message.rstrip('.')}" if message else ""
        sentence = f"{self.host} refused {request} ({response.status_code}{detail}). {advice}".rstrip()
        return ApiError(sentence, status, f"{facts.get('param') or ''} {message}")


Messages = Sequence[dict[str, str]]

TOP = 20
"""Number of most likely tokens to request: the maximum that OpenAI's API allows"""


@dataclass(frozen=True)
class ApiDecision:
    """A model's decision, and each label's log-likelihood.

    `prediction` is None if the text contains no decision. `logits` is None if the API returned no likelihoods.
    """

    prediction: str | None
    logits: dict[str, float] | None
    text: str


class Chat:
    """A chat model behind an API. It is thread-safe."""

    def __init__(self, client: Client, model: str) -> None:
        self.client, self.model = client, model
        self._limit, self._likelihoods = "max_tokens", True
        self._temperature: dict[str, float] = {"temperature": 0}

    def write(self, messages: Messages, max_tokens: int) -> str:
        """Return the model's answer; empty if the model refuses to answer.

        The temperature is 0, or the API's default if the model refuses that.
        """
        return _text(self._ask(messages, max_tokens))

    def decide(self, messages: Messages) -> ApiDecision:
        """Return the model's decision: the most likely label, or the label in its text if there are no likelihoods."""
        choice = self._ask(messages, DECISION_TOKENS, self._likelihoods)
        logits = label_logits(_first_token(choice))
        text = _text(choice)
        if logits and len(set(logits.values())) > 1:
            return ApiDecision(max(logits, key=lambda label: logits[label]), logits, text)
        return ApiDecision(decision_in(text), logits, text)

    def _ask(self, messages: Messages, max_tokens: int, likelihoods: bool = False) -> dict[str, Any]:
        body = {"model": self.model, "messages": list(messages), **self._temperature, self._limit: max_tokens}
        if likelihoods:
            body |= {"logprobs": True, "top_logprobs": TOP}
        try:
            answer = self.client.post("/chat/completions", body)
        except ApiError as error:
            if error.status not in {400, 422}:
                raise
            # Drop or rename an option that the model refuses.
            if likelihoods and "logprobs" in error.reason:
                self._likelihoods = likelihoods = False
            elif "max_tokens" in body and "max_completion_tokens" in error.reason:
                self._limit = "max_completion_tokens"
            elif "temperature" in body and "temperature" in error.reason:
                if self._temperature:
                    print(f"{self.model} refuses temperature 0, so its answers can differ each time.", file=sys.stderr)
                self._temperature = {}
            else:
                raise
            return self._ask(messages, max_tokens, likelihoods)
        choices = answer.get("choices")
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
            raise ApiError(f"{self.client.host} sent a response without choices. Does it serve chat completions?")
        choice: dict[str, Any] = choices[0]
        return choice


def label_logits(tokens: dict[str, float]) -> dict[str, float] | None:
    """Return each label's log-likelihood, computed from the candidates for the first token; None without candidates.

    A candidate counts towards a label if it equals the label or its beginning; case and surrounding spaces are ignored
    ("Yes", " may"). A label that matches no candidate gets the log-likelihood of the least likely candidate, which is
    an upper bound for the label.
    """
    if not tokens:
        return None
    words = [(token.strip().lower(), likelihood) for token, likelihood in tokens.items() if token.strip()]
    found = {label: [value for word, value in words if label.startswith(word)] for label in DECISIONS}
    least = min(tokens.values())
    return {label: _log_sum(values) if values else least for label, values in found.items()}


def _first_token(choice: dict[str, Any]) -> dict[str, float]:
    """Return the log-likelihood of each of the most likely first tokens; empty if the API returned no likelihoods."""
    places = (choice.get("logprobs") or {}).get("content") or []
    candidates = (places[0].get("top_logprobs") or []) if places else []
    return {str(each["token"]): float(each["logprob"]) for each in candidates if each.get("logprob") is not None}


def _text(choice: dict[str, Any]) -> str:
    return str((choice.get("message") or {}).get("content") or "").strip()


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


PREFIX = "api:"
FILE = "api.json"
"""File in a tuned API model's folder that contains the model's name and address instead of weights"""


@dataclass(frozen=True)
class ApiModel:
    """A model that is reached through an API."""

    name: str
    spec: AddressSpec
    form: PromptFormat | None = None
    """The prompt format saved with the model, if any"""
    system: str = CHAT_SYSTEM

    @property
    def title(self) -> str:
        """The name and host, for display."""
        return f"{self.name} at {self.spec.host}"

    def client(self, advice: str = RETRY_LATER) -> Client:
        """Return a client for the model's API; `advice` is as in `Client`. Raises ModelError like `key`."""
        return Client(self.spec, self.key(), advice)

    def key(self) -> str | None:
        """Return the API key, or None if the API needs none.

        Raises ModelError if the key is missing or invalid, or if MEDITUNE_OFFLINE is set and the API isn't local.
        """
        if switched_on("MEDITUNE_OFFLINE") and not self.spec.is_local:
            raise ModelError(f"{self.title} needs the network, but MEDITUNE_OFFLINE is set. Unset it.")
        variable = self.spec.key_variable
        if variable is None:
            return None
        key = os.environ.get(variable, "").strip()
        if not key:
            raise ModelError(
                f"{self.title} needs a key, but the environment variable {variable} isn't set. Set it to the key, or "
                f"name another variable with --set {self.spec.KEY}.key_variable=NAME (null if the API needs no key)."
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ModelError(f"The value of {variable} isn't a valid key: it contains spaces or non-ASCII characters.")
        return key

    def save(self, folder: Path, base: str) -> None:
        """Write the model's API name and address, its system prompt, and the base it was tuned from to `folder`."""
        place = {"url": self.spec.url, "key_variable": self.spec.key_variable}
        write_json(folder / FILE, {"model": self.name, "base": base, **place, "system": self.system})


def find_api_model(name: str, spec: AddressSpec) -> ApiModel | None:
    """Return the API model for `name`: a catalogue name, `api:NAME`, or a tuned model's folder; None for other models.

    The API's address comes from the tuned model's folder, or else from `spec`. Raises ModelError if `api.json` in the
    folder is damaged, or if no name follows `api:`.
    """
    entry = CATALOGUE.get(name)
    if entry and entry.api:
        return ApiModel(name, spec)
    if name.startswith(PREFIX):
        if name == PREFIX:
            raise ModelError("model.base: after api:, write the API's name for the model, such as api:gpt-4.1-mini.")
        return ApiModel(name.removeprefix(PREFIX), spec)
    given = Path(name).expanduser()
    for folder in (given / "model", given):
        if (folder / FILE).is_file():
            return _stored(folder, spec)
    return None


def _stored(folder: Path, spec: AddressSpec) -> ApiModel:
    record = read_json(folder / FILE)
    try:
        place = {name: record[name] for name in ("url", "key_variable")}
        spec = type(spec).model_validate(spec.model_dump() | place)
        return ApiModel(record["model"], spec, load_format(folder), record["system"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / FILE} was changed or damaged. Copy the model's folder again.") from error


RULE = "one token per 4 ASCII characters plus one per non-ASCII character, but at least 4 tokens per 3 words"
PER_MESSAGE, PER_CHAT = 4, 3
"""Tokens that the chat format adds per message, and tokens that it adds once per chat"""


def estimated_tokens(text: str) -> int:
    """Return the number of tokens in a text, estimated according to RULE."""
    plain = sum(map(str.isascii, text))
    return math.ceil(max(plain / 4 + len(text) - plain, len(text.split()) * 4 / 3))


def of_chat(messages: Sequence[dict[str, str]]) -> int:
    """Return the estimated number of tokens in a chat, including those of the chat format."""
    return PER_CHAT + sum(PER_MESSAGE + estimated_tokens(message["content"]) for message in messages)
