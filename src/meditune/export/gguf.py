"""GGUF files for llama.cpp and programs based on it.

The layout is llama.cpp's (github.com/ggml-org/ggml, docs/gguf.md), and llama.cpp's package `gguf-py` names the tensors.
The blocks of Q4_K, Q5_K and Q6_K are written by llama.cpp's own function `ggml_quantize_chunk`, which is in xllamacpp's
wheel. The wheel lacks `llama_model_quantize`, which chooses each matrix's type, so `matrix_type` implements its rules.
"""

from __future__ import annotations

import ctypes
import difflib
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meditune.engines.exported_model import import_package
from meditune.engines.tokenizer import PlainTokenizer
from meditune.errors import ModelError
from meditune.files import read_json, read_text
from meditune.hardware import cores
from meditune.progress import Progress

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6
"""llama.cpp's token types"""


_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|@| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {_WORDS.replace("@", r"\p{N}"): "qwen2", _WORDS.replace("@", r"\p{N}{1,3}"): "llama-bpe"}
"""Pattern of a pre-tokenizer (of Qwen2 and of Llama 3) -> llama.cpp's name for this pre-tokenizer"""


def add_vocabulary(writer: Any, source: Path) -> None:
    """Write the tokenizer of a plain folder. Raises ModelError if llama.cpp would tokenize differently."""
    spec = read_json(source / "tokenizer.json")
    model = spec["model"]
    if model.get("type") != "BPE":
        raise ModelError(f"GGUF export supports BPE tokenizers, not {model.get('type')}. Export the model as merged.")
    size = read_json(source / "config.json")["vocab_size"]
    tokens, kinds = [f"[UNUSED{number}]" for number in range(size)], [UNUSED] * size
    for token, number in model["vocab"].items():
        tokens[number], kinds[number] = token, NORMAL
    for entry in spec["added_tokens"]:
        # Gemma 3 1B's tokenizer also has a token for images, for which the model has no embedding.
        if entry["id"] < size:
            tokens[entry["id"]], kinds[entry["id"]] = entry["content"], CONTROL if entry["special"] else USER_DEFINED
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if model.get("byte_fallback"):
        # SentencePiece: tokens that are merged earlier have higher scores.
        ranks: dict[str, int] = {}
        for rank, pair in enumerate(merges):
            ranks.setdefault(pair.replace(" ", "", 1), rank)
        kinds = [BYTE if re.fullmatch("<0x..>", token) else kind for token, kind in zip(tokens, kinds, strict=True)]
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(ranks.get(token, 0)) for token in tokens])
        writer.add_add_space_prefix(_begins_with_space(spec))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer(spec.get("pre_tokenizer") or {}))
        writer.add_token_merges(merges)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    tokenizer = PlainTokenizer(source)
    for name in ("bos", "eos", "pad", "unk"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id])
    writer.add_add_eos_token(False)


def _begins_with_space(spec: dict[str, Any]) -> bool:
    """Return whether the tokenizer puts a space before every text (Llama 2's does, Gemma's doesn't)."""
    normalizer, splitter = spec.get("normalizer") or {}, spec.get("pre_tokenizer") or {}
    for step in [*normalizer.get("normalizers", [normalizer]), *splitter.get("pretokenizers", [splitter])]:
        if step.get("type") == "Prepend":
            return True
        # Files from older versions of the package tokenizers contain add_prefix_space instead.
        if step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never":
            return bool(step.get("prepend_scheme") or step.get("add_prefix_space", True))
    return False


def _pre_tokenizer(spec: dict[str, Any]) -> str:
    steps = spec.get("pretokenizers", [spec])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and steps[0]["pattern"].get("Regex") in PATTERNS:
        return PATTERNS[steps[0]["pattern"]["Regex"]]
    raise ModelError(
        "Meditune doesn't know llama.cpp's name for this tokenizer's pre-tokenizer. Export the model as merged, and "
        "convert that folder with llama.cpp's convert_hf_to_gguf.py."
    )


@dataclass(frozen=True)
class Quantization:
    """A quantization of GGUF files: its number in llama.cpp (llama_ftype in llama.h) and the type of most matrices."""

    file_type: int
    matrices: str
    looseness: float
    """Factor for the tolerances in verify.py, which are meant for 8-bit weights"""


QUANTIZATIONS = {
    "Q8_0": Quantization(7, "Q8_0", 1.0),
    "Q6_K": Quantization(18, "Q6_K", 1.0),
    "Q5_K_M": Quantization(17, "Q5_K", 3.5),
    "Q4_K_M": Quantization(15, "Q4_K", 5.0),
}
DEFAULT = "Q8_0"
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "gemma3_text": "gemma3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gpt2": "gpt2",
}
"""Model types of transformers -> llama.cpp's names of architectures"""
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
"""GPT-2's matrices that transformers stores transposed"""
NARROW = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""Types with blocks of 256 numbers -> llama.cpp's replacements if the row length isn't a multiple of 256"""


def file_name(quantization: str) -> str:
    """Return the name of the GGUF file with this quantization."""
    return f"model-{quantization}.gguf"


def quantization_named(name: str | None) -> str:
    """Return the quantization's name as llama.cpp writes it; DEFAULT for None. Raises ModelError if it is unknown."""
    found = (name or DEFAULT).upper()
    if found not in QUANTIZATIONS:
        near = difflib.get_close_matches(found, QUANTIZATIONS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ModelError(f"Unknown quantization {name!r}.{hint} Quantizations: {', '.join(QUANTIZATIONS)}.")
    return found


def check_architecture(model_type: str) -> None:
    """Raise ModelError if models of this type (`model_type` in config.json) can't be exported."""
    if model_type not in ARCHITECTURES:
        raise ModelError(
            f"GGUF export supports {', '.join(ARCHITECTURES)} models, not {model_type}. Export the model as merged, "
            "and convert that folder with llama.cpp's convert_hf_to_gguf.py."
        )


def write_gguf(source: Path, folder: Path, quantization: str = DEFAULT) -> dict[str, str]:
    """Write the model in a plain folder as one GGUF file, and return package -> version for the packages used.

    The file contains the chat template in `folder`, if there is one. Raises ModelError if llama.cpp uses a different
    layout for the architecture, or tokenizes differently.
    """
    import importlib.metadata

    import gguf

    config = read_json(source / "config.json")
    check_architecture(config["model_type"])
    kind, layers = ARCHITECTURES[config["model_type"]], config.get("num_hidden_layers") or config["n_layer"]
    writer = gguf.GGUFWriter(folder / file_name(quantization), kind)
    _add_shape(writer, config, kind, layers)
    writer.add_file_type(QUANTIZATIONS[quantization].file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_vocabulary(writer, source)
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(read_text(template))
    arch = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[kind]
    names = gguf.get_tensor_name_map(arch, layers)
    tied = bool(config.get("tie_word_embeddings", kind == "gpt2"))
    with Progress(f"Quantizing to {quantization}", _megabytes(source), "MB") as progress:
        for name, tensor, size in _tensors(source):
            known = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if known is None:
                raise ModelError(f"llama.cpp has no name for the weights {name}: the model isn't a plain {kind} model.")
            if known != "output.weight" or not tied:
                _add(writer, known, _converted(name, tensor, config, kind), quantization, layers, tied)
            progress.advance(size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {package: importlib.metadata.version(package) for package in ("gguf", "xllamacpp")}


def context_tokens(config: dict[str, Any], ignores_windows: bool = True) -> int:
    """Return the context length in tokens; if the engine ignores a sliding window of all layers, at most the window."""
    config = config.get("text_config", config)
    most = int(config.get("max_position_embeddings") or config.get("n_positions") or 2048)
    window = config.get("sliding_window")
    return min(most, window) if ignores_windows and window and not config.get("layer_types") else most


def _add_shape(writer: Any, config: dict[str, Any], kind: str, layers: int) -> None:
    writer.add_context_length(context_tokens(config))
    writer.add_block_count(layers)
    writer.add_vocab_size(config["vocab_size"])
    if kind == "gpt2":
        writer.add_embedding_length(config["n_embd"])
        writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config["rope_parameters"].get("full_attention", config["rope_parameters"])
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    scaling = rope.get("rope_type", "default")
    if scaling == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(rope, size))
    elif scaling != "default" or (kind != "gemma3" and config.get("use_sliding_window")):
        unsupported = "Qwen models with sliding windows" if scaling == "default" else f"{scaling} positions"
        raise ModelError(f"GGUF export doesn't support {unsupported}. Export the model as merged.")
    if kind != "gemma3":
        writer.add_rope_dimension_count(size)
        return
    kinds = config["layer_types"]
    if any(one != ("full_attention" if number % 6 == 5 else "sliding_attention") for number, one in enumerate(kinds)):
        raise ModelError("llama.cpp expects full attention in every sixth layer of Gemma 3 models; this model differs.")
    writer.add_sliding_window(config["sliding_window"])


def _llama3_factors(rope: dict[str, Any], size: int) -> Any:
    """Return the divisors of rotary frequencies for llama.cpp in FP32, as in transformers' modeling_rope_utils.py."""
    base, factor, trained = float(rope["rope_theta"]), rope["factor"], rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = trained / (2 * math.pi * base ** (np.arange(0, size, 2) / size))
    between = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - between) / factor + between)).astype(np.float32)


def _megabytes(source: Path) -> float:
    """Return the size of a plain folder's weights."""
    return sum(file.stat().st_size for file in source.glob("*.safetensors")) / 1e6


def _tensors(source: Path) -> Iterator[tuple[str, Any, float]]:
    """Yield the name of each weight, its values in FP32, and its stored size in megabytes."""
    import torch
    from safetensors import safe_open

    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a dictionary
                tensor = stored.get_tensor(name)
                yield name, tensor.to(torch.float32).numpy(), tensor.nbytes / 1e6


def _converted(name: str, tensor: Any, config: dict[str, Any], kind: str) -> Any:
    if kind == "gemma3":
        # transformers multiplies by 1 + weight, llama.cpp by the stored value.
        return tensor + 1 if name.endswith("norm.weight") else tensor
    if kind == "gpt2":
        return np.ascontiguousarray(tensor.T) if name.endswith(TRANSPOSED) else tensor
    if kind != "llama":
        return tensor
    if "q_proj." not in name and "k_proj." not in name:
        return tensor
    # For rotary positions, transformers pairs the two halves of a head, and llama.cpp pairs adjacent rows.
    heads = config["num_attention_heads"]
    heads = heads if "q_proj." in name else config.get("num_key_value_heads") or heads
    return tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)


def _add(writer: Any, name: str, tensor: Any, quantization: str, layers: int, tied: bool) -> None:
    import gguf

    if tensor.ndim == 1 or name == "position_embd.weight":
        writer.add_tensor(name, tensor.astype(np.float32))
        return
    kind = gguf.GGMLQuantizationType[matrix_type(name, tensor.shape[-1], quantization, layers, tied)]
    blocks = _k_quantized(tensor, kind) if kind.name in NARROW else gguf.quantize(tensor, kind)
    writer.add_tensor(name, blocks, raw_dtype=kind)


def matrix_type(name: str, columns: int, quantization: str, layers: int, tied: bool) -> str:
    """Return the type of a matrix in a file of this quantization, as llama.cpp's `llama_model_quantize` chooses it.

    `tied` means that the token embeddings are also the output matrix. The K_M quantizations use Q6_K for the output
    matrix, and for two sensitive matrices in half of the layers. Source: llama_tensor_get_type in src/llama-quant.cpp.
    """
    kind = QUANTIZATIONS[quantization].matrices
    if quantization.endswith("_M"):
        number = int(found[1]) if (found := re.match(r"blk\.(\d+)\.", name)) else 0
        eighth = layers // 8
        is_sensitive = number < eighth or number >= 7 * layers // 8 or (number - eighth) % 3 == 2
        is_output = name == "output.weight" or (tied and name == "token_embd.weight")
        mixed = ("attn_v.weight", "attn_qkv.weight", "ffn_down.weight")
        if is_output or (is_sensitive and name.endswith(mixed)):
            kind = "Q6_K"
    if columns % 256:
        kind = NARROW.get(kind, kind)
    return "F16" if columns % 32 else kind


def _k_quantized(tensor: Any, kind: Any) -> Any:
    """Return a matrix quantized by llama.cpp from FP32, as bytes (rows, bytes per row)."""
    import gguf

    library = ctypes.CDLL(import_package("llamacpp", "xllamacpp").xllamacpp.__file__)
    if not hasattr(library, "ggml_quantize_chunk"):
        raise ModelError(
            f"This build of xllamacpp doesn't offer llama.cpp's quantization, which {kind.name} needs. Export in Q8_0: "
            "--quantization Q8_0"
        )
    make = library.ggml_quantize_chunk
    make.restype = ctypes.c_size_t
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    make.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    values = np.ascontiguousarray(tensor, dtype=np.float32)
    rows, columns = values.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    made = np.empty((rows, columns // block * size), dtype=np.uint8)
    parts = np.linspace(0, rows, cores() + 1, dtype=int)

    def quantize(part: int) -> None:
        begin, count = int(parts[part]), int(parts[part + 1] - parts[part])
        make(int(kind), values.ctypes.data, made.ctypes.data, begin * columns, count, columns, None)

    with ThreadPoolExecutor(cores()) as threads:
        list(threads.map(quantize, range(cores())))
    return made
