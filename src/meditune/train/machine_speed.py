"""The speed of a machine: of a named GPU from its data sheet, or of this machine, measured with a small model.

A CPU's speed is measured with training batches and decoding steps of a small transformer, in CPU time of one thread.
Durations would differ several times between two measurements while other programs use the same cores.
"""

from __future__ import annotations

import csv
import difflib
import os
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from meditune.config.training_options import ModelSpec
from meditune.errors import RecipeError
from meditune.hardware import cores, gpu, memory_gb
from meditune.models.adapters import make_trainable
from meditune.models.catalogue import CATALOGUE
from meditune.models.generation import Decoder
from meditune.models.gpu_attention import has_flash_kernels
from meditune.models.inference import inference, register
from meditune.models.load import number_format
from meditune.models.quiet_libraries import no_telemetry, quiet_transformers


class Gpu(NamedTuple):
    """A GPU's memory, and its speed of dense matrix products, as stated in the vendor's data sheet."""

    name: str
    memory_gb: float
    tflops: float
    """10^12 operations per second in BF16 (FP16 where BF16 is missing) with FP32 accumulation, without sparsity."""
    bf16: bool  # whether it has BF16 and flash attention; NVIDIA's GPUs have both from compute capability 8.0 on
    source: str


with (Path(__file__).parent / "gpus.csv").open(encoding="utf-8", newline="") as _stream:
    GPUS: dict[str, Gpu] = {
        name: Gpu(name, float(memory_gb), float(tflops), bf16 == "yes", origin)
        for name, memory_gb, tflops, bf16, origin in list(csv.reader(_stream))[1:]
    }


def gpu_named(name: str) -> Gpu:
    """Return the GPU with that name, ignoring case and separators ("RTX 4090"); raise RecipeError if there is none."""
    bare_name, bare = _bare(name), {_bare(known): known for known in GPUS}
    if bare_name in bare:
        return GPUS[bare[bare_name]]
    near = [known for each, known in bare.items() if bare_name and each.startswith(bare_name)]
    near = near or [bare[each] for each in difflib.get_close_matches(bare_name, bare, n=3)]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known GPUs: {', '.join(GPUS)}."
    raise RecipeError(f"--gpu: unknown GPU {name!r}. {hint} Without --gpu, the plan is for this machine.")


def _bare(name: str) -> str:
    return re.sub(r"nvidia|geforce|amd|instinct|[^a-z0-9]", "", name.lower())


UTILIZATION = {"cpu": 1.0, "cuda": 0.35}
"""Share of `Target.flops` that training reaches. A CPU's speed is measured in training. A GPU's share is assumed,
because no GPU was available to measure it."""


@dataclass(frozen=True)
class Target:
    """A machine to train on."""

    name: str
    memory_gb: float  # available memory, in 10^9 bytes
    flops: float  # operations per second: on a CPU in training, on a GPU in large dense matrix products
    device: str  # cpu or cuda
    dtype: Any  # the torch dtype of a model's weights
    source: str  # source of the speed
    layer_seconds: float = 0.001
    """Seconds that a layer takes to compute one more token of each of STEP_TEXTS answers. For a GPU, this is assumed:
    starting a layer's operations takes about a millisecond."""
    layer_bytes: float = 500e6
    """Bytes of weights that are read in `layer_seconds`. On a CPU, those of the measured layer; for a GPU, assumed."""
    has_flash: bool = True  # whether a GPU has flash attention kernels

    @property
    def rough(self) -> str:
        """A sentence that says how certain predicted times are."""
        if self.source != MEASURED:
            return "Predicted times are rough: the speed wasn't measured."
        measured = "Predicted times are rough: the speed was measured for a few seconds"
        if self.device == "cuda":
            return f"{measured}."
        load, busy = cpu_load(), ""
        if load > 0.75 * cores():
            # Threads wait for each other after each of many short operations, so the slowdown exceeds the load.
            busy = (
                f" It is busy now ({load:.0f} programs on {cores()} cores), so a run takes several times as long (ten "
                "times in a measurement with two to three programs per core)."
            )
        return f"{measured}, and applies while no other program is busy on this machine.{busy}"


def cpu_load() -> float:
    """Return the mean number of busy programs in the last minute; 0 on systems that don't report it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


MEASURED = "measured now"


def target_of(spec: ModelSpec, gpu_name: str | None) -> Target:
    """Return the GPU with that name, or this machine if `gpu_name` is None. Raises RecipeError for an unknown GPU."""
    if gpu_name is not None:
        known = gpu_named(gpu_name)
        usual = torch.bfloat16 if known.bf16 else torch.float16
        dtype = usual if spec.dtype == "auto" else getattr(torch, spec.dtype)
        speed = known.tflops * 1e12
        return Target(known.name, known.memory_gb, speed, "cuda", dtype, known.source, has_flash=known.bf16)
    dtype, card = number_format(spec.dtype), gpu()
    if card:
        return Target(*card, matrix_flops(dtype), "cuda", dtype, MEASURED, has_flash=has_flash_kernels("cuda"))
    room = memory_gb()[1]
    flops, layer_seconds, layer_bytes = cpu_speed(dtype)
    return Target("this machine's CPU", room, flops, "cpu", dtype, MEASURED, layer_seconds, layer_bytes)


SIZE = 8192
"""A product of matrices of this size takes about a millisecond on the fastest GPUs, much longer than starting it."""


def matrix_flops(dtype: Any) -> float:
    """Return the operations per second of SIZE x SIZE matrix products on the GPU, the median after a warm-up."""
    one = torch.randn(SIZE, SIZE, device="cuda").to(dtype)

    def multiply() -> None:
        _ = one @ one
        torch.cuda.synchronize()

    return 2 * SIZE**3 / _median_seconds(multiply, time.perf_counter)


PROBED = "qwen2.5-coder-0.5b"
"""The base whose layers are measured; it is the recommended one for a CPU"""
PROBED_LAYERS, PROBED_VOCABULARY, PROBED_TOKENS = 2, 8192, 256
STEP_TEXTS = 16


def cpu_speed(dtype: Any) -> tuple[float, float, int]:
    """Return the operations per second in training, `Target.layer_seconds`, and `Target.layer_bytes`.

    The speed is that of a machine on which no other program is busy.
    """
    no_telemetry()
    from transformers import AutoConfig, AutoModelForCausalLM

    smaller = {"num_hidden_layers": PROBED_LAYERS, "vocab_size": PROBED_VOCABULARY, "layer_types": None}
    config = AutoConfig.for_model(**CATALOGUE[PROBED].shape | smaller)
    with quiet_transformers(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=register())
        layer_bytes = sum(weight.numel() * weight.element_size() for weight in model.model.layers[0].parameters())
        model = make_trainable(model, ModelSpec(base=PROBED), 0)
    model = model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(0.01)
    tokens = torch.zeros(1, PROBED_TOKENS, dtype=torch.long)
    weights = sum(parameter.numel() for parameter in model.parameters())

    def train() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model.train()
        flops = 4 * weights * PROBED_TOKENS / _median_seconds(train, time.thread_time)
        model.eval()
        with inference(model, small_batches=True):
            decoder = Decoder(model, 0, STEP_TEXTS)
            decoder.read([[1] * 32] * STEP_TEXTS)
            step = _median_seconds(lambda: decoder.step([1] * STEP_TEXTS), time.thread_time)
    finally:
        torch.set_num_threads(threads)
    return flops * threads**TRAINING_GAIN, step / PROBED_LAYERS / threads**WRITING_GAIN, layer_bytes


TRAINING_GAIN, WRITING_GAIN = 0.8, 0.5
"""N threads are assumed to be N to this power times as fast as one; memory limits the speed of writing more"""
TIMES, MAX_TIMES, SECONDS = 5, 25, 1.0


def _median_seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the median time of `work` after a warm-up; it is repeated for SECONDS, and TIMES to MAX_TIMES times."""
    work()
    durations: list[float] = []
    began = time.perf_counter()
    while len(durations) < TIMES or (len(durations) < MAX_TIMES and time.perf_counter() - began < SECONDS):
        started = clock()
        work()
        durations.append(clock() - started)
    return statistics.median(durations)
