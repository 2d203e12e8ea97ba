"""Quantization of a frozen base model to 4 or 8 bits with bitsandbytes.

On CPUs with AVX-512 BF16, bitsandbytes repacks an NF4 layer for inference when the layer first runs in evaluation mode.
A repacked layer silently passes no gradient to its input. A run evaluates the base and then trains it, so
`keep_trainable` prevents repacking, and `check_trainable` rejects a model that was repacked anyway.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch

from meditune.config.training_options import Quantize
from meditune.errors import ModelError, install_command
from meditune.files import read_json

TRAINING = "training.json"
"""File in a tuned model's folder with facts about its training, such as the quantization of its base"""


def require(key: str = "model.quantize") -> None:
    """Raise ModelError, with the install command, if bitsandbytes can't be imported.

    `key` is the recipe key that needs bitsandbytes, for the message.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"{key} needs bitsandbytes, which can't be imported ({error}). Install it with: "
            f"{install_command('quantized')}"
        ) from error


def loading_options(quantize: Quantize, compute_dtype: Any) -> dict[str, Any]:
    """Return options for `from_pretrained`. NF4 weights are dequantized to `compute_dtype` for each matrix product."""
    if quantize == "none":
        return {}
    require()
    from transformers import BitsAndBytesConfig

    if quantize == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype,
        )
    }


def is_quantized(model: Any) -> bool:
    """Return whether some of the model's weights are quantized, by Meditune or already in its files."""
    return getattr(model, "quantization_method", None) is not None


def is_quantized_layer(layer: Any) -> bool:
    """Return whether a linear layer's weight is quantized and can be restored by `dequantized`."""
    kind = type(layer).__name__
    if kind == "Linear4bit":
        return not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
    return kind == "Linear8bitLt" and not layer.state.has_fp16_weights


def dequantized(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return a quantized layer's (outputs, inputs) weight, dequantized to `dtype`."""
    if type(layer).__name__ == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        weight: torch.Tensor = dequantize_4bit(layer.weight.data.view(-1, 1), layer.weight.quant_state)
        return weight.to(dtype)
    if layer.weight.CB is not None:
        layer.init_8bit_state()
    scale = layer.state.SCB.unsqueeze(1).mul(1 / 127)
    restored: torch.Tensor = layer.state.CB.to(dtype, copy=True).mul_(scale)
    return restored


def keep_trainable(model: Any) -> None:
    """Keep adapters on quantized layers trainable, even after the layers have run in evaluation mode."""
    for layer in _layers(model, "Linear4bit"):
        layer.support_avx512bf16_for_cpu = False
    for layer in _layers(model, "Linear8bitLt"):
        layer.register_forward_pre_hook(_with_scale)


def check_trainable(model: Any) -> None:
    """Raise ModelError if an NF4 layer has been repacked, because gradients would stop there."""
    for layer in _layers(model, "Linear4bit"):
        if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise ModelError(
                "bitsandbytes has repacked the quantized base model for inference, so training it would silently lose "
                "gradients. Install another version of bitsandbytes (0.50 is known to work), or set model.quantize "
                "to int8 or none."
            )


def keep_number_format(model: Any) -> None:
    """Make (IA)³ layers on quantized layers return output in their input's number format instead of peft's FP32."""

    def in_input_format(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output.to(inputs[0].dtype)

    for module in model.modules() if is_quantized(model) else ():
        if hasattr(module, "ia3_l"):
            module.register_forward_hook(in_input_format)


def trained_on(folder: Path) -> Quantize:
    """Return the quantization of the base that the model in `folder` was tuned on; "none" if none is recorded."""
    path = folder / TRAINING
    facts = read_json(path) if path.is_file() else {}
    recorded = facts.get("quantize") if isinstance(facts, dict) else None
    return next((known for known in get_args(Quantize) if known == recorded), "none")


def _layers(model: Any, kind: str) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__ == kind]


def _with_scale(layer: Any, _: Any) -> None:
    # On a CPU, peft's DoRA reads 8-bit weights from a copy without the scale of the weights.
    if layer.weight.CB is not None and layer.weight.SCB is None:
        layer.weight.SCB = layer.state.SCB
