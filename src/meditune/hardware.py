"""The cores, memory and GPU of this machine, within the limits of the container."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

M_ARENA_MAX = -8
"""The constant of this name in glibc's malloc.h"""
MADV_DONTNEED = 4
"""The constant of this name in Linux's mman.h"""
MAPS = Path("/proc/self/maps")
_CPU_QUOTAS = (
    (Path("/sys/fs/cgroup/cpu.max"),),
    (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
)
"""For cgroup v2 and v1: the files with the container's quota and its period, both in microseconds"""
_MEMORY_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), "memory.current", ("inactive_file", "active_file")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)
"""For cgroup v2 and v1: file with the container's limit, file with its usage, and names of the file cache's sizes"""


def cores() -> int:
    """Return the number of cores that this process may use, given its CPU affinity and its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in _CPU_QUOTAS:
        quota = [word for file in files for word in _words(file)]
        if len(quota) == 2 and quota[0].isdigit():
            allowed = max(1, min(allowed, math.ceil(int(quota[0]) / int(quota[1]))))
    return allowed


def processor() -> str:
    """Return the processor's model name, or the architecture if the system doesn't report a name."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(names, platform.machine())
    return platform.processor() or platform.machine()


def memory_gb() -> tuple[float, float]:
    """Return total and free main memory in GB (10^9 bytes), within the container's limit."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    for limit, usage, caches in _MEMORY_LIMITS:
        if (words := _words(limit)) and words[0].isdigit():
            # The system frees the file cache when memory is needed.
            stored = _words(limit.with_name("memory.stat"))
            counts = dict(zip(stored[::2], map(int, stored[1::2]), strict=True))
            used = sum(map(int, _words(limit.with_name(usage)))) - sum(counts.get(name, 0) for name in caches)
            total, free = min(total, int(words[0])), min(free, int(words[0]) - used)
    return total / 1e9, max(free, 0) / 1e9


def used_gb() -> float:
    """Return the memory that this process uses, in GB (10^9 bytes): GPU memory if torch has reserved any, else RAM."""
    import psutil
    import torch

    on_gpu = torch.cuda.memory_reserved() if torch.cuda.is_available() else 0
    return float(on_gpu or psutil.Process().memory_info().rss) / 1e9


def gpu() -> tuple[str, float] | None:
    """Return the name and the memory in GB of the first GPU that torch can use, or None if there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return str(properties.name), properties.total_memory / 1e9


def free_gpu_bytes(device: Any) -> int:
    """Return the free memory of a GPU in bytes, including memory that torch has reserved but doesn't use."""
    import torch

    freed = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + int(freed)


def _words(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").split() if path.is_file() else []


def limit_malloc_arenas() -> None:
    """Limit glibc to two heaps (M_ARENA_MAX in mallopt(3)), because one heap can't use another heap's free memory."""
    _glibc("mallopt", M_ARENA_MAX, 2)


def limit_onednn_cache() -> None:
    """Limit oneDNN's cache to the compiled code of 64 operations. Call this before a library first uses oneDNN.

    The code depends on the number of tokens read at once. By default, code for 1,024 operations is cached: hundreds of
    megabytes in a server. A value that is set in the environment takes precedence.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def release_memory() -> None:
    """Return freed memory to the system (malloc_trim(3)), if the C library is glibc."""
    _glibc("malloc_trim", 0)


def release_file(path: Path) -> None:
    """Release this process's pages of a file that is mapped for reading only (madvise(2)).

    The file stays in the system's page cache, which gives way to other needs. Pages that are needed again come from
    there, or from the file.
    """
    if not MAPS.is_file():
        return
    name = str(path.resolve())
    for line in MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        addresses, permissions, *_ = line.split(maxsplit=2)
        if line.endswith(f" {name}") and "w" not in permissions:
            start, end = (int(address, 16) for address in addresses.split("-"))
            _glibc("madvise", ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


def _glibc(function: str, *arguments: Any) -> None:
    # musl has neither mallopt nor malloc_trim.
    with suppress(AttributeError):
        getattr(ctypes.CDLL(None), function)(*arguments)
