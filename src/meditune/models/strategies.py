"""The fine-tuning strategies: which weights are trained, and what becomes of them afterwards."""

from __future__ import annotations

from typing import Any

import torch

from meditune.errors import ModelError
from meditune.models import quantized, virtual
from meditune.models.adapters import add_ia3, add_lora
from meditune.models.frozen import blocks_of
from meditune.recipe import ModelSpec


def make_trainable(model: Any, spec: ModelSpec, seed: int) -> Any:
    """The model with exactly those weights trainable that `spec.strategy` trains, new ones begun from `seed`.

    Raises ModelError where the strategy can't be had on this architecture, or on a quantized base.
    """
    quantized.check_trainable(model)
    if spec.strategy == "full":
        return _unfrozen(model, spec.top_layers)
    if spec.strategy == "prefix":
        return virtual.add_prefix(model, spec.virtual_tokens, seed)
    if spec.strategy == "prompt":
        return virtual.add_prompt(model, spec.virtual_tokens, seed)
    if spec.strategy == "ia3":
        made = add_ia3(model, spec.top_layers)
        quantized.keep_number_format(made)
        return made
    return add_lora(model, spec.lora, seed, spec.top_layers, spec.strategy)


def is_adapter(model: Any) -> bool:
    """Whether what is trained stands beside the model's own weights, as peft's adapters do."""
    return hasattr(model, "active_peft_config")


def merged(model: Any) -> Any:
    """The model as it is measured: with its adapter merged into the base's weights where those allow it.

    Virtual tokens have no weights to be merged into. An adapter on a quantized base stays beside it: the sum, quantized
    again, would be another model than the one that was trained.

    Its weights can be trained again, as those of any loaded model: PyTorch 2.13 on a CPU keeps another packed copy of
    every BF16 weight that can't be for each step of decoding (18 GB for 50 answers of a 270 M model).
    """
    if is_adapter(model) and not virtual.virtual_tokens(model) and not quantized.is_quantized(model):
        model = model.merge_and_unload()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    return model.eval()


def parameter_counts(model: Any) -> tuple[int, int]:
    """Numbers of trained weights and of all weights, quantized ones counted as if they weren't."""
    counts = [(parameter.requires_grad, _size(parameter)) for parameter in model.parameters()]
    return sum(size for trained, size in counts if trained), sum(size for _, size in counts)


def _size(parameter: torch.nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()


def _unfrozen(model: Any, top_layers: int | None) -> Any:
    """The model itself, all of it trainable, or only its top layers and the norm above them."""
    if quantized.is_quantized(model):
        raise ModelError(
            "model.strategy full trains the model's own weights, but this model's are quantized. Take lora, or name a "
            "model.base that isn't quantized."
        )
    if top_layers is None:
        return model.requires_grad_(True)
    model.requires_grad_(False)
    for module in [*blocks_of(model)[-top_layers:], *_norms_above_layers(model)]:
        module.requires_grad_(True)
    return model


def _norms_above_layers(model: Any) -> list[Any]:
    """What normalizes the last layer's output, before the head."""
    children = list(model.get_decoder().children())
    last = next(index for index, child in enumerate(children) if isinstance(child, torch.nn.ModuleList))
    return [child for child in children[last + 1 :] if "Norm" in type(child).__name__]
