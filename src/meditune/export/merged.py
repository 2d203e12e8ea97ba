"""Merge an adapter into its base: in BF16 for other exports, in the base's number format for `meditune merge`.

The sum is computed in FP32 on the unquantized base: 4-bit weights would round the adapter's small changes away.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from meditune.config.data_options import PromptFormat
from meditune.config.training_options import ApiSpec, Quantize
from meditune.data.leakage import copy_record
from meditune.errors import ModelError
from meditune.evidence.support_model import copy_correction
from meditune.files import follow_umask, full_disk_message, is_result_of, read_json, replace_folder, sha256, write_json
from meditune.models.api_client import find_api_model
from meditune.models.catalogue import ADAPTER_FILE, MERGED, public_name, split_revision
from meditune.models.load import (
    base_of,
    has_tokenizer,
    is_virtual,
    loading,
    locate,
    source,
    unset_ignored,
    with_adapter,
    with_weights,
)
from meditune.models.pruning import linears, sparsity
from meditune.models.quantization import trained_on
from meditune.models.quiet_libraries import quiet_transformers
from meditune.prompts import LIMITS, load_format, save_format


def stored_dtype(folder: str) -> torch.dtype:
    """Return the number format of stored weights; FP32 if it isn't recorded. Raises ModelError if they're quantized."""
    from transformers import AutoConfig

    with loading(folder, folder):
        config = AutoConfig.from_pretrained(**source(folder))
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"The weights of {folder} are stored quantized, but can only be changed in full precision. Specify "
            "the unquantized model."
        )
    found = config.dtype or config.get_text_config().dtype
    return found if isinstance(found, torch.dtype) else torch.float32


def write_model(model: Any, tokenizer: Any, dtype: torch.dtype, folder: Path) -> None:
    """Save the model and tokenizer in `folder`, with weights in `dtype`. The model is converted in place."""
    unset_ignored(model.generation_config)
    for weight in model.parameters():  # `model.to` would round rotary frequencies, too
        weight.data = weight.data.to(dtype)
    with full_disk_message(folder), quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        follow_umask(folder)


@dataclass(frozen=True)
class Merged:
    """A base model with an adapter merged into its weights."""

    model: Any
    """In FP32"""
    tokenizer: Any
    dtype: torch.dtype
    """The number format in which the base is stored"""
    sparsities: tuple[float, float]
    """Shares of zeros in the linear layers of the base and of this model"""


def merge_adapter(adapter: Path, keep_sparsity: bool = False) -> Merged:
    """Return the base model of a PEFT adapter (a folder), with the adapter merged into it.

    With `keep_sparsity`, weights of linear layers that are zero in the base are set to zero again. Raises ModelError if
    the adapter consists of virtual tokens, the base is stored quantized or unavailable, or the sum isn't finite.
    """
    from transformers import AutoTokenizer, GenerationConfig

    if is_virtual(adapter):
        raise ModelError(
            f"The adapter in {adapter} consists of virtual tokens, which can't be merged into the base model's "
            f"weights. Use it as it is: {ADAPTER_FILE} names its base model."
        )
    base = locate(base_of(adapter))
    dtype = stored_dtype(base)
    tokenizer_place = str(adapter) if has_tokenizer(adapter) else base
    with loading(str(adapter), base):
        tokenizer = AutoTokenizer.from_pretrained(**source(tokenizer_place))
        model = with_weights(base, dtype=torch.float32)
        zeros = sparsity(model)
        pruned = {name: layer.weight == 0 for name, layer in linears(model).items()} if keep_sparsity else {}
        # Without this, the product of an adapter that was trained in BF16 would be computed in BF16.
        joined = with_adapter(model, adapter).float()
        if (adapter / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(adapter)
    try:
        model = joined.merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise ModelError(f"peft can't merge the adapter in {adapter} into its base model: {error}.") from error
    for name, was_zero in pruned.items():
        model.get_submodule(name).weight.data.masked_fill_(was_zero, 0)
    stop_at_end(model.generation_config, tokenizer)
    return Merged(model.eval(), tokenizer, dtype, (zeros, sparsity(model)))


def stop_at_end(generation: Any, tokenizer: Any) -> None:
    """Make generation also stop at the tokenizer's end token, and set a padding token if none is set."""
    ends = generation.eos_token_id
    known = ends if isinstance(ends, list) else [] if ends is None else [ends]
    end = tokenizer.eos_token_id
    if end is not None and end not in known:
        generation.eos_token_id = [*known, end] if known else end
    if generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end


def write_merged(place: str, folder: Path) -> None:
    """Write the model at `place` (a folder or hub id) to `folder`, merged in FP32 and then rounded to BF16."""
    if (Path(place) / ADAPTER_FILE).is_file():
        merged = merge_adapter(Path(place))
        model, tokenizer = merged.model, merged.tokenizer
    else:
        model, tokenizer = _whole(place)
    model.config.dtype = torch.bfloat16
    write_model(model, tokenizer, torch.bfloat16, folder)
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"The tokenizer of {place} can't be written as tokenizer.json, which engines need.")


def _whole(place: str) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    stored_dtype(place)
    with loading(place, place):
        tokenizer = AutoTokenizer.from_pretrained(**source(place))
        model = with_weights(place, dtype=torch.float32)
    stop_at_end(model.generation_config, tokenizer)
    return model.eval(), tokenizer


MIN_PRUNED_SHARE = 0.01
"""Share of zeros above which a base model counts as pruned"""


def merge(name: str, folder: Path, keep_sparsity: bool = False) -> dict[str, Any]:
    """Merge the adapter of a run or folder into its base; write the model to `folder` and return merged.json's content.

    With `keep_sparsity`, weights that are zero in a pruned base are also zero in the result. An existing result is
    reused. Raises ModelError if there is nothing to merge, and MedituneError if `folder` contains something else.
    """
    adapter = _adapter(name)
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise ModelError(f"{adapter} has no {weights.name}, so there are no weights to merge. Copy the adapter again.")
    made_from = {"adapter": str(adapter.resolve()), "sha256": sha256(weights), "keep_zeros": keep_sparsity}
    if is_result_of(folder, MERGED, made_from):
        copy_correction(adapter, folder)  # a judge's correction is fitted after training
        facts: dict[str, Any] = read_json(folder / MERGED)
        return facts

    merged = merge_adapter(adapter, keep_sparsity)
    facts = {
        "made_from": made_from,
        "base": public_name(split_revision(base_of(adapter))[0]),
        "adapter": read_json(adapter / ADAPTER_FILE).get("peft_type"),
        "trained_on": trained_on(adapter),
        "dtype": str(merged.dtype).removeprefix("torch."),
        "zeros_in_layers": {"base": merged.sparsities[0], "merged": merged.sparsities[1]},
        "parameters": sum(parameter.numel() for parameter in merged.model.parameters()),
    }
    form = load_format(adapter)
    with replace_folder(folder) as partial:
        write_model(merged.model, merged.tokenizer, merged.dtype, partial)
        if form:
            save_format(form, partial)
        write_json(partial / MERGED, facts)
        copy_record(adapter, partial)
        copy_correction(adapter, partial)
        (partial / "README.md").write_text(_card(facts, form or PromptFormat(), adapter), encoding="utf-8")
    return facts


def remarks(facts: dict[str, Any]) -> list[str]:
    """Return what users must know about a merged model, as sentences."""
    quantize: Quantize = facts["trained_on"]
    done = f"The {facts['adapter']} adapter was merged into {facts['base']} in FP32"
    sentences = [f"{done}; the result is stored in {facts['dtype']}."]
    differs = "so it is not exactly the evaluated model. To evaluate it, run `meditune evaluate`."
    if quantize != "none":
        sentences.append(
            f"The adapter was trained and evaluated on the base in {quantize.upper()}. The merged model uses the base "
            f"in full precision, {differs}"
        )
    before, after = facts["zeros_in_layers"]["base"], facts["zeros_in_layers"]["merged"]
    if before > MIN_PRUNED_SHARE and facts["made_from"]["keep_zeros"]:
        sentences.append(
            f"In the merged model, the weights that pruning had set to zero ({100 * before:.0f}% in linear layers) "
            f"were set to zero again, {differs}"
        )
    elif before > MIN_PRUNED_SHARE:
        sentences.append(
            f"In linear layers, {100 * before:.0f}% of the base's weights are zero, but only {100 * after:.0f}% of "
            "the merged model's, because merging fills zeros. --keep-sparsity sets these weights to zero again."
        )
    return sentences


def _adapter(name: str) -> Path:
    """Return the adapter's folder. Raises ModelError if the model has no adapter on this machine."""
    if find_api_model(name, ApiSpec()):
        raise ModelError(f"{name} is behind an API, so there are no weights here to merge.")
    place = Path(locate(name))
    if (place / ADAPTER_FILE).is_file():
        return place
    if (place / "config.json").is_file():
        raise ModelError(
            f"{name} is a complete model (a base model, or one tuned with model.strategy full), so there is nothing to "
            f"merge. Use it as it is ({place})."
        )
    raise ModelError(f"{name} is not a local folder with an adapter. Specify a folder with {ADAPTER_FILE}, or a run.")


def _card(facts: dict[str, Any], form: PromptFormat, adapter: Path) -> str:
    from meditune.train.model_card import loading, measured

    front = [
        *("---", f"base_model: {facts['base']}", "library_name: transformers", "pipeline_tag: text-generation"),
        *("language: en", "tags: [medical, merged, meditune]", "---"),
    ]
    parts = [
        "\n".join(front),
        f"# {facts['base']} tuned with Meditune, merged into one model",
        f"**Limits.** {LIMITS}",
        "## Use",
        *loading(form, "full"),
        "## How it was made",
        "\n".join(remarks(facts)),
    ]
    report = adapter.parent / "report.json"
    if adapter.name == "model" and report.is_file():
        parts.append("The metrics below were measured with the separate adapter, before merging.")
        parts += measured(read_json(report))
    return "\n\n".join(parts) + "\n"
