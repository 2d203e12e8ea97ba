"""Merging an adapter into its base model's weights, and writing models as plain transformers folders.

The sum is computed in FP32 on the unquantized base and rounded once, to the number format that the base is stored in.
Merging into 4-bit weights would round the adapter's small changes away.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from meditune.errors import ModelError
from meditune.files import full_disk_message
from meditune.models.catalogue import ADAPTER_FILE
from meditune.models.load import base_of, has_tokenizer, loading, locate, source
from meditune.models.pruning import linears, sparsity
from meditune.models.quiet_libraries import quiet_transformers


def stored_dtype(folder: str) -> torch.dtype:
    """Return the number format of the weights in a folder or at the hub; FP32 if the config doesn't name one.

    Raises ModelError if they are stored quantized, because then there are no full-precision weights.
    """
    from transformers import AutoConfig

    with loading(folder, folder):
        config = AutoConfig.from_pretrained(**source(folder))
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{folder} is stored quantized, but its weights can only be changed in full precision. Name the model that "
            "it was quantized from."
        )
    found = config.dtype or config.get_text_config().dtype
    return found if isinstance(found, torch.dtype) else torch.float32


def write(model: Any, tokenizer: Any, dtype: torch.dtype, folder: Path) -> None:
    """Save model and tokenizer in `folder`, with weights in that number format; `model` is converted in place."""
    for weight in model.parameters():  # `model.to` would round rotary frequencies, too
        weight.data = weight.data.to(dtype)
    with full_disk_message(folder), quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Merged:
    """A base model with an adapter in its weights."""

    model: Any
    """In FP32"""
    tokenizer: Any
    dtype: torch.dtype
    """The number format that the base is stored in"""
    sparsities: tuple[float, float]
    """Shares of zeros in the linear layers of the base and of this model"""


def merge(adapter: Path, keep_sparsity: bool = False) -> Merged:
    """Return the base model of the PEFT adapter in that folder with the adapter merged in.

    With `keep_sparsity`, linear-layer weights that are zero in a pruned base are set to zero again. Raises ModelError
    for virtual tokens, if the base is stored quantized or unavailable, or if the sum isn't finite.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    if is_virtual(adapter):
        raise ModelError(
            f"The adapter in {adapter} consists of virtual tokens, which can't be merged into the base model's "
            f"weights. Use it as it is: {ADAPTER_FILE} names its base model."
        )
    base = locate(base_of(adapter))
    dtype = stored_dtype(base)
    spoken = str(adapter) if has_tokenizer(adapter) else base
    with loading(str(adapter), base):
        tokenizer = AutoTokenizer.from_pretrained(**source(spoken))
        model = AutoModelForCausalLM.from_pretrained(**source(base), use_safetensors=True, dtype=torch.float32)
        zeros = sparsity(model)
        pruned = {name: layer.weight == 0 for name, layer in linears(model).items()} if keep_sparsity else {}
        # An adapter that was trained in BF16 would compute its product in BF16.
        joined = PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False).float()
        if (adapter / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(adapter)
    try:
        model = joined.merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise ModelError(f"peft can't merge the adapter in {adapter} into its base model: {error}.") from error
    for name, gone in pruned.items():
        model.get_submodule(name).weight.data.masked_fill_(gone, 0)
    stop_at_end(model.generation_config, tokenizer)
    return Merged(model.eval(), tokenizer, dtype, (zeros, sparsity(model)))


def is_virtual(adapter: Path) -> bool:
    """Return whether an adapter consists of virtual tokens. Raises ModelError if peft can't read it."""
    from peft import PeftConfig

    with loading(str(adapter), str(adapter)):
        return bool(PeftConfig.from_pretrained(str(adapter)).is_prompt_learning)


def stop_at_end(generation: Any, tokenizer: Any) -> None:
    """Make generation also stop at the tokenizer's end token, and set a padding token if none is set."""
    ends = generation.eos_token_id
    known = ends if isinstance(ends, list) else [] if ends is None else [ends]
    end = tokenizer.eos_token_id
    if end is not None and end not in known:
        generation.eos_token_id = [*known, end] if known else end
    if generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
