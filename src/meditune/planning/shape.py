"""A model without its weights: every tensor has its shape and number format, and none has memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from meditune.models.catalogue import CATALOGUE
from meditune.models.load import base_of, loading, locate, source
from meditune.models.names import ADAPTER_FILE
from meditune.models.quiet import no_telemetry, quiet_transformers
from meditune.models.strategies import make_trainable
from meditune.recipe import ModelSpec, Quantize

FUSED = "meditune_planned_fused"
BLOCK, OUTER_BLOCK = 64, 256
"""NF4 has one scale for so many weights, and one scale of scales for so many of those (QLoRA, arXiv:2305.14314)."""


def config_of(spec: ModelSpec) -> Any:
    """The configuration of the recipe's base model; of the catalogue's models without fetching anything.

    Raises ModelError where the model isn't known here.
    """
    no_telemetry()
    from transformers import AutoConfig

    entry = CATALOGUE.get(spec.base)
    with loading(spec.base, spec.base), quiet_transformers():
        if entry and entry.shape:
            config = AutoConfig.for_model(**entry.shape)
        else:
            place = locate(spec.reference)
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
    """The model as it is trained, with `spec`'s strategy, on the meta device; `attention` as transformers names it.

    With `spec.quantize` its weights are still in `dtype`, for what it computes is the same; `weight_bytes` counts them
    as they are stored.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    # GPT-2 would look for padding in token ids, which have no values here.
    config.pad_token_id = None
    with quiet_transformers(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        made = make_trainable(model, spec, seed)
    if spec.quantize != "none":
        # Adapters beside a quantized layer keep the format they are made in.
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return made


def weight_bytes(model: Any, quantize: Quantize) -> int:
    """Bytes of the model's parameters and buffers, its linear layers but the head stored as `quantize` says."""
    stored = {id(weight): _quantized_bytes(weight, quantize) for weight in _quantizable(model, quantize)}
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(stored.get(key, tensor.numel() * tensor.element_size()) for key, tensor in tensors.items())


def dequantized_bytes(model: Any, quantize: Quantize) -> int:
    """Bytes of the largest quantized weight in the format it is computed in, which it has while it is used."""
    return max((weight.numel() * weight.element_size() for weight in _quantizable(model, quantize)), default=0)


def use_fused_attention() -> str:
    """Make a stand-in for GPUs' memory-efficient attention known to transformers; returns its name.

    It is PyTorch's own operator, which keeps no scores. On the meta device `sdpa` would fall back to the plain formula.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import repeat_kv
    from transformers.masking_utils import eager_mask

    def fused(
        _module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **_: Any
    ) -> tuple[Any, None]:
        groups = query.shape[1] // key.shape[1]
        key, value = (repeat_kv(part, groups) if groups > 1 else part for part in (key, value))
        bias = mask.expand(-1, query.shape[1], -1, -1) if mask is not None else None
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        mixed = efficient(query, key, value, bias, True, 0.0, mask is None, scale=scaling)[0]
        return mixed.transpose(1, 2).contiguous(), None

    AttentionInterface.register(FUSED, fused)
    AttentionMaskInterface.register(FUSED, eager_mask)
    return FUSED


def _quantizable(model: Any, quantize: Quantize) -> list[torch.nn.Parameter]:
    """The weights that bitsandbytes would quantize: of all linear layers that belong to the base, but for the head."""
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
