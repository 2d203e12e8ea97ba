"""The model as one plain folder with BF16 safetensors: what every other form is made from.

`meditune merge`: a run's adapter and its base as one plain model folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from meditune.config.data_options import PromptFormat
from meditune.config.training_options import ApiSpec, Quantize
from meditune.data.leakage import copy_record
from meditune.errors import ModelError
from meditune.files import is_result_of, read_json, replace_folder, sha256, write_json
from meditune.models import merging
from meditune.models.api_client import find_api_model
from meditune.models.catalogue import ADAPTER_FILE, MERGED, public_name, split_revision
from meditune.models.load import base_of, loading, locate, source
from meditune.models.quantization import trained_on
from meditune.prompts import LIMITS, load_format, save_format


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
    merging.write(model, tokenizer, torch.bfloat16, folder)
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"The tokenizer of {place} can't be written as tokenizer.json, which engines read.")


def _whole(place: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merging.stored_dtype(place)
    with loading(place, place):
        tokenizer = AutoTokenizer.from_pretrained(**source(place))
        model = AutoModelForCausalLM.from_pretrained(**source(place), use_safetensors=True, dtype=torch.float32)
    merging.stop_at_end(model.generation_config, tokenizer)
    return model.eval(), tokenizer


NOTEWORTHY = 0.01
"""A base with a larger share of zeros was pruned."""


def merge(name: str, folder: Path, keep_zeros: bool = False) -> dict[str, Any]:
    """Merge the adapter of a run, or in a folder, into its base, and leave the model in `folder`, whole or not at all.

    Returns the content of merged.json. With `keep_zeros` what is zero in a pruned base is zero afterwards. What is
    there already isn't made again. Raises ModelError where there is nothing to merge or no way to, and MedituneError
    where `folder` holds something else.
    """
    adapter = _adapter(name)
    made_from = {"adapter": str(adapter.resolve()), "sha256": _weights_digest(adapter), "keep_zeros": keep_zeros}
    if is_result_of(folder, MERGED, made_from):
        facts: dict[str, Any] = read_json(folder / MERGED)
        return facts
    from meditune.models import merging

    merged = merging.merge(adapter, keep_zeros)
    facts = {
        "made_from": made_from,
        "base": public_name(split_revision(base_of(adapter))[0]),
        "adapter": read_json(adapter / ADAPTER_FILE).get("peft_type"),
        "trained_on": trained_on(adapter),
        "dtype": str(merged.dtype).removeprefix("torch."),
        "zeros_in_layers": {"base": merged.zeros[0], "merged": merged.zeros[1]},
        "parameters": sum(parameter.numel() for parameter in merged.model.parameters()),
    }
    form = load_format(adapter)
    with replace_folder(folder) as partial:
        merging.write(merged.model, merged.tokenizer, merged.dtype, partial)
        if form:
            save_format(form, partial)
        write_json(partial / MERGED, facts)
        copy_record(adapter, partial)
        (partial / "README.md").write_text(_card(facts, form or PromptFormat(), adapter), encoding="utf-8")
    return facts


def remarks(facts: dict[str, Any]) -> list[str]:
    """What one must know of a merged model, in sentences."""
    quantize: Quantize = facts["trained_on"]
    said = [
        f"The {facts['adapter']} adapter was added to {facts['base']} in FP32; the sum is stored in {facts['dtype']}."
    ]
    if quantize != "none":
        said.append(
            f"It was trained and measured on the base in {quantize.upper()}. These are the base's weights in full "
            "precision, so this is not exactly the model that was measured. `meditune evaluate` measures this one."
        )
    before, after = facts["zeros_in_layers"]["base"], facts["zeros_in_layers"]["merged"]
    if before > NOTEWORTHY and facts["made_from"]["keep_zeros"]:
        said.append(
            f"The weights that pruning had made zero ({100 * before:.0f} % of the linear layers') were set to zero "
            "again, so this is not exactly the model that was measured. `meditune evaluate` measures this one."
        )
    elif before > NOTEWORTHY:
        said.append(
            f"{100 * before:.0f} % of the weights in the base's linear layers are zero; of the merged model's, "
            f"{100 * after:.0f} %: an adapter fills zeros. With --keep-zeros they are set to zero again."
        )
    return said


def _adapter(name: str) -> Path:
    """The adapter's folder. Raises ModelError where the name means a model without one."""
    if find_api_model(name, ApiSpec()):
        raise ModelError(f"{name} is behind an API, so there are no weights here to merge.")
    place = Path(locate(name))
    if (place / ADAPTER_FILE).is_file():
        return place
    if (place / "config.json").is_file():
        raise ModelError(
            f"{name} is a whole model, a base or what model.strategy full leaves: there is no adapter, so nothing to "
            f"merge. Use it as it is ({place})."
        )
    raise ModelError(f"{name} is no adapter in a folder here. Name a run's folder or one with {ADAPTER_FILE}.")


def _weights_digest(adapter: Path) -> str:
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise ModelError(f"{adapter} has no {weights.name}, so there are no weights to merge. Copy it again.")
    return sha256(weights)


def _card(facts: dict[str, Any], form: PromptFormat, adapter: Path) -> str:
    from meditune.train.model_card import loading, measured

    report = adapter.parent / "report.json"
    figures = measured(read_json(report)) if adapter.name == "model" and report.is_file() else []
    return "\n".join(
        [
            "---",
            f"base_model: {facts['base']}",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "language: en",
            "tags: [medical, merged, meditune]",
            "---",
            "",
            f"# {facts['base']} tuned with Meditune, in one piece",
            "",
            f"**Limits.** {LIMITS}",
            "",
            "## Use",
            "",
            *loading(form, "full"),
            "",
            "## How it was made",
            "",
            *remarks(facts),
            "",
            *(["The figures below are those of the adapter beside its base, before merging.", ""] if figures else []),
            *figures,
        ]
    )
