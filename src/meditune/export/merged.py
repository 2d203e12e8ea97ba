"""Merge a run's adapter into its base model: one plain model folder.

`write_merged` writes the BF16 folder that all other export formats are made from; `merge` is `meditune merge`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from meditune.config.data_options import PromptFormat
from meditune.config.training_options import ApiSpec, Quantize
from meditune.data.leakage import copy_record
from meditune.errors import ModelError
from meditune.evidence.support_model import copy_correction
from meditune.files import is_result_of, read_json, replace_folder, sha256, write_json
from meditune.models import merging
from meditune.models.api_client import find_api_model
from meditune.models.catalogue import ADAPTER_FILE, MERGED, public_name, split_revision
from meditune.models.load import base_of, loading, locate, source
from meditune.models.quantization import trained_on
from meditune.prompts import LIMITS, load_format, save_format


def write_merged(place: str, folder: Path) -> None:
    """Write the model of a folder or hub id into `folder`: merge its adapter in FP32 and round once to BF16.

    Raises ModelError if it can't be merged or read.
    """
    if (Path(place) / ADAPTER_FILE).is_file():
        merged = merging.merge(Path(place))
        model, tokenizer = merged.model, merged.tokenizer
    else:
        model, tokenizer = _whole(place)
    model.config.dtype = torch.bfloat16
    merging.write(model, tokenizer, torch.bfloat16, folder)
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"The tokenizer of {place} can't be written as tokenizer.json, which engines need.")


def _whole(place: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merging.stored_dtype(place)
    with loading(place, place):
        tokenizer = AutoTokenizer.from_pretrained(**source(place))
        model = AutoModelForCausalLM.from_pretrained(**source(place), use_safetensors=True, dtype=torch.float32)
    merging.stop_at_end(model.generation_config, tokenizer)
    return model.eval(), tokenizer


MIN_PRUNED_SHARE = 0.01
"""Share of zeros above which a base counts as pruned"""


def merge(name: str, folder: Path, keep_sparsity: bool = False) -> dict[str, Any]:
    """Merge the adapter of a run or a folder into its base, and write the model to `folder` atomically.

    Returns the content of merged.json. With `keep_sparsity`, weights that are zero in a pruned base are zero
    afterwards. An existing result isn't made again. Raises ModelError if there is nothing to merge or it can't be
    merged, and MedituneError if `folder` holds something else.
    """
    adapter = _adapter(name)
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise ModelError(f"{adapter} has no {weights.name}, so there are no weights to merge. Copy the adapter again.")
    made_from = {"adapter": str(adapter.resolve()), "sha256": sha256(weights), "keep_zeros": keep_sparsity}
    if is_result_of(folder, MERGED, made_from):
        facts: dict[str, Any] = read_json(folder / MERGED)
        return facts

    merged = merging.merge(adapter, keep_sparsity)
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
        merging.write(merged.model, merged.tokenizer, merged.dtype, partial)
        if form:
            save_format(form, partial)
        write_json(partial / MERGED, facts)
        copy_record(adapter, partial)
        copy_correction(adapter, partial)
        (partial / "README.md").write_text(_card(facts, form or PromptFormat(), adapter), encoding="utf-8")
    return facts


def remarks(facts: dict[str, Any]) -> list[str]:
    """Return what users must know of a merged model, in sentences."""
    quantize: Quantize = facts["trained_on"]
    sentences = [
        f"The {facts['adapter']} adapter was merged into {facts['base']} in FP32; the result is stored in "
        f"{facts['dtype']}."
    ]
    if quantize != "none":
        sentences.append(
            f"The adapter was trained and evaluated on the base in {quantize.upper()}. The merged model uses the base "
            "in full precision, so it is not exactly the evaluated model. To evaluate it, run `meditune evaluate`."
        )
    before, after = facts["zeros_in_layers"]["base"], facts["zeros_in_layers"]["merged"]
    if before > MIN_PRUNED_SHARE and facts["made_from"]["keep_zeros"]:
        sentences.append(
            f"The weights that pruning had set to zero ({100 * before:.0f} % in linear layers) were set to zero "
            "again, so the merged model is not exactly the evaluated model. To evaluate it, run `meditune evaluate`."
        )
    elif before > MIN_PRUNED_SHARE:
        sentences.append(
            f"{100 * before:.0f} % of the weights in the base's linear layers are zero, in the merged model "
            f"{100 * after:.0f} %, because an adapter fills zeros. --keep-sparsity sets them to zero again."
        )
    return sentences


def _adapter(name: str) -> Path:
    """Return the adapter's folder; raise ModelError if the name means a model without one."""
    if find_api_model(name, ApiSpec()):
        raise ModelError(f"{name} is behind an API, so there are no weights here to merge.")
    place = Path(locate(name))
    if (place / ADAPTER_FILE).is_file():
        return place
    if (place / "config.json").is_file():
        raise ModelError(
            f"{name} is a whole model (a base model, or one tuned with model.strategy full), so there is nothing to "
            f"merge. Use it as it is ({place})."
        )
    raise ModelError(f"{name} is not a local folder with an adapter. Give a run's folder or one with {ADAPTER_FILE}.")


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
        "\n".join(loading(form, "full")),
        "## How it was made",
        "\n".join(remarks(facts)),
    ]
    report = adapter.parent / "report.json"
    if adapter.name == "model" and report.is_file():
        parts.append("The metrics below were measured with the separate adapter, before merging.")
        parts.append("\n".join(measured(read_json(report))))
    return "\n\n".join(parts) + "\n"
