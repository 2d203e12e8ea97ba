"""A frozen base model in 4 or 8 bits, through bitsandbytes.

On CPUs with AVX-512 BF16, bitsandbytes repacks an NF4 layer for inference the first time it runs in evaluation mode,
and a repacked layer passes no gradient on to its input, in silence. A run measures the base and then trains it, so
`keep_trainable` forbids repacking, and `check_trainable` refuses a model in which it has happened nevertheless.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch

from meditune.config.training_options import Quantize
from meditune.errors import ModelError, install_command
from meditune.files import read_json

TRAINING = "training.json"
"""Lies beside a tuned model and says, among other things, what its base was quantized to."""


def require(key: str = "model.quantize") -> None:
    """Raise ModelError, with the command, where bitsandbytes isn't installed; `key` is the recipe's that needs it."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"{key} needs bitsandbytes, which can't be imported ({error}). Install it with: "
            f"{install_command('quantized')}"
        ) from error


def loading_options(quantize: Quantize, compute_dtype: Any) -> dict[str, Any]:
    """Return the options that `from_pretrained` of transformers is called with; empty for "none".

    NF4 weights are dequantized to compute_dtype, a torch dtype, for each matrix product.
    """
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
    """Whether some of the model's weights are quantized, by us or as it was stored."""
    return getattr(model, "quantization_method", None) is not None


def keep_trainable(model: Any) -> None:
    """Keep quantized layers such that adapters on them can be trained, also after they have run in evaluation mode."""
    for layer in _layers(model, "Linear4bit"):
        layer.support_avx512bf16_for_cpu = False
    for layer in _layers(model, "Linear8bitLt"):
        layer.register_forward_pre_hook(_with_scale)


def check_trainable(model: Any) -> None:
    """Raise ModelError where an NF4 layer has been repacked, so that gradients would stop at it."""
    for layer in _layers(model, "Linear4bit"):
        if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise ModelError(
                "bitsandbytes has repacked the quantized base model for inference, and training it would lose "
                "gradients without a word. Install another version of bitsandbytes (0.50 is known to work), or take "
                "model.quantize: int8 or none."
            )


def keep_number_format(model: Any) -> None:
    """Let (IA)³ over quantized layers answer in the number format it is asked in.

    peft's answers in FP32, and attention then meets queries and keys of two formats.
    """

    def as_asked(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output.to(inputs[0].dtype)

    for module in model.modules() if is_quantized(model) else ():
        if hasattr(module, "ia3_l"):
            module.register_forward_hook(as_asked)


def trained_on(folder: Path) -> Quantize:
    """What the base of the tuned model in `folder` was quantized to; "none" where nothing is said."""
    path = folder / TRAINING
    facts = read_json(path) if path.is_file() else {}
    said = facts.get("quantize") if isinstance(facts, dict) else None
    return next((known for known in get_args(Quantize) if known == said), "none")


def _layers(model: Any, kind: str) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__ == kind]


def _with_scale(layer: Any, _: Any) -> None:
    # peft's DoRA reads 8-bit weights on a CPU by putting a moved copy in their place, which lacks their scale.
    if layer.weight.CB is not None and layer.weight.SCB is None:
        layer.weight.SCB = layer.state.SCB
