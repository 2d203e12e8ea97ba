"""Where a training would run: this machine, measured in a second, or a GPU by its data sheet."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from meditune.machine import gpu, memory_gb
from meditune.planning.gpus import gpu_named
from meditune.recipe import ModelSpec

UTILIZATION = {"cpu": 0.5, "cuda": 0.35}
"""Share of the matrix products' peak speed that a training reaches: on a CPU measured (docs/experiments.md), on a GPU
assumed, because none was there to measure."""
SIZE, TIMES = 2048, 5


@dataclass(frozen=True)
class Target:
    """A machine to train on."""

    name: str
    memory_gb: float
    """That can be had, in 10^9 bytes"""
    flops: float
    """Operations a second of large dense matrix products in the model's number format"""
    device: str
    """cpu or cuda"""
    dtype: Any
    """The torch dtype of a model's weights"""
    source: str
    """Where the speed comes from"""

    @property
    def attention(self) -> str:
        """The attention that `model.attention: auto` takes there, or rather what stands for it on the meta device."""
        from meditune.models.attention import register
        from meditune.planning.shape import use_fused_attention

        return use_fused_attention() if self.device == "cuda" else register()


def target_of(spec: ModelSpec, gpu_name: str | None) -> Target:
    """The named GPU, or this machine where none is named. Raises MedituneError where the table has no such GPU."""
    import torch

    from meditune.models.load import number_format

    if gpu_name is not None:
        known = gpu_named(gpu_name)
        usual = torch.bfloat16 if known.bf16 else torch.float16
        dtype = usual if spec.dtype == "auto" else getattr(torch, spec.dtype)
        return Target(known.name, known.memory_gb, known.tflops * 1e12, "cuda", dtype, known.source)
    dtype, card = number_format(spec.dtype), gpu()
    device = "cuda" if card else "cpu"
    name, room = card or ("this machine's CPU", memory_gb()[1])
    return Target(name, room, measured_flops(dtype, device), device, dtype, "measured now")


def measured_flops(dtype: Any, device: str) -> float:
    """Operations a second of matrix products of 2,048 x 2,048, the best of five after a warm-up."""
    import torch

    one = torch.randn(SIZE, SIZE, device=device).to(dtype)
    best = float("inf")
    for _ in range(TIMES + 1):
        started = time.perf_counter()
        product = one @ one
        product[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * SIZE**3 / best
