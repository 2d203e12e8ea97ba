"""Whether a version fails more often than the one beside it."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

LEAST = 3
LEVEL = 0.001
"""Of Fisher's exact test (Fisher 1922), one-sided. It is looked at with every failure, so false alarms come more often;
they cost a trial, and a true one unseen costs answers."""
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


def is_failing(counts: Counts, beside: Counts) -> bool:
    """Whether `counts` has surely more failures than `beside`."""
    if counts.failed < LEAST:
        return False
    return fisher(counts.failed, counts.all, beside.failed + PRIOR_FAILED, beside.all + PRIOR) < LEVEL


def fisher(failed: int, all: int, others_failed: int, others: int) -> float:
    """The probability of at least so many failures in the first of two groups, where both fail alike."""
    total, failures = all + others, failed + others_failed
    ways = sum(comb(failures, n) * comb(total - failures, all - n) for n in range(failed, min(all, failures) + 1))
    return ways / comb(total, all)
