"""Adapters on a frozen base model, through peft."""

from __future__ import annotations

from typing import Any

from meditune.errors import ModelError
from meditune.models.quiet import quiet_transformers
from meditune.recipe import LoraSpec

# Attention and MLP projections; the output head stays frozen. GPT-2 keeps them in Conv1D layers of its own.
TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "phi": ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"],
}
USUAL_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def add_lora(model: Any, spec: LoraSpec, seed: int) -> Any:
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
    layers = list(range(count - min(spec.top_layers, count), count)) if spec.top_layers else None
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.r,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=targets,
        layers_to_transform=layers,
        fan_in_fan_out=config.model_type == "gpt2",
    )
    torch.manual_seed(seed)
    with quiet_transformers():
        return get_peft_model(model, adapter, autocast_adapter_dtype=False)


def merged(model: Any) -> Any:
    """The base model with its adapter's change in its weights.

    The weights can be trained again, as those of any loaded model: PyTorch 2.13 on a CPU keeps another packed copy of
    every BF16 weight that can't be for each step of decoding (18 GB for 50 answers of a 270 M model).
    """
    return model.merge_and_unload().requires_grad_(True)


def linear_layers(model: Any) -> set[str]:
    """Last names of the model's linear layers."""
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if type(module).__name__ in {"Linear", "Conv1D"} and module is not model.get_output_embeddings()
    }
