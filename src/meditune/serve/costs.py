"""What answers cost: tokens by their price, and the machine by the hour, in whatever currency these are given."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

MILLION = 1e6


@dataclass(eq=False)
class Costs(Collector):
    """A counter with a part for the tokens read, those written, and the machine; read when Prometheus asks."""

    prompt: float = 0.0
    """Of a million tokens"""
    completion: float = 0.0
    hourly: float = 0.0
    tokens: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "completion": 0})
    begun: float = field(default_factory=time.monotonic)

    def by_part(self) -> dict[str, float]:
        """What was spent since the server's start."""
        return {
            "prompt": self.tokens["prompt"] * self.prompt / MILLION,
            "completion": self.tokens["completion"] * self.completion / MILLION,
            "machine": (time.monotonic() - self.begun) * self.hourly / 3600,
        }

    def collect(self) -> Iterable[CounterMetricFamily]:
        """As prometheus_client wants it."""
        made = CounterMetricFamily(
            "meditune_cost", "Cost of tokens and machine, by --price and --hourly", labels=["part"]
        )
        for part, spent in self.by_part().items():
            made.add_metric([part], spent)
        yield made
