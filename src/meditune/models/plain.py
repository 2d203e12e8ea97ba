"""Models as plain transformers folders: what number format one is stored in, and writing one that loads anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from meditune.errors import ModelError
from meditune.files import full_disk_said
from meditune.models.load import loading, source
from meditune.models.quiet import quiet_transformers


def stored_dtype(place: str) -> torch.dtype:
    """The number format of the weights in a folder or at the hub; FP32 where the config doesn't say.

    Raises ModelError where they are stored quantized, because then there are no full-precision weights to work on.
    """
    from transformers import AutoConfig

    with loading(place, place):
        config = AutoConfig.from_pretrained(**source(place))
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{place} is stored quantized, and changing its weights needs them in full precision. Name the model that "
            "it was quantized from."
        )
    found = config.dtype or config.get_text_config().dtype
    return found if isinstance(found, torch.dtype) else torch.float32


def write(model: Any, tokenizer: Any, dtype: torch.dtype, folder: Path) -> None:
    """Put model and tokenizer into `folder`, with weights in that number format; `model` is converted in place."""
    for weight in model.parameters():  # `model.to` would round rotary frequencies, too
        weight.data = weight.data.to(dtype)
    with full_disk_said(folder), quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
