"""What this machine, or the container it is seen through, has to compute with."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from contextlib import suppress
from pathlib import Path

M_ARENA_MAX = -8
"""glibc's malloc.h"""
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def cores() -> int:
    """Cores that this process may use: its affinity and its container's quota, not what the host has."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _words(_CPU_QUOTA)
    if len(quota) == 2 and quota[0].isdigit():
        return max(1, min(allowed, math.ceil(int(quota[0]) / int(quota[1]))))
    return allowed


def memory_gb() -> tuple[float, float]:
    """Total and free main memory in GB (10^9 bytes), within the container's limit."""
    import psutil

    memory = psutil.virtual_memory()
    limits = [int(words[0]) for path in _MEMORY_LIMITS if (words := _words(path)) and words[0].isdigit()]
    limit = min([*limits, memory.total])
    return limit / 1e9, min(memory.available, limit) / 1e9


def used_gb() -> float:
    """Memory that this process holds now, in 10^9 bytes: the GPU's if torch keeps tensors there, else main memory."""
    import psutil
    import torch

    on_gpu = torch.cuda.memory_reserved() if torch.cuda.is_available() else 0
    return float(on_gpu or psutil.Process().memory_info().rss) / 1e9


def gpu() -> tuple[str, float] | None:
    """Name and memory in GB of the first GPU that torch can use; None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return str(properties.name), properties.total_memory / 1e9


def _words(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").split() if path.is_file() else []


def limit_malloc_arenas() -> None:
    """Let glibc keep two heaps (mallopt(3), M_ARENA_MAX); elsewhere nothing happens.

    With one for each thread, what is free in one is wanted in another, and a process holds more than it uses.
    """
    _glibc("mallopt", M_ARENA_MAX, 2)


def release_memory() -> None:
    """Give freed memory back to the system (malloc_trim(3)); elsewhere nothing happens."""
    _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> None:
    if sys.platform == "linux":
        # musl's C library has neither.
        with suppress(AttributeError):
            getattr(ctypes.CDLL(None), function)(*arguments)
