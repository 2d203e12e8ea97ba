"""A GPU for the code that asks for one's memory and kernels, on a machine without: tensors stay on the CPU."""

from __future__ import annotations

import pytest
import torch


def simulate_gpu(
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    reserved: int = 0,
    allocated: int = 0,
    capability: tuple[int, int] = (8, 0),
) -> None:
    """Let every tensor claim to be on a GPU with `free` bytes beside those that torch has reserved or allocated."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: allocated)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
