"""Peak memory of this process, since its start or since a chosen moment, and the duration of its steps.

Uses only the standard library, so that peers with their own interpreters can import it, too.
"""

from __future__ import annotations

import itertools
import os
import resource
import time
from pathlib import Path
from typing import Any

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_STAT = Path("/proc/stat")


def peak_gb() -> float:
    """Return the largest resident memory since the start or the last `restart`, in 10^9 bytes."""
    if _STATUS.is_file():
        words = next(line.split() for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(words[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def restart() -> bool:
    """Reset `peak_gb` to the memory held now; return False if the system can't do that (proc(5))."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


class Peaks:
    """The peak while loading and the peak while training, measured separately if the system can reset the peak."""

    def __init__(self) -> None:
        self.loading = 0.0
        self.apart = False

    def loaded(self) -> None:
        """Mark the end of loading; only the first call counts."""
        if not self.loading:
            self.loading = peak_gb()
            self.apart = restart()

    def figures(self) -> dict[str, float | None]:
        """Return the peak of the whole process and, if available, the peak since `loaded`, in 10^9 bytes."""
        now = peak_gb()
        return {"peak_gb": max(self.loading, now), "training_peak_gb": now if self.apart else None}


class Clock:
    """The time of optimizer steps, and the load by other processes. The first step is a warm-up and isn't counted."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float, float | None]] = []

    def ended(self) -> int:
        """Note the end of a step; return the number of steps that have ended."""
        self.ends.append((time.monotonic(), time.process_time(), _busy()))
        return len(self.ends)

    def figures(self) -> dict[str, Any]:
        """Return wall-clock and CPU seconds of all timed steps together and of each step.

        `others_share` is the share of the cores' time that other processes used meanwhile.
        """
        walls, owns, busy = zip(*self.ends, strict=True)
        seconds, processor = walls[-1] - walls[0], owns[-1] - owns[0]
        others = None
        if busy[0] is not None and busy[-1] is not None:
            others = round(max(0.0, busy[-1] - busy[0] - processor) / seconds / (os.cpu_count() or 1), 3)
        return {
            "wall_seconds": seconds,
            "processor_seconds": processor,
            "step_wall_seconds": [round(after - before, 3) for before, after in itertools.pairwise(walls)],
            "step_processor_seconds": [round(after - before, 3) for before, after in itertools.pairwise(owns)],
            "others_share": others,
        }


def _busy() -> float | None:
    """Return the busy seconds of all cores since boot (proc(5)); None if unknown."""
    if not _STAT.is_file():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, _STAT.read_text().split(maxsplit=11)[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
