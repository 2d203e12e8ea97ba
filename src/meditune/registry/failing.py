"""Whether a version fails more often than the one beside it."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, lgamma

LEAST = 3
LEVEL = 0.001
"""Of Fisher's exact test (Fisher 1922), one-sided. It is looked at with every failure, so false alarms come more often;
they cost a trial, and a true one unseen costs answers."""
EXACT = 1e-16
"""Of the sum: what is smaller changes nothing"""
PRIOR_FAILED, PRIOR = 1, 20
"""What a server that hasn't answered much yet is taken to have done"""


@dataclass
class Counts:
    """Requests, and how many of them the server failed."""

    all: int = 0
    failed: int = 0

    def add(self, failed: bool) -> None:
        """One more."""
        self.all += 1
        self.failed += failed

    def since(self, then: Counts) -> Counts:
        """What came to it since it stood there."""
        return Counts(self.all - then.all, self.failed - then.failed)


def is_failing(counts: Counts, beside: Counts) -> bool:
    """Whether `counts` has surely more failures than `beside`, and than a server has that hasn't answered much yet."""
    return is_worse(counts, Counts(beside.all + PRIOR, beside.failed + PRIOR_FAILED))


def is_worse(counts: Counts, beside: Counts) -> bool:
    """Whether `counts` has surely more failures than `beside`, by what was counted alone."""
    return counts.failed >= LEAST and fisher(counts.failed, counts.all, beside.failed, beside.all) < LEVEL


def fisher(failed: int, all: int, others_failed: int, others: int) -> float:
    """The probability of at least so many failures in the first of two groups, where both fail alike.

    Summed from the likeliest of these numbers of failures to both sides, as far as it changes anything.
    """
    total, failures = all + others, failed + others_failed
    likeliest = (all + 1) * (failures + 1) // (total + 2)
    first = n = max(failed, min(likeliest, all, failures))
    largest = exp(_log_ways(failures, n) + _log_ways(total - failures, all - n) - _log_ways(total, all))
    ways = term = 1.0
    while term > EXACT * ways:
        term *= (failures - n) * (all - n) / ((n + 1) * (total - failures - all + n + 1))
        ways, n = ways + term, n + 1
    term, n = 1.0, first
    while n > failed and term > EXACT * ways:
        term *= n * (total - failures - all + n) / ((failures - n + 1) * (all - n + 1))
        ways, n = ways + term, n - 1
    return min(1.0, largest * ways)


def _log_ways(of: int, chosen: int) -> float:
    return lgamma(of + 1) - lgamma(chosen + 1) - lgamma(of - chosen + 1)
