"""A tokenizer as llama.cpp keeps it in a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meditune.errors import ModelError
from meditune.files import read_json

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6
"""llama.cpp's kinds of tokens"""


def add_vocabulary(writer: Any, source: Path) -> None:
    """Write the tokenizer of a plain folder. Raises ModelError for one that llama.cpp makes tokens unlike."""
    said = read_json(source / "tokenizer.json")
    model = said["model"]
    if model.get("type") != "BPE":
        raise ModelError(f"GGUF files are written with BPE tokenizers, not {model.get('type')}. Export it as merged.")
    size = read_json(source / "config.json")["vocab_size"]
    tokens, kinds = _listed(model["vocab"], said["added_tokens"], size)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if model.get("byte_fallback"):
        _sentencepiece(writer, tokens, kinds, said)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer(said.get("pre_tokenizer") or {}))
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges(merges)
    _add_special(writer, source, {token: number for number, token in enumerate(tokens)}, said)


def _listed(vocabulary: dict[str, int], added: list[dict[str, Any]], size: int) -> tuple[list[str], list[int]]:
    """Every token by its number, and its kind; numbers without a token are unused."""
    tokens = [f"[UNUSED{number}]" for number in range(size)]
    kinds = [UNUSED] * size
    for token, number in vocabulary.items():
        tokens[number], kinds[number] = token, NORMAL
    for token_said in added:
        number = token_said["id"]
        tokens[number] = token_said["content"]
        kinds[number] = CONTROL if token_said["special"] else USER_DEFINED
    return tokens, kinds


def _sentencepiece(writer: Any, tokens: list[str], kinds: list[int], said: dict[str, Any]) -> None:
    """Tokens with scores: what is merged earlier has the higher one."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(said["model"]["merges"]):
        first, second = pair if isinstance(pair, list) else pair.split(" ", 1)
        ranks.setdefault(first + second, rank)
    for number, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[number] = BYTE
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(ranks.get(token, 0)) for token in tokens])
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(_begins_with_space(said))


def _begins_with_space(said: dict[str, Any]) -> bool:
    """Whether a space goes before every text, as Llama 2's tokenizer puts one and Gemma's doesn't."""
    normalizer, cutter = said.get("normalizer") or {}, said.get("pre_tokenizer") or {}
    for step in [*normalizer.get("normalizers", [normalizer]), *cutter.get("pretokenizers", [cutter])]:
        if step.get("type") == "Prepend":
            return True
        # Files of older versions of tokenizers say add_prefix_space instead.
        if step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never":
            return bool(step.get("prepend_scheme") or step.get("add_prefix_space", True))
    return False


def _pre_tokenizer(said: dict[str, Any]) -> str:
    """llama.cpp's name for the way in which text is cut before merging."""
    steps = said.get("pretokenizers", [said])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    raise ModelError(
        "Meditune doesn't know what llama.cpp calls the way in which this tokenizer cuts text. Export the model as "
        "merged, and convert that folder with llama.cpp's convert_hf_to_gguf.py."
    )


def _add_special(writer: Any, source: Path, numbers: dict[str, int], said: dict[str, Any]) -> None:
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
    before = ((said.get("post_processor") or {}).get("special_tokens") or {}) != {}
    writer.add_add_bos_token(before)
    writer.add_add_eos_token(False)
