"""The hardware that training is planned for: this machine, measured in a second, or a GPU by its data sheet.

Models are built on the meta device, where tensors have a shape and number format but no memory.
"""

from __future__ import annotations

import copy
import csv
import difflib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from meditune.config.training_options import ModelSpec, Quantize
from meditune.errors import RecipeError
from meditune.hardware import gpu, memory_gb
from meditune.models.adapters import make_trainable
from meditune.models.catalogue import ADAPTER_FILE, CATALOGUE
from meditune.models.load import base_of, loading, locate, source
from meditune.models.quiet_libraries import no_telemetry, quiet_transformers


class Gpu(NamedTuple):
    """A GPU's data sheet: memory and the speed of dense matrix products as the vendor states them."""

    name: str
    memory_gb: float
    tflops: float
    """10^12 operations per second in BF16 (FP16 where BF16 is missing) with FP32 accumulation, without sparsity."""
    bf16: bool
    source: str


def _gpus() -> dict[str, Gpu]:
    with (Path(__file__).parent / "gpus.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {
        row["name"]: Gpu(
            row["name"], float(row["memory_gb"]), float(row["tflops"]), row["bf16"] == "yes", row["source"]
        )
        for row in rows
    }


GPUS = _gpus()


def gpu_named(name: str) -> Gpu:
    """Return the GPU of that name, ignoring case and separators ("RTX 4090"); raise RecipeError if there is none."""
    bare_name, bare = _bare(name), {_bare(known): known for known in GPUS}
    if bare_name in bare:
        return GPUS[bare[bare_name]]
    near = [known for each, known in bare.items() if bare_name and each.startswith(bare_name)]
    near = near or [bare[each] for each in difflib.get_close_matches(bare_name, bare, n=3)]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known GPUs: {', '.join(GPUS)}."
    raise RecipeError(f"--gpu: unknown GPU {name!r}. {hint} Without --gpu, the plan is for this machine.")


def _bare(name: str) -> str:
    return re.sub(r"nvidia|geforce|amd|instinct|[^a-z0-9]", "", name.lower())


UTILIZATION = {"cpu": 0.5, "cuda": 0.35}
"""Share of the peak speed of matrix products that training reaches: measured on a CPU (docs/experiments), assumed on
a GPU, because none was available to measure."""
SIZE, TIMES = 2048, 5


@dataclass(frozen=True)
class Target:
    """A machine to train on."""

    name: str
    memory_gb: float  # available memory, in 10^9 bytes
    flops: float  # operations per second of large dense matrix products in the model's number format
    device: str  # cpu or cuda
    dtype: Any  # the torch dtype of a model's weights
    source: str  # source of the speed

    @property
    def attention(self) -> str:
        """The attention that `model.attention: auto` uses on the target, or its replacement on the meta device."""
        from meditune.models.inference import register

        return use_fused_attention() if self.device == "cuda" else register()


def target_of(spec: ModelSpec, gpu_name: str | None) -> Target:
    """Return the named GPU, or this machine without a name; raise MedituneError for an unknown GPU."""
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
    """Return the operations per second of 2,048 x 2,048 matrix products, the best of five after a warm-up."""
    one = torch.randn(SIZE, SIZE, device=device).to(dtype)
    best = float("inf")
    for _ in range(TIMES + 1):
        started = time.perf_counter()
        product = one @ one
        product[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * SIZE**3 / best


FUSED = "meditune_planned_fused"
BLOCK, OUTER_BLOCK = 64, 256
"""NF4 has one scale per BLOCK weights, and one scale of scales per OUTER_BLOCK scales (QLoRA, arXiv:2305.14314)."""


def config_of(spec: ModelSpec) -> Any:
    """Return the configuration of the recipe's base model, without downloads for the catalogue's models."""
    no_telemetry()
    from transformers import AutoConfig

    entry = CATALOGUE.get(spec.base)
    with loading(spec.base, spec.base), quiet_transformers():
        if entry and entry.shape:
            config = AutoConfig.for_model(**entry.shape)
        else:
            place = locate(spec.base)
            if (Path(place) / ADAPTER_FILE).is_file():
                place = locate(base_of(Path(place)))
            config = AutoConfig.from_pretrained(**source(place))
    if spec.prune.layers:
        text = config.get_text_config()
        text.num_hidden_layers = max(1, text.num_hidden_layers - spec.prune.layers)
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[: text.num_hidden_layers]
    return config


def on_meta(config: Any, spec: ModelSpec, dtype: torch.dtype, attention: str, seed: int = 0) -> Any:
    """Return the model on the meta device, prepared for `spec`'s strategy; `attention` is transformers' name for it.

    With `spec.quantize`, weights are still in `dtype`; `weight_bytes` counts them as they are stored.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    # GPT-2 would look for padding in token ids, which have no values here.
    config.pad_token_id = None
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with quiet_transformers(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        trainable = make_trainable(model, spec, seed)
    if spec.quantize != "none" and spec.strategy not in {"lora", "rslora"}:
        # These weights of a quantized layer keep the format in which they are created.
        for parameter in trainable.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return trainable


def weight_bytes(model: Any, quantize: Quantize) -> int:
    """Return the bytes of parameters and buffers, with linear layers except the head stored as `quantize` says."""
    stored = {id(weight): _quantized_bytes(weight, quantize) for weight in _quantizable(model, quantize)}
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(stored.get(key, tensor.numel() * tensor.element_size()) for key, tensor in tensors.items())


def dequantized_bytes(model: Any, quantize: Quantize) -> int:
    """Return the bytes of the largest quantized weight in its compute format, needed while it is used."""
    return max((weight.numel() * weight.element_size() for weight in _quantizable(model, quantize)), default=0)


def use_fused_attention() -> str:
    """Register PyTorch's attention operators for GPUs with transformers, and return the name.

    On the meta device, `scaled_dot_product_attention` would fall back to the plain formula, which stores scores.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import repeat_kv
    from transformers.masking_utils import eager_mask

    from meditune.models.gpu_attention import CAUSAL_MASK_ATTENTION, HALF, MAX_HEAD_SIZE

    def fused(
        _module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **_: Any
    ) -> tuple[Any, None]:
        causal = mask is None or not mask.numel()
        if causal and query.dtype in HALF and query.shape[-1] <= MAX_HEAD_SIZE:
            flash = torch.ops.aten._scaled_dot_product_flash_attention
            mixed = flash(query, key, value, 0.0, True, scale=scaling)[0]
        else:
            groups = query.shape[1] // key.shape[1]
            key, value = (repeat_kv(part, groups) if groups > 1 else part for part in (key, value))
            bias = None if causal else mask.expand(-1, query.shape[1], -1, -1)
            efficient = torch.ops.aten._scaled_dot_product_efficient_attention
            mixed = efficient(query, key, value, bias, True, 0.0, causal, scale=scaling)[0]
        return mixed.transpose(1, 2).contiguous(), None

    AttentionInterface.register(FUSED, fused)
    AttentionMaskInterface.register(FUSED, eager_mask)
    CAUSAL_MASK_ATTENTION.add(FUSED)
    return FUSED


def _quantizable(model: Any, quantize: Quantize) -> list[torch.nn.Parameter]:
    """Return the weights that bitsandbytes would quantize: all linear layers of the base, except the head."""
    if quantize == "none":
        return []
    head = model.get_output_embeddings()
    return [
        module.weight
        for name, module in model.named_modules()
        if type(module).__name__ in {"Linear", "Conv1D"}
        and module is not head
        and not {"lora_A", "lora_B"} & set(name.split("."))
        and isinstance(getattr(module, "weight", None), torch.nn.Parameter)
    ]


def _quantized_bytes(weight: torch.nn.Parameter, quantize: Quantize) -> int:
    count = weight.numel()
    if quantize == "int8":
        return count + 4 * weight.shape[0]
    blocks = -(-count // BLOCK)
    # Half a byte each; scales in 8 bits; their scales, an offset and both code tables (16 and 256 numbers) in FP32.
    return -(-count // 2) + blocks + 4 * (-(-blocks // OUTER_BLOCK) + 1 + 16 + 256)
