"""A plain folder as a GGUF file, which llama.cpp and what is built on it run.

The layout is llama.cpp's (its `gguf-py` package names the tensors; github.com/ggml-org/ggml, docs/gguf.md). Matrices
are rounded to Q8_0: blocks of 32 numbers in 8 bits with a common scale. Q4_K_M isn't written here: its blocks are made
by llama.cpp's own `llama-quantize`, which no package on PyPI carries ready-made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from meditune.errors import ModelError
from meditune.export.gguf_vocabulary import add_vocabulary
from meditune.files import read_json, read_text

NAME = "model-Q8_0.gguf"
ARCHITECTURES = {"llama": "llama", "gemma3_text": "gemma3"}
"""transformers' model types and what llama.cpp calls them"""
TYPE_Q8_0 = 7
"""llama.cpp's number for files that are mostly Q8_0"""


def write_gguf(source: Path, folder: Path) -> dict[str, str]:
    """Put the model of a plain folder into `folder` as one file; returns the packages that made it.

    Raises ModelError where llama.cpp has another layout for the architecture, or another way to make tokens.
    """
    import importlib.metadata

    import gguf

    config = read_json(source / "config.json")
    kind = ARCHITECTURES.get(config["model_type"])
    if kind is None:
        raise ModelError(
            f"Meditune writes GGUF files of {', '.join(ARCHITECTURES)} models, not of {config['model_type']}. Export "
            "it as merged, and convert that folder with llama.cpp's convert_hf_to_gguf.py."
        )
    writer = gguf.GGUFWriter(folder / NAME, kind)
    _add_shape(writer, config, kind)
    add_vocabulary(writer, source)
    template = source / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(read_text(template))
    arch = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[kind]
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for name, tensor in _tensors(source):
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise ModelError(f"llama.cpp has no name for the weights {name}. The model isn't a plain {kind}.")
        if known != "output.weight" or not config.get("tie_word_embeddings"):
            _add(writer, known, _as_llama_cpp_has_it(name, tensor, config, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"gguf": importlib.metadata.version("gguf")}


def _add_shape(writer: Any, config: dict[str, Any], kind: str) -> None:
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(TYPE_Q8_0)
    bases = _rope_bases(config)
    writer.add_rope_freq_base(bases["full"])
    if kind == "llama":
        writer.add_rope_dimension_count(size)
        return
    kinds = config["layer_types"]
    if any(one != ("full_attention" if number % 6 == 5 else "sliding_attention") for number, one in enumerate(kinds)):
        raise ModelError("llama.cpp expects every sixth layer of a Gemma 3 to see everything; this one's differ.")
    writer.add_sliding_window(config["sliding_window"])


def _rope_bases(config: dict[str, Any]) -> dict[str, float]:
    """The base of rotary positions. Raises ModelError where they are scaled."""
    said = config.get("rope_parameters") or {}
    full = said.get("full_attention", said)
    if full.get("rope_type", "default") != "default":
        raise ModelError(f"Meditune doesn't write GGUF files with {full['rope_type']} positions. Export it as merged.")
    return {"full": float(full.get("rope_theta") or config.get("rope_theta") or 10_000.0)}


def _tensors(source: Path) -> Iterator[tuple[str, Any]]:
    """Names and FP32 arrays of all weights."""
    import torch
    from safetensors import safe_open

    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - no dictionary
                yield name, stored.get_tensor(name).to(torch.float32).numpy()


def _as_llama_cpp_has_it(name: str, tensor: Any, config: dict[str, Any], kind: str) -> Any:
    if kind == "gemma3":
        # transformers multiplies by 1 + weight, llama.cpp by what stands in the file.
        return tensor + 1 if name.endswith("norm.weight") else tensor
    heads = config["num_attention_heads"]
    if name.endswith("q_proj.weight"):
        return _interleaved(tensor, heads)
    if name.endswith("k_proj.weight"):
        return _interleaved(tensor, config.get("num_key_value_heads") or heads)
    return tensor


def _interleaved(tensor: Any, heads: int) -> Any:
    """transformers turns the halves of a head against each other, llama.cpp neighbours: rows are laid out anew."""
    rows = tensor.shape[0] // heads
    return tensor.reshape(heads, 2, rows // 2, -1).swapaxes(1, 2).reshape(tensor.shape)


def _add(writer: Any, name: str, tensor: Any) -> None:
    import gguf

    kind = gguf.GGMLQuantizationType
    if tensor.ndim == 1:
        writer.add_tensor(name, tensor.astype(np.float32))
    elif tensor.shape[-1] % 32:
        writer.add_tensor(name, tensor.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quantize(tensor, kind.Q8_0), raw_dtype=kind.Q8_0)
