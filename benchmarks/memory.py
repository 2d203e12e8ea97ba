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
_STAT = Path("/proc/stat")


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
    """The time of optimizer steps, and what else the machine did. The first step is a warm-up and isn't counted."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float, float | None]] = []

    def ended(self) -> int:
        """Note the end of a step; return the number of steps that have ended."""
        self.ends.append((time.monotonic(), time.process_time(), _busy()))
        return len(self.ends)

    def figures(self) -> dict[str, Any]:
        """Return the seconds of all timed steps and of each, by the wall and by this process's use of processors.

        `others_share` is the share of the cores' time that other processes took meanwhile.
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
    """Return the seconds in which the cores did anything for anybody (proc(5)); None where that isn't known."""
    if not _STAT.is_file():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, _STAT.read_text().split(maxsplit=11)[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
