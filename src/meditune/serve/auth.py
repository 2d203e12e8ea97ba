"""Authentication by API key, or by address if no keys are required, with scopes, rate limits and daily quotas."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request

from meditune.serve.api_errors import SCOPE_KEY, ApiError, too_many_requests
from meditune.serve.settings import Settings
from meditune.serve.store_access import run_in_store_thread
from meditune.store.api_keys import SCOPES, USUAL, Keys, Scope, Usage

MAX_CALLERS = 10_000
"""Maximum number of token buckets. The least recently used bucket, which is soon full again, is dropped first."""
RATE_HEADERS = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")
"""The headers with a caller's rate limit, under OpenAI's names"""

IPV6_PREFIX = 64
"""The prefix length of the smallest network that a provider assigns to a customer, who can use all its addresses"""


def network_of(address: str) -> str:
    """Return an id for the owner of an IP address: the IPv4 address itself, or the network of an IPv6 address.

    An IPv4 address in IPv6 notation (`::ffff:192.0.2.1`) counts as IPv4. A text that isn't an IP address is returned
    unchanged.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, IPV6_PREFIX), strict=False))


@dataclass(frozen=True)
class Rate:
    """The state of a caller's rate limit."""

    allowed: bool
    limit: int
    remaining: int
    reset_s: float
    """Seconds until all requests are available again; if the limit is reached, until the next request is allowed"""

    def headers(self) -> dict[str, str]:
        """Return the rate-limit headers."""
        values = str(self.limit), str(self.remaining), f"{self.reset_s:.3f}s"
        return dict(zip(RATE_HEADERS, values, strict=True))


class Rates:
    """The token buckets of all callers. Each allows `per_minute` requests at once, and refills within a minute."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[tuple[str, int], tuple[float, float]] = OrderedDict()
        """(Caller, limit) -> (tokens left, time of the last update)"""

    def take(self, caller: str, per_minute: int) -> Rate:
        """Take one token from the caller's bucket if there is one, and return the state of the rate limit."""
        now = time.monotonic()
        tokens, updated_s = self._buckets.pop((caller, per_minute), (float(per_minute), now))
        tokens = min(per_minute, tokens + (now - updated_s) * per_minute / 60)
        allowed = tokens >= 1
        tokens -= allowed
        self._buckets[caller, per_minute] = tokens, now
        if len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        missing = per_minute - tokens if allowed else 1 - tokens
        return Rate(allowed, per_minute, int(tokens), missing * 60 / per_minute)


WRONG_KEYS_PER_MINUTE = 20
URGENT_PER_MINUTE = 60
"""For callers without a rate limit, how many requests per minute beyond the quota are checked for emergencies"""


@dataclass(frozen=True)
class Caller:
    """The sender of a request."""

    name: str
    """The key's id, or the address (for IPv6, the /64 network); each name has its own rate limit and quota"""
    key: str
    """The key's id; empty without a key"""
    scopes: frozenset[str]
    per_minute: int
    daily_tokens: int


class Authenticator:
    """Checks keys, scopes, rate limits and quotas."""

    def __init__(self, settings: Settings, keys: Keys | None, usage: Usage | None) -> None:
        self.settings, self.keys, self.usage = settings, keys, usage
        self.rates, self.wrong_keys, self.urgent, self.feedback = Rates(), Rates(), Rates(), Rates()

    async def caller(self, request: Request, scope: Scope) -> Caller:
        """Return the caller. Raises ApiError 401 (no valid key), 403 (missing scope) or 429 (too many wrong keys)."""
        address = network_of(request.client.host) if request.client else "local"
        caller = await self._by_key(request, address)
        request.scope[SCOPE_KEY].facts["who"] = caller.key or "anonymous"
        if scope not in caller.scopes:
            raise ApiError(403, _missing_scope_message(scope, caller), "missing_scope")
        return caller

    async def charge(self, request: Request, caller: Caller) -> None:
        """Count one request against the rate limit, and check the quota. Raises ApiError 429 if either is exhausted."""
        if caller.per_minute:
            rate = self.rates.take(caller.name, caller.per_minute)
            request.scope[SCOPE_KEY].headers |= rate.headers()
            if not rate.allowed:
                message = f"You sent more than {rate.limit} requests in a minute."
                raise _exhausted(request, "rate", message, rate.reset_s, "rate_limit_exceeded")
        if caller.daily_tokens and self.usage:
            used = await asyncio.to_thread(self.usage.today, caller.name)
            if used >= caller.daily_tokens:
                message = f"Today's {caller.daily_tokens:,} tokens are used up. The quota resets at midnight UTC."
                raise _exhausted(request, "quota", message, 86_400 - time.time() % 86_400, "insufficient_quota")

    async def try_charge(self, request: Request, caller: Caller) -> ApiError | None:
        """Count one request like `charge`, but return a refusal, so that the message can be checked for an emergency.

        The rate limit is also the number of refused requests per minute that are checked in this way; beyond that
        number, the refusal is raised. Returns None if the request isn't refused.
        """
        try:
            await self.charge(request, caller)
        except ApiError as refusal:
            if self.urgent.take(caller.name, caller.per_minute or URGENT_PER_MINUTE).allowed:
                return refusal
            raise
        return None

    def limit_feedback(self, request: Request, caller: Caller) -> None:
        """Count one piece of feedback against the caller's limit. Raises ApiError 429 if the limit is exhausted."""
        limits = [limit for limit in (self.settings.feedback_per_minute, caller.per_minute) if limit]
        rate = self.feedback.take(caller.name, min(limits)) if limits else None
        if rate and not rate.allowed:
            message = f"You sent feedback more than {rate.limit} times in a minute."
            raise _exhausted(request, "feedback", message, rate.reset_s, "rate_limit_exceeded")

    async def add_usage(self, caller: Caller, tokens: int) -> None:
        """Add the tokens of a finished request to the caller's usage."""
        if self.usage and (caller.daily_tokens or caller.key):
            await run_in_store_thread(self.usage.add, caller.name, tokens)

    async def _by_key(self, request: Request, address: str) -> Caller:
        settings = self.settings
        if not settings.keys_needed:
            # Even users of this machine don't get `raw`, because their programs may pass on other people's messages.
            scopes = frozenset(USUAL if settings.anonymous_access else SCOPES) - {"raw"}
            return Caller(address, "", scopes | self._bare(), settings.per_minute, settings.daily_tokens)
        assert self.keys is not None, "keys are required, so there is a store"
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise _unauthorized("A key is required. Send it in the header Authorization: Bearer KEY.", "missing_key")
        key = await asyncio.to_thread(self.keys.authenticate, text.strip())
        if key is None:
            rate = self.wrong_keys.take(address, WRONG_KEYS_PER_MINUTE)
            if not rate.allowed:
                message = "Too many wrong keys from this address."
                raise _exhausted(request, "wrong_keys", message, rate.reset_s, "too_many_wrong_keys")
            raise _unauthorized("This key is wrong, expired or revoked.", "invalid_api_key")
        return Caller(
            key.id,
            key.id,
            key.scopes | (self._bare() if "generate" in key.scopes else frozenset()),
            settings.per_minute if key.per_minute is None else key.per_minute,
            settings.daily_tokens if key.daily_tokens is None else key.daily_tokens,
        )

    def _bare(self) -> frozenset[str]:
        """Return the scope `raw` if the server skips triage (`bare_chat`), otherwise no scope."""
        return frozenset({"raw"} if self.settings.bare_chat else ())


def allowed(scope: Scope, charged: bool = False) -> Callable[[Request], Awaitable[Caller]]:
    """Return a FastAPI dependency that returns the caller, or raises ApiError if the caller lacks the scope.

    With `charged`, the request counts against the rate limit and the quota.
    """

    async def caller(request: Request) -> Caller:
        access: Authenticator = request.app.state.service.access
        found = await access.caller(request, scope)
        if charged:
            await access.charge(request, found)
        return found

    return caller


def _missing_scope_message(scope: Scope, caller: Caller) -> str:
    if scope == "raw":
        return (
            "This route returns the model's output without triage, so it requires a key with the raw scope. The "
            "server's operator can create such a key: meditune keys create NAME --scope generate --scope raw. If the "
            "server is only benchmarked, everyone can get the scope: meditune serve RUN --raw-chat"
        )
    return f"{'This key' if caller.key else 'A caller without a key'} can't do this: it lacks the {scope} scope."


def _unauthorized(message: str, code: str) -> ApiError:
    return ApiError(401, message, code, headers={"www-authenticate": "Bearer"})


def _exhausted(request: Request, reason: str, message: str, after_s: float, code: str) -> ApiError:
    """Return a 429 error, and record the reason in the request's trace."""
    request.scope[SCOPE_KEY].facts["refused"] = reason
    return too_many_requests(message, after_s, code)
