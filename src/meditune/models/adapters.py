"""Fine-tuning strategies: the choice of trainable weights, LoRA and (IA)³ adapters from peft, and fused LoRA layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch

from meditune.config.training_options import LoraSpec, ModelSpec
from meditune.errors import ModelError
from meditune.models import forward, quantization
from meditune.models.hidden_state_cache import blocks_of, replayed
from meditune.models.quiet_libraries import quiet_transformers

USUAL_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""LoRA's usual targets: the attention and MLP projections. The output head stays frozen."""
TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "phi": ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
}
USUAL_IA3_TARGETS = ["k_proj", "v_proj", "down_proj"]
"""(IA)³'s usual targets: keys, values and, listed last, the MLP's second projection, whose input is rescaled. If one
layer computes queries, keys and values, all three are rescaled."""
IA3_TARGETS = {
    "gpt2": ["c_attn", "mlp.c_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "phi": ["k_proj", "v_proj", "fc2"],
    "phi3": ["qkv_proj", "down_proj"],
}


def add_lora(
    model: Any,
    spec: LoraSpec,
    seed: int,
    top_layers: int | None = None,
    variant: Literal["lora", "dora", "rslora"] = "lora",
) -> Any:
    """Return the model with trainable LoRA layers on a frozen base.

    Raises ModelError if the model lacks a target layer, or if a target is an output head with the embeddings' weights.
    """
    from peft import LoraConfig, get_peft_model

    config = model.config.get_text_config()
    targets = TARGETS.get(config.model_type, USUAL_TARGETS) if spec.targets == "auto" else spec.targets
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    present = {name.rpartition(".")[2]: module for name, module in model.named_modules() if _is_linear(module)}
    missing = [target for target in targets if target not in present]
    if missing:
        raise ModelError(
            f"model.lora.targets: the {config.model_type} architecture has no linear layer named {', '.join(missing)}. "
            f"Choose from the model's linear layers: {linear_layers(model)}."
        )
    shared = next((target for target in targets if present[target] is head), None)
    if shared and head.weight is embedding.weight:
        raise ModelError(
            f"model.lora.targets: in this model, {shared} shares its weights with the input embeddings, so the merged "
            f"model would differ from the trained one. Choose from the other linear layers: {linear_layers(model)}."
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
        exclude_modules=_outside_decoder(model),
        fan_in_fan_out=config.model_type == "gpt2",
        use_dora=variant == "dora",
        use_rslora=variant == "rslora",
    )
    torch.manual_seed(seed)
    with quiet_transformers():
        adapted = get_peft_model(model, adapter, autocast_adapter_dtype=False)
    if variant != "dora" and quantization.is_quantized(model):
        # On a quantized layer, peft creates FP32 adapters and casts the layer's inputs and outputs. Use the model's own
        # number format instead.
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(model.get_input_embeddings().weight.dtype)
    return adapted


def add_ia3(model: Any, top_layers: int | None = None) -> Any:
    """Return the model with trainable (IA)³ factors on a frozen base. Raises ModelError if it lacks a target layer."""
    from peft import IA3Config, get_peft_model

    kind = model.config.get_text_config().model_type
    targets = IA3_TARGETS.get(kind, USUAL_IA3_TARGETS)
    blocks = blocks_of(model)
    inside = {id(module) for block in blocks[-(top_layers or len(blocks)) :] for module in block.modules()}
    names = [name for name, module in model.named_modules() if id(module) in inside]
    found = {target: [name for name in names if f".{name}".endswith(f".{target}")] for target in targets}
    missing = [target for target in targets if not found[target]]
    if missing:
        raise ModelError(
            f"model.strategy ia3 doesn't support the {kind} architecture, which has no layer named "
            f"{', '.join(missing)}. Use model.strategy lora; choose model.lora.targets from: {linear_layers(model)}."
        )
    adapter = IA3Config(
        task_type="CAUSAL_LM",
        target_modules=[name for each in found.values() for name in each] if top_layers else targets,
        exclude_modules=_outside_decoder(model),
        feedforward_modules=found[targets[-1]] if top_layers else targets[-1:],
        fan_in_fan_out=kind == "gpt2",
    )
    with quiet_transformers():
        return get_peft_model(model, adapter, autocast_adapter_dtype=False)


def _outside_decoder(model: Any) -> str | None:
    """Return a regular expression that matches modules outside the text decoder; None for a text-only model."""
    if model.config is model.config.get_text_config():
        return None
    decoder = next(name for name, module in model.named_modules() if module is model.get_decoder())
    return rf"(?!{re.escape(decoder)}\.).*"


def linear_layers(model: Any) -> str:
    """Return the names of the model's linear layers, except the output head, for an error message."""
    head = model.get_output_embeddings()
    names = {name for name, each in model.named_modules() if _is_linear(each) and each is not head}
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))


def _is_linear(module: torch.nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)


def make_trainable(model: Any, spec: ModelSpec, seed: int) -> Any:
    """Return the model with only the weights of `spec.strategy` trainable. Raises ModelError if that isn't possible."""
    quantization.check_trainable(model)
    if spec.strategy == "full":
        return _unfrozen(model, spec.top_layers)
    if spec.strategy == "prefix":
        return forward.add_prefix(model, spec.virtual_tokens, seed)
    if spec.strategy == "prompt":
        return forward.add_prompt(model, spec.virtual_tokens, seed)
    if spec.strategy == "ia3":
        adapted = add_ia3(model, spec.top_layers)
        quantization.keep_number_format(adapted)
        return adapted
    return add_lora(model, spec.lora, seed, spec.top_layers, spec.strategy)


def is_adapter(model: Any) -> bool:
    """Return whether the model has a peft adapter."""
    return hasattr(model, "active_peft_config")


def merged(model: Any) -> Any:
    """Return the model for evaluation, with its adapter merged into the base's weights if possible.

    An adapter on a quantized base isn't merged: the merged weights would have to be quantized again, and the result
    would differ from the trained model. All weights are marked as trainable, as in any newly loaded model. Otherwise,
    on a CPU, PyTorch 2.13 would store another packed copy of every frozen BF16 weight in each decoding step (18 GB for
    50 answers of a model with 270 million parameters).
    """
    if is_adapter(model) and not forward.virtual_tokens(model) and not quantization.is_quantized(model):
        model = model.merge_and_unload()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    return model.eval()


def parameter_counts(model: Any) -> tuple[int, int]:
    """Return the number of trained weights and of all weights; packed 4-bit weights are counted individually."""
    trained = total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        size = int(state.shape.numel()) if state is not None else parameter.numel()
        total += size
        trained += size if parameter.requires_grad else 0
    return trained, total


def _unfrozen(model: Any, top_layers: int | None) -> Any:
    """Return the model with all weights trainable, or with only its top layers and the norms above them trainable."""
    if quantization.is_quantized(model):
        raise ModelError(
            "model.strategy full trains the model's own weights, but this model's weights are quantized. Use lora, or "
            "choose a model.base that isn't quantized."
        )
    if top_layers is None:
        model.requires_grad_(model.config is model.config.get_text_config())
        for module in (model.get_decoder(), model.get_output_embeddings()):
            module.requires_grad_(True)
        return model
    model.requires_grad_(False)
    children = model.get_decoder().named_children()
    norms = [child for name, child in children if "Norm" in type(child).__name__ and "embed" not in name]
    for module in [*blocks_of(model)[-top_layers:], *norms]:
        module.requires_grad_(True)
    return model


@contextmanager
def fuse_lora(model: Any) -> Iterator[int]:
    """Inside the block, run each of the model's plain LoRA layers as one operation; yield the number of these layers.

    peft computes base(x) + B(A(x)) * scale in five passes over memory; in three of them, the tensors are as wide as the
    layer's output. Here, scaling is part of the product with B, the wide output is written only twice, and little is
    saved for the backward pass. A quantized weight is dequantized once in the forward pass and once in the backward
    pass. Layers that compute more, such as DoRA's, keep peft's forward method. The results equal peft's (checked by a
    test).
    """
    layers = [module for module in model.modules() if _is_plain(module)]
    with ExitStack() as afterwards:
        for layer in layers:
            afterwards.enter_context(replayed(layer, _forward(layer)))
        yield len(layers)


def _is_plain(module: Any) -> bool:
    """Return whether the module is a LoRA layer that only adds scale * B A x, with or without dropout on x."""
    from peft.tuners.lora import LoraLayer
    from transformers.pytorch_utils import Conv1D

    if not isinstance(module, LoraLayer) or type(module).__name__ not in {"Linear", "Linear4bit", "Linear8bitLt"}:
        return False
    if module.merged or module.disable_adapters or len(module.active_adapters) != 1:
        return False
    name = module.active_adapters[0]
    if name not in module.lora_A or name in module.lora_variant or module.lora_B[name].bias is not None:
        return False
    base, a, b = module.base_layer, module.lora_A[name], module.lora_B[name]
    is_quantized = quantization.is_quantized_layer(base)
    parts = (a, b) if is_quantized else (base, a, b)
    if base.weight.requires_grad or any(part._forward_hooks or part._forward_pre_hooks for part in parts):
        return False
    dtype = a.weight.dtype
    computed = getattr(base, "compute_dtype", None) or dtype if is_quantized else base.weight.dtype
    return (is_quantized or type(base) in {torch.nn.Linear, Conv1D}) and dtype == b.weight.dtype == computed


def _forward(layer: Any) -> Any:
    base, name = layer.base_layer, layer.active_adapters[0]
    a, b, scale, dropout = layer.lora_A[name], layer.lora_B[name], layer.scaling[name], layer.lora_dropout[name]
    is_linear, is_quantized = type(base) is torch.nn.Linear, quantization.is_quantized_layer(base)

    def forward(x: torch.Tensor) -> torch.Tensor:
        if layer.merged or layer.disable_adapters:
            return type(layer).forward(layer, x)  # type: ignore[no-any-return]
        seen = dropout(x)
        adapter_input = None if seen is x else seen
        if is_quantized:
            bias = None if base.bias is None else base.bias.to(x.dtype)
            weight: Any = partial(quantization.dequantized, base, x.dtype)
        else:
            # transformers' Conv1D stores its weight as (inputs, outputs).
            bias, weight = base.bias, base.weight if is_linear else base.weight.t()
        found: torch.Tensor = _Lora.apply(x, adapter_input, weight, bias, a.weight, b.weight, scale)  # type: ignore[no-untyped-call]
        return found

    return forward


class _Lora(torch.autograd.Function):
    """A fused LoRA layer for x (..., inputs), weight (outputs, inputs), a (rank, inputs) and b (outputs, rank).

    `weight` can be a function that returns the weight. The backward pass then calls the function again, so that no
    dequantized weight has to be stored. `seen` is the adapter's input, or None if this input is x. The frozen weight
    and bias get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        seen: torch.Tensor | None,
        weight: torch.Tensor | Callable[[], torch.Tensor],
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        adapter_input = flat if seen is None else seen.reshape(-1, x.shape[-1])
        thin = adapter_input @ a.t()
        matrix = weight if isinstance(weight, torch.Tensor) else weight()
        wide = flat @ matrix.t() if bias is None else torch.addmm(bias, flat, matrix.t())
        wide = wide.addmm_(thin, b.t(), alpha=scale)
        ctx.restored = None if isinstance(weight, torch.Tensor) else weight
        ctx.save_for_backward(adapter_input, matrix if ctx.restored is None else None, a, b, thin)
        ctx.scale, ctx.shape, ctx.alike = scale, x.shape, seen is None
        return wide.view(*x.shape[:-1], wide.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        adapter_input, weight, a, b, thin = ctx.saved_tensors
        slope = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])
        through = (slope @ b) * ctx.scale
        down = down_seen = None
        if ctx.needs_input_grad[0]:
            down = slope @ (weight if ctx.restored is None else ctx.restored())
            down = (down.addmm_(through, a) if ctx.alike else down).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            down_seen = (through @ a).view(ctx.shape)
        return down, down_seen, None, None, through.t() @ adapter_input, (slope.t() @ thin) * ctx.scale, None
