"""The most memory that this process held, since its start or since a chosen moment, and how long its steps took.

Uses the standard library only, so that peers in interpreters of their own can import it, too.
"""

from __future__ import annotations

import itertools
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_gb() -> float:
    """The largest resident memory since the start or the last `restart`, in 10^9 bytes."""
    if _STATUS.is_file():
        words = next(line.split() for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(words[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def restart() -> bool:
    """Let `peak_gb` count from now on, from what is held now; False where the system has no such thing (proc(5))."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


class Peaks:
    """The peak while loading and the peak while training, which are told apart where the system can."""

    def __init__(self) -> None:
        self.loading = 0.0
        self.apart = False

    def loaded(self) -> None:
        """Everything is loaded and training begins. Counts once."""
        if not self.loading:
            self.loading = peak_gb()
            self.apart = restart()

    def figures(self) -> dict[str, float | None]:
        """The peak of the whole process and, where it can be had, that from `loaded` until now, in 10^9 bytes."""
        now = peak_gb()
        return {"peak_gb": max(self.loading, now), "training_peak_gb": now if self.apart else None}


class Clock:
    """The time of optimizer steps, by the wall and by the processor. The first step is a warm-up and isn't counted."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def ended(self) -> int:
        """Note the end of a step; return the number of steps that have ended."""
        self.ends.append((time.monotonic(), time.process_time()))
        return len(self.ends)

    def figures(self) -> dict[str, Any]:
        """Return the seconds of all timed steps and of each, and the share of the cores' time that this process got.

        Kernels that wait for each other spin, so the share is near 1 on a machine without other work.
        """
        walls = [wall for wall, _ in self.ends]
        seconds = walls[-1] - walls[0]
        return {
            "seconds": seconds,
            "step_seconds": [round(after - before, 3) for before, after in itertools.pairwise(walls)],
            "processor_share": round((self.ends[-1][1] - self.ends[0][1]) / seconds / (os.cpu_count() or 1), 3),
        }
