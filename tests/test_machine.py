from pathlib import Path

import pytest

from meditune import machine


def test_a_containers_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(machine, "_CPU_QUOTA", quota)
    whole = machine.cores()
    quota.write_text("max 100000\n", encoding="ascii")
    assert machine.cores() == whole
    quota.write_text("50000 100000\n", encoding="ascii")
    assert machine.cores() == 1


def test_a_containers_memory_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_MEMORY_LIMITS", (limit,))
    total, free = machine.memory_gb()
    assert 0 < free <= total
    limit.write_text("50000000\n", encoding="ascii")
    assert machine.memory_gb() == (0.05, 0.05)
    limit.write_text("max\n", encoding="ascii")
    assert machine.memory_gb()[0] == total
