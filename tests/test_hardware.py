import subprocess
import sys
from pathlib import Path

import pytest
import torch

from meditune import hardware
from meditune.train import finetune


def test_a_containers_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(hardware, "_CPU_QUOTA", quota)
    whole = hardware.cores()
    quota.write_text("max 100000\n", encoding="ascii")
    assert hardware.cores() == whole
    quota.write_text("50000 100000\n", encoding="ascii")
    assert hardware.cores() == 1


def test_a_containers_memory_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(hardware, "_MEMORY_LIMITS", (limit,))
    total, free = hardware.memory_gb()
    assert 0 < free <= total
    limit.write_text("50000000\n", encoding="ascii")
    assert hardware.memory_gb() == (0.05, 0.05)
    limit.write_text("max\n", encoding="ascii")
    assert hardware.memory_gb()[0] == total


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heaps")
def test_freed_memory_goes_back_to_the_system():
    said = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True).stdout.split()
    before, after = map(int, said)
    assert after < before - 10_000


FREED = """
import psutil
from meditune.hardware import limit_malloc_arenas, release_memory
limit_malloc_arenas()
kept = [bytearray(9_000) for _ in range(10_000)]
last = bytearray(9_000)
del kept
rss = lambda: psutil.Process().memory_info().rss // 1024
before = rss()
release_memory()
print(before, rss())
"""


def test_training_names_the_peak_of_the_gpu_beside_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert finetune.peaks().keys() == {"peak_rss_gb"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 11_500_000_000)
    found = finetune.peaks()
    assert found["peak_gpu_gb"] == 11.5
    assert 0.1 < found["peak_rss_gb"] < 11.5
