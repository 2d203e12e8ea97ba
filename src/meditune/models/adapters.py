"""Adapters inside the layers of a frozen base model, through peft: the LoRA family and (IA)³."""

from __future__ import annotations

from typing import Any, Literal

from meditune.errors import ModelError
from meditune.models.frozen import blocks_of
from meditune.models.quiet import quiet_transformers
from meditune.recipe import LoraSpec

# Attention and MLP projections; the output head stays frozen. GPT-2 keeps them in Conv1D layers of its own.
TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "phi": ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"],
}
USUAL_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# Keys, values, and what goes into the MLP's second projection, which stands last. Where one layer gives queries, keys
# and values, all three are rescaled.
IA3_TARGETS = {
    "gpt2": ["c_attn", "mlp.c_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "phi": ["k_proj", "v_proj", "fc2"],
}
USUAL_IA3_TARGETS = ["k_proj", "v_proj", "down_proj"]


def add_lora(
    model: Any,
    spec: LoraSpec,
    seed: int,
    top_layers: int | None = None,
    variant: Literal["lora", "dora", "rslora"] = "lora",
) -> Any:
    """The model with trainable LoRA layers on a frozen base. Raises ModelError where no target is in it."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = model.config.get_text_config()
    targets = TARGETS.get(config.model_type, USUAL_TARGETS) if spec.targets == "auto" else spec.targets
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = [target for target in targets if target not in present]
    if missing:
        raise ModelError(
            f"model.lora.targets: the {config.model_type} architecture has no layer named {', '.join(missing)}. Its "
            f"linear layers: {', '.join(sorted(linear_layers(model)))}."
        )
    count = config.num_hidden_layers
    layers = list(range(count - min(top_layers, count), count)) if top_layers else None
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.r,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=targets,
        layers_to_transform=layers,
        fan_in_fan_out=config.model_type == "gpt2",
        use_dora=variant == "dora",
        use_rslora=variant == "rslora",
    )
    torch.manual_seed(seed)
    with quiet_transformers():
        return get_peft_model(model, adapter, autocast_adapter_dtype=False)


def add_ia3(model: Any, top_layers: int | None = None) -> Any:
    """The model with (IA)³'s trainable factors, all 1 at first, on a frozen base.

    Raises ModelError where the architecture's layers have other names.
    """
    from peft import IA3Config, get_peft_model

    kind = model.config.get_text_config().model_type
    targets = IA3_TARGETS.get(kind, USUAL_IA3_TARGETS)
    blocks = blocks_of(model)
    inside = {id(module) for block in blocks[-(top_layers or len(blocks)) :] for module in block.modules()}
    found = {
        target: [name for name, module in model.named_modules() if id(module) in inside and _ends_in(name, target)]
        for target in targets
    }
    missing = [target for target, names in found.items() if not names]
    if missing:
        raise ModelError(
            f"model.strategy ia3 doesn't know the {kind} architecture, which has no layer named {', '.join(missing)}. "
            f"Take model.strategy lora, with model.lora.targets out of: {', '.join(sorted(linear_layers(model)))}."
        )
    adapter = IA3Config(
        task_type="CAUSAL_LM",
        target_modules=[name for names in found.values() for name in names] if top_layers else targets,
        feedforward_modules=found[targets[-1]] if top_layers else targets[-1:],
        fan_in_fan_out=kind == "gpt2",
    )
    with quiet_transformers():
        return get_peft_model(model, adapter, autocast_adapter_dtype=False)


def linear_layers(model: Any) -> set[str]:
    """Last names of the model's linear layers."""
    kinds = {"Linear", "Conv1D", "Linear4bit", "Linear8bitLt"}
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if type(module).__name__ in kinds and module is not model.get_output_embeddings()
    }


def _ends_in(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")
