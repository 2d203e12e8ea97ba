"""Requests to an OpenAI-compatible API.

What may pass (a rate limit, a server's error, a dropped connection) is tried again a bounded number of times. What a
message says of the API's answer has neither the key nor text of the request in it.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from meditune.errors import ModelError
from meditune.models.api.retry import PassingError, echoless, wait_asked_for
from meditune.recipe import ApiSpec

ATTEMPTS = 8
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
LONGEST_ASKED_FOR = 120.0
"""Seconds. Who asks for a longer pause is left alone until the user comes back."""
SAID_FROM = 5.0
"""Waits from this length on are announced."""
MAY_PASS = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
NO_MONEY = {
    *("insufficient_quota", "billing_hard_limit_reached", "credit_balance_exhausted"),
    *("organization_spend_limit_exceeded", "project_spend_limit_exceeded", "organization_usage_limit_exceeded"),
}
ADVICE = {
    401: "Check the key in {variable}.",
    402: "Check the account's credit and limits; the same command goes on.",
    403: "Check what the key in {variable} may use.",
    404: "Check the model's name and model.api.url. A model that was just tuned can take some minutes to appear; the "
    "same command goes on.",
}

Found = Callable[[], dict[str, Any] | None]
Texts = Callable[[], Iterable[str]]
"""What a request says that no message may repeat."""


class ApiError(ModelError):
    """What the API answered when it refused."""

    def __init__(self, message: str, status: int | None = None, said: str = "") -> None:
        super().__init__(message)
        self.status, self.said = status, said


class Client:
    """One API. Safe to use from several threads; close it when done."""

    def __init__(self, spec: ApiSpec, key: str | None) -> None:
        import httpx2

        self.host, self._variable, self._key = spec.host, spec.key_variable or "no variable", key
        self._url = spec.url.rstrip("/")
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(spec.timeout_seconds, connect=min(10.0, spec.timeout_seconds)),
        )
        self.stopped = threading.Event()
        """Set so that nothing is tried again, in any thread."""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._http.close()

    def get(self, path: str, **parameters: Any) -> dict[str, Any]:
        """What the API has at `path`. Raises ApiError."""
        return self._until_it_works(lambda: self._once("GET", path, params=parameters))

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """What comes of a request that may be made twice. Raises ApiError."""
        texts = [message["content"] for message in (body or {}).get("messages", [])]
        return self._until_it_works(lambda: self._once("POST", path, lambda: texts, json=body))

    def create(self, path: str, body: dict[str, Any], find: Found) -> dict[str, Any]:
        """Make something that must not be made twice.

        Where a request may or may not have been heard, `find` looks for what it would have made before it is sent
        again. Raises ApiError.
        """
        return self._until_it_works(lambda: self._once("POST", path, json=body), find)

    def upload(self, path: Path, name: str, find: Found) -> dict[str, Any]:
        """Upload a file of training examples under a name; like `create`, never twice."""

        def once() -> dict[str, Any]:
            with path.open("rb") as stream:
                form = {"data": {"purpose": "fine-tune"}, "files": {"file": (name, stream, "application/jsonl")}}
                return self._once("POST", "/files", lambda: [path.read_text(encoding="utf-8")], **form)

        return self._until_it_works(once, find)

    def _until_it_works(self, once: Callable[[], dict[str, Any]], find: Found | None = None) -> dict[str, Any]:
        reason = ""
        for attempt in range(ATTEMPTS):
            try:
                return once()
            except PassingError as passing:
                reason = passing.reason
                backoff = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.75, 1.0)
                wait = passing.wait or backoff
                if wait > LONGEST_ASKED_FOR:
                    raise ApiError(
                        f"{self.host} {reason} and asks to come back in {wait:.0f} seconds. Run the same command then."
                    ) from passing
                if wait >= SAID_FROM:
                    print(f"{self.host} {reason}; trying again in {wait:.0f} s.", file=sys.stderr)
                if attempt + 1 < ATTEMPTS and self.stopped.wait(wait):
                    break
                made = find() if find and passing.maybe_done else None
                if made is not None:
                    return made
        raise ApiError(f"{self.host} {reason}; {ATTEMPTS} attempts were made. Run the same command later to go on.")

    def _once(self, method: str, path: str, texts: Texts = list, **options: Any) -> dict[str, Any]:
        """One request. Raises PassingError where another one may work, else ApiError."""
        import httpx2

        try:
            answer = self._http.request(method, self._url + path, **options)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise PassingError("can't be reached", maybe_done=False) from error
        except httpx2.TimeoutException as error:
            raise PassingError("didn't answer in time") from error
        except httpx2.RequestError as error:
            raise PassingError(f"broke the connection off ({type(error).__name__})") from error
        content = _object(answer)
        if answer.is_success and content is not None:
            return content
        if answer.is_success or answer.is_redirect:
            what = "answered with something that is no JSON object" if answer.is_success else "sends this elsewhere"
            raise ApiError(
                f"{self.host} {what} ({method} {path}). Is {self._url} the address of an OpenAI-compatible API "
                "(model.api.url)?",
                answer.status_code,
            )
        raise self._refusal(answer, content or {}, texts, f"{method} {path}")

    def _refusal(self, answer: Any, content: dict[str, Any], texts: Texts, what: str) -> Exception:
        error = content.get("error")
        facts = error if isinstance(error, dict) else {"message": error or content.get("detail") or ""}
        said = echoless(str(facts.get("message") or ""), [*texts(), self._key or ""])
        status = 402 if NO_MONEY & {facts.get("type"), facts.get("code")} else answer.status_code
        if status in MAY_PASS:
            # A rate limit is checked before anything is done; any other error may come after it.
            return PassingError(f"answers {status}", wait_asked_for(answer.headers), maybe_done=status != 429)
        advice = ADVICE.get(status, "").format(variable=self._variable)
        told = f": {said.rstrip('.')}" if said else ""
        sentence = f"{self.host} refused {what} ({answer.status_code}{told}). {advice}".rstrip()
        return ApiError(sentence, status, f"{facts.get('param') or ''} {said}")


def _object(answer: Any) -> dict[str, Any] | None:
    try:
        content = answer.json()
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
