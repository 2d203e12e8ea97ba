"""How sure a counted share is."""

from __future__ import annotations

from math import sqrt

_Z = 1.959963984540054
"""The standard normal's 97.5 % point"""


def wilson(successes: int, count: int) -> list[float]:
    """Wilson's 95 % score interval of a share, in percent (Wilson 1927)."""
    share, spread = successes / count, _Z**2 / count
    middle, half = share + spread / 2, _Z * sqrt(share * (1 - share) / count + spread / (4 * count))
    ends = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return [100 * (0.0 if successes == 0 else ends[0]), 100 * (1.0 if successes == count else ends[1])]
