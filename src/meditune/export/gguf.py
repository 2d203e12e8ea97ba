"""GGUF files for llama.cpp and programs based on it, with the Modelfile that Ollama runs them with.

The layout is llama.cpp's (its `gguf-py` package names the tensors; github.com/ggml-org/ggml, docs/gguf.md). Matrices
are rounded to Q8_0: blocks of 32 numbers in 8 bits with a common scale. Q4_K_M isn't supported: its blocks are made by
llama.cpp's own `llama-quantize`, which no package on PyPI ships.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from meditune.chat_template import ChatTemplate, TemplateError
from meditune.config.data_options import PromptFormat
from meditune.engines.exported_model import stop_tokens
from meditune.engines.tokenizer import PlainTokenizer
from meditune.errors import ModelError
from meditune.files import read_json, read_text
from meditune.prompts import LIMITS, load_format

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6
"""llama.cpp's token types"""


QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern by which Qwen2's pre-tokenizer cuts texts"""


def add_vocabulary(writer: Any, source: Path) -> None:
    """Write the tokenizer of a plain folder; raise ModelError if llama.cpp would tokenize differently."""
    spec = read_json(source / "tokenizer.json")
    model = spec["model"]
    if model.get("type") != "BPE":
        raise ModelError(f"GGUF export supports BPE tokenizers, not {model.get('type')}. Export the model as merged.")
    size = read_json(source / "config.json")["vocab_size"]
    tokens, kinds = _listed(model["vocab"], spec["added_tokens"], size)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if model.get("byte_fallback"):
        _sentencepiece(writer, tokens, kinds, spec)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer(spec.get("pre_tokenizer") or {}))
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges(merges)
    _add_special(writer, source, {token: number for number, token in enumerate(tokens)}, spec)


def _listed(vocabulary: dict[str, int], added: list[dict[str, Any]], size: int) -> tuple[list[str], list[int]]:
    """Return every token by its number, and its type; numbers without a token are unused."""
    tokens = [f"[UNUSED{number}]" for number in range(size)]
    kinds = [UNUSED] * size
    for token, number in vocabulary.items():
        tokens[number], kinds[number] = token, NORMAL
    for entry in added:
        number = entry["id"]
        tokens[number] = entry["content"]
        kinds[number] = CONTROL if entry["special"] else USER_DEFINED
    return tokens, kinds


def _sentencepiece(writer: Any, tokens: list[str], kinds: list[int], spec: dict[str, Any]) -> None:
    """Write tokens with scores: tokens that are merged earlier have higher scores."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(spec["model"]["merges"]):
        first, second = pair if isinstance(pair, list) else pair.split(" ", 1)
        ranks.setdefault(first + second, rank)
    for number, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[number] = BYTE
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(ranks.get(token, 0)) for token in tokens])
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(_begins_with_space(spec))


def _begins_with_space(spec: dict[str, Any]) -> bool:
    """Return whether a space is put before every text, as in Llama 2's tokenizer but not in Gemma's."""
    normalizer, cutter = spec.get("normalizer") or {}, spec.get("pre_tokenizer") or {}
    for step in [*normalizer.get("normalizers", [normalizer]), *cutter.get("pretokenizers", [cutter])]:
        if step.get("type") == "Prepend":
            return True
        # Files of older versions of tokenizers have add_prefix_space instead.
        if step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never":
            return bool(step.get("prepend_scheme") or step.get("add_prefix_space", True))
    return False


def _pre_tokenizer(spec: dict[str, Any]) -> str:
    """Return llama.cpp's name for the pre-tokenizer."""
    steps = spec.get("pretokenizers", [spec])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and steps[0]["pattern"].get("Regex") == QWEN2_WORDS:
        return "qwen2"
    raise ModelError(
        "Meditune doesn't know llama.cpp's name for this tokenizer's pre-tokenizer. Export the model as merged, and "
        "convert that folder with llama.cpp's convert_hf_to_gguf.py."
    )


def _add_special(writer: Any, source: Path, numbers: dict[str, int], spec: dict[str, Any]) -> None:
    settings = read_json(source / "tokenizer_config.json")
    for name, add in (
        ("bos_token", writer.add_bos_token_id),
        ("eos_token", writer.add_eos_token_id),
        ("pad_token", writer.add_pad_token_id),
        ("unk_token", writer.add_unk_token_id),
    ):
        token = settings.get(name)
        token = token["content"] if isinstance(token, dict) else token
        if token in numbers:
            add(numbers[token])
    before = ((spec.get("post_processor") or {}).get("special_tokens") or {}) != {}
    writer.add_add_bos_token(before)
    writer.add_add_eos_token(False)


NAME = "model-Q8_0.gguf"
ARCHITECTURES = {"llama": "llama", "gemma3_text": "gemma3", "qwen2": "qwen2"}
"""transformers' model types -> llama.cpp's names"""
TYPE_Q8_0 = 7
"""llama.cpp's number for files that are mostly Q8_0"""


def write_gguf(source: Path, folder: Path) -> dict[str, str]:
    """Write the model of a plain folder into `folder` as one file, and return the packages that made it.

    Raises ModelError if llama.cpp uses a different layout for the architecture, or tokenizes differently.
    """
    import importlib.metadata

    import gguf

    config = read_json(source / "config.json")
    kind = ARCHITECTURES.get(config["model_type"])
    if kind is None:
        raise ModelError(
            f"GGUF export supports {', '.join(ARCHITECTURES)} models, not {config['model_type']}. Export the model "
            "as merged, and convert that folder with llama.cpp's convert_hf_to_gguf.py."
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
            raise ModelError(f"llama.cpp has no name for the weights {name}: the model isn't a plain {kind}.")
        if known != "output.weight" or not config.get("tie_word_embeddings"):
            _add(writer, known, _converted(name, tensor, config, kind))
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
    writer.add_rope_freq_base(_rope_base(config))
    if kind != "gemma3":
        if config.get("use_sliding_window"):
            raise ModelError("GGUF export doesn't support Qwen2 with sliding windows. Export the model as merged.")
        writer.add_rope_dimension_count(size)
        return
    kinds = config["layer_types"]
    if any(one != ("full_attention" if number % 6 == 5 else "sliding_attention") for number, one in enumerate(kinds)):
        raise ModelError("llama.cpp expects full attention in every sixth layer of a Gemma 3; this model differs.")
    writer.add_sliding_window(config["sliding_window"])


def _rope_base(config: dict[str, Any]) -> float:
    """Return the base of rotary positions; raise ModelError if they are scaled."""
    spec = config.get("rope_parameters") or {}
    full = spec.get("full_attention", spec)
    if full.get("rope_type", "default") != "default":
        raise ModelError(f"GGUF export doesn't support {full['rope_type']} positions. Export the model as merged.")
    return float(full.get("rope_theta") or config.get("rope_theta") or 10_000.0)


def _tensors(source: Path) -> Iterator[tuple[str, Any]]:
    """Yield names and FP32 arrays of all weights."""
    import torch
    from safetensors import safe_open

    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a dictionary
                yield name, stored.get_tensor(name).to(torch.float32).numpy()


def _converted(name: str, tensor: Any, config: dict[str, Any], kind: str) -> Any:
    """Return the weights as llama.cpp stores them."""
    if kind == "gemma3":
        # transformers multiplies by 1 + weight, llama.cpp by the stored value.
        return tensor + 1 if name.endswith("norm.weight") else tensor
    if kind == "qwen2":
        return tensor
    heads = config["num_attention_heads"]
    if name.endswith("k_proj.weight"):
        heads = config.get("num_key_value_heads") or heads
    return _interleaved(tensor, heads) if name.endswith(("q_proj.weight", "k_proj.weight")) else tensor


def _interleaved(tensor: Any, heads: int) -> Any:
    """Reorder rows: transformers rotates the two halves of a head against each other, llama.cpp adjacent rows."""
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


FILE_NAME = "Modelfile"
QUOTES = '"""'


def write_ollama(source: Path, folder: Path) -> dict[str, str]:
    """Write GGUF file and Modelfile into `folder`, and return the packages that made them."""
    tools = write_gguf(source, folder)
    form = load_format(source) or PromptFormat()
    tokenizer = PlainTokenizer(source)
    stops = [tokenizer.convert_ids_to_tokens(token) for token in stop_tokens(source)]
    context = read_json(source / "config.json")["max_position_embeddings"]
    template = chat_modelfile_template(tokenizer, form) if form.is_chat else None
    (folder / FILE_NAME).write_text(modelfile(form, stops, context, template), encoding="utf-8")
    return tools


def chat_modelfile_template(tokenizer: PlainTokenizer, form: PromptFormat) -> str:
    """Return the model's chat template in Ollama's template language.

    A BOS token that llama.cpp adds itself is left out. Raises ModelError if the template can't be written in that
    language.
    """
    try:
        part = ChatTemplate(tokenizer, form.thinking).parts()
    except TemplateError as error:
        raise ModelError(f"{error} Export the model to gguf: that file holds the template as it is.") from error
    if any("{{" in text for text in part.values()):
        raise ModelError("The chat template contains {{, which has a special meaning in a Modelfile.")
    bos = tokenizer.bos_token or "" if tokenizer("")["input_ids"] else ""
    part |= {name: part[name].removeprefix(bos) for name in ("start", "system_start") if name in part}
    begin = part["start"]
    if "system_start" in part:
        system = f"{part['system_start']}{{{{ .System }}}}{part['system_end']}"
        begin = f"{{{{ if .System }}}}{system}{{{{ else }}}}{begin}{{{{ end }}}}"
    user = f'{{{{ if eq .Role "user" }}}}{part["user_start"]}{{{{ .Content }}}}{part["user_end"]}'
    reply = f"{part['assistant_start']}{{{{ .Content }}}}{part['assistant_end']}{{{{ end }}}}"
    reply = f'{{{{ else if eq .Role "assistant" }}}}{reply}'
    return f"{begin}{{{{ range .Messages }}}}{user}{reply}{{{{ end }}}}"


def modelfile(form: PromptFormat, stops: list[str], context: int, chat_template: str | None = None) -> str:
    """Return the Modelfile's text; raise ModelError if the prompt format contains Ollama's own syntax.

    Ollama's template is made from the prompt format, so a question reaches the model as in training. A model tuned in
    the plain format never saw a system message, so SYSTEM holds the limits for people (`ollama show`), not for the
    model; with a `chat_template`, the model would read it, so the README alone names them. Source:
    github.com/ollama/ollama, docs/modelfile.md.
    """
    cue = form.plain_cue or form.answer_cue
    template = chat_template or f"{form.question_cue} {{{{ .Prompt }}}}\n{cue}"
    if QUOTES in template or (chat_template is None and "{{" in form.question_cue + cue):
        raise ModelError('The prompt format contains """ or {{, which have a special meaning in a Modelfile.')
    return "\n".join(
        [
            f"FROM ./{NAME}",
            f"TEMPLATE {QUOTES}{template}{QUOTES}",
            *([] if chat_template else [f"SYSTEM {QUOTES}{LIMITS}{QUOTES}"]),
            *(f'PARAMETER stop "{stop}"' for stop in stops),
            f"PARAMETER num_ctx {context}",
            "PARAMETER temperature 0",
            "PARAMETER repeat_penalty 1",
            "",
        ]
    )
