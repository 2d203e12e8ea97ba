"""The model as one plain folder with BF16 safetensors: what every other form is made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from meditune.errors import ModelError
from meditune.models import merging, plain
from meditune.models.load import loading, source
from meditune.models.names import ADAPTER_FILE


def write_merged(place: str, folder: Path) -> None:
    """Put the model of a folder or hub id, its adapter merged in FP32, into `folder`, rounded once to BF16.

    Raises ModelError where it can't be merged or read.
    """
    if (Path(place) / ADAPTER_FILE).is_file():
        merged = merging.merge(Path(place))
        model, tokenizer = merged.model, merged.tokenizer
    else:
        model, tokenizer = _whole(place)
    model.config.dtype = torch.bfloat16
    plain.write(model, tokenizer, torch.bfloat16, folder)
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"The tokenizer of {place} can't be written as tokenizer.json, which engines read.")


def _whole(place: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain.stored_dtype(place)
    with loading(place, place):
        tokenizer = AutoTokenizer.from_pretrained(**source(place))
        model = AutoModelForCausalLM.from_pretrained(**source(place), use_safetensors=True, dtype=torch.float32)
    merging.stop_at_end(model.generation_config, tokenizer)
    return model.eval(), tokenizer
