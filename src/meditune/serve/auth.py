"""Who asks: by key, or by address where no keys are needed; and whether they may, and how often.

How often a caller may ask, and how much a day.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request

from meditune.serve.api_errors import SCOPE_KEY, ApiError, Trace, busy
from meditune.serve.settings import Settings
from meditune.serve.store_access import run_in_store_thread
from meditune.store.api_keys import SCOPES, USUAL, Keys, Scope, Usage

MOST_CALLERS = 10_000
"""Buckets that are remembered; the ones used longest ago go first, and are full again by then or soon"""


IPV6_PREFIX = 64
"""What one customer of a provider has at least, with any number of addresses in it"""


def network_of(address: str) -> str:
    """Return what stands for an address's owner: an IPv4 address itself, of an IPv6 address its network.

    IPv4 addresses that are written as IPv6 ones (`::ffff:192.0.2.1`) are IPv4 addresses; what is no address stays.
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


@dataclass
class Bucket:
    """A token bucket: `per_minute` requests may come at once, and as many in every further minute."""

    per_minute: int
    left: float
    at: float


@dataclass(frozen=True)
class Rate:
    """What a caller may still do; for headers."""

    allowed: bool
    limit: int
    remaining: int
    reset_s: float
    """Until the next request is allowed where none is, until all are otherwise"""

    def headers(self) -> dict[str, str]:
        """As OpenAI names them."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{self.reset_s:.3f}s",
        }


class Rates:
    """A bucket for each caller."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, who: str, per_minute: int, cost: float = 1.0) -> Rate:
        """Take one request out of the caller's bucket, if there is one in it."""
        now = time.monotonic()
        bucket = self._buckets.get(who)
        if bucket is None or bucket.per_minute != per_minute:
            bucket = self._buckets[who] = Bucket(per_minute, float(per_minute), now)
        self._buckets.move_to_end(who)
        if len(self._buckets) > MOST_CALLERS:
            self._buckets.popitem(last=False)
        bucket.left = min(per_minute, bucket.left + (now - bucket.at) * per_minute / 60)
        bucket.at = now
        allowed = bucket.left >= cost
        if allowed:
            bucket.left -= cost
        missing = per_minute - bucket.left if allowed else max(cost, 1.0) - bucket.left
        return Rate(allowed, per_minute, int(bucket.left), missing * 60 / per_minute)


WRONG_KEYS_PER_MINUTE = 20
URGENT_PER_MINUTE = 60
"""Requests beyond a quota that are looked at for signs of an emergency, where there is no rate"""


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    name: str
    """The key's id, or the address (of IPv6 the /64 network): whose turn, rate and quota it is"""
    key: str
    """The key's id, or empty"""
    scopes: frozenset[str]
    per_minute: int
    daily_tokens: int


class Authenticator:
    """What a caller may do, by keys, rates and quotas."""

    def __init__(self, settings: Settings, keys: Keys | None, usage: Usage | None) -> None:
        self.settings, self.keys, self.usage = settings, keys, usage
        self.rates, self.wrong, self.heard, self.saying = Rates(), Rates(), Rates(), Rates()

    async def caller(self, request: Request, scope: Scope) -> Caller:
        """Who asks. Raises ApiError 401, 403 or 429."""
        address = network_of(request.client.host) if request.client else "local"
        caller = await self._by_key(request, address)
        trace: Trace = request.scope[SCOPE_KEY]
        trace.facts["who"] = caller.key or "anonymous"
        if scope not in caller.scopes:
            raise ApiError(403, _lacks(scope, caller), "missing_scope")
        return caller

    async def pays(self, request: Request, caller: Caller) -> None:
        """Take one request from the caller's rate, and look at the quota. Raises ApiError 429."""
        trace: Trace = request.scope[SCOPE_KEY]
        if caller.per_minute:
            rate = self.rates.take(caller.name, caller.per_minute)
            trace.headers |= rate.headers()
            if not rate.allowed:
                trace.facts["refused"] = "rate"
                raise busy(f"More than {rate.limit} requests a minute.", rate.reset_s, "rate_limit_exceeded")
        if caller.daily_tokens and self.usage:
            used = await asyncio.to_thread(self.usage.today, caller.name)
            if used >= caller.daily_tokens:
                trace.facts["refused"] = "quota"
                raise busy(
                    f"Today's {caller.daily_tokens:,} tokens are used up. The quota begins anew at midnight, UTC.",
                    _until_midnight_s(),
                    "insufficient_quota",
                )

    async def pays_or_is_heard(self, request: Request, caller: Caller) -> ApiError | None:
        """As `pays`, but return the refusal of a caller who may still be looked at for signs of an emergency.

        As many refused requests a minute are looked at as are allowed. Raises the refusal beyond that.
        """
        try:
            await self.pays(request, caller)
        except ApiError as refusal:
            if self.heard.take(caller.name, caller.per_minute or URGENT_PER_MINUTE).allowed:
                return refusal
            raise
        return None

    def says(self, request: Request, caller: Caller) -> None:
        """Take one word of feedback from the caller's rate. Raises ApiError 429."""
        limits = [limit for limit in (self.settings.feedback_per_minute, caller.per_minute) if limit]
        rate = self.saying.take(caller.name, min(limits)) if limits else None
        if rate and not rate.allowed:
            request.scope[SCOPE_KEY].facts["refused"] = "feedback"
            raise busy(f"More than {rate.limit} times feedback a minute.", rate.reset_s, "rate_limit_exceeded")

    async def used(self, caller: Caller, tokens: int) -> None:
        """Count a finished request."""
        if self.usage and (caller.daily_tokens or caller.key):
            await run_in_store_thread(self.usage.add, caller.name, tokens)

    async def _by_key(self, request: Request, address: str) -> Caller:
        settings = self.settings
        given = request.headers.get("authorization", "")
        scheme, _, text = given.partition(" ")
        if not settings.keys_needed:
            # Whoever reaches this machine's port may be a person before a program that passes messages on.
            scopes = frozenset(USUAL if settings.strangers else SCOPES) - {"raw"}
            return Caller(address, "", scopes | self._bare(), settings.per_minute, settings.daily_tokens)
        assert self.keys is not None, "keys are needed, so there is a store"
        if scheme.lower() != "bearer" or not text.strip():
            raise ApiError(
                401,
                "A key is needed: Authorization: Bearer KEY.",
                "missing_key",
                headers={"www-authenticate": "Bearer"},
            )
        key = await asyncio.to_thread(self.keys.who, text.strip())
        if key is None:
            rate = self.wrong.take(address, WRONG_KEYS_PER_MINUTE)
            if not rate.allowed:
                request.scope[SCOPE_KEY].facts["refused"] = "wrong_keys"
                raise busy("Too many wrong keys from this address.", rate.reset_s, "too_many_wrong_keys")
            raise ApiError(
                401,
                "This key is wrong, expired or revoked.",
                "invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return Caller(
            key.id,
            key.id,
            key.scopes | (self._bare() if "generate" in key.scopes else frozenset()),
            settings.per_minute if key.per_minute is None else key.per_minute,
            settings.daily_tokens if key.daily_tokens is None else key.daily_tokens,
        )

    def _bare(self) -> frozenset[str]:
        """What a server whose chats are never judged gives to all who may ask."""
        return frozenset({"raw"} if self.settings.bare_chat else ())


def allowed(scope: Scope, paying: bool = False) -> Callable[[Request], Awaitable[Caller]]:
    """A dependency: the caller, if they may; `paying` requests count for rate and quota."""

    async def caller(request: Request) -> Caller:
        access: Authenticator = request.app.state.service.access
        found = await access.caller(request, scope)
        if paying:
            await access.pays(request, found)
        return found

    return caller


def _lacks(scope: Scope, caller: Caller) -> str:
    if scope == "raw":
        return (
            "This gives the model's words without triage, which needs a key with the scope raw. Whoever runs the "
            "server can make one: meditune keys create NAME --scope generate --scope raw. A server that is only "
            "measured can give the scope to everybody: meditune serve RUN --bare-chat"
        )
    return f"{'This key' if caller.key else 'A caller without a key'} may not do that: it lacks the scope {scope}."


def _until_midnight_s() -> float:
    """UTC's, as usage is counted."""
    return 86_400 - time.time() % 86_400
