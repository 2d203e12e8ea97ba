"""How often a caller may ask, and how much a day."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from dataclasses import dataclass

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
