"""Predict the memory, speed and time of training from the recipe and the model's shape, and compare strategies.

The hardware is this machine, whose speed is measured, or a named GPU, whose speed comes from its data sheet. One batch
runs through the real training code on the meta device, where no values are computed. Attention, head, checkpointing and
frozen layers are therefore counted exactly, for every architecture.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from meditune.config.recipe import Recipe
from meditune.config.training_options import VIRTUAL, ModelSpec, Quantize, Strategy
from meditune.data.sources import locate_source
from meditune.errors import DataError
from meditune.models import gpu_attention
from meditune.models.adapters import fuse_lora, make_trainable, parameter_counts
from meditune.models.architecture_check import refuse_layers, supported_attention
from meditune.models.catalogue import ADAPTER_FILE, CATALOGUE
from meditune.models.forward import virtual_tokens
from meditune.models.generation import cache_limit
from meditune.models.hidden_state_cache import HiddenStateCache, frozen_count
from meditune.models.inference import register
from meditune.models.load import base_of, in_range, loading, locate, refuse_unreadable, source
from meditune.models.quiet_libraries import no_telemetry, quiet_transformers
from meditune.models.shared_prefix_batch import Row, join, with_prompt
from meditune.progress import Progress
from meditune.prompts import Encoded
from meditune.train.losses import PLANNED_FOR_GPU, loss_of_rows
from meditune.train.machine_speed import STEP_TEXTS, UTILIZATION, Target, target_of
from meditune.train.optimizer import state_bytes
from meditune.train.trainer import recompute_activations

PACKED, EFFICIENT = "meditune_planned_packed", "meditune_planned_efficient"
BLOCK, OUTER_BLOCK = 64, 256
"""NF4 has one scale per BLOCK weights, and one scale of scales per OUTER_BLOCK scales (QLoRA, arXiv:2305.14314)."""


def config_of(spec: ModelSpec) -> Any:
    """Return the configuration of the recipe's base model. Models in the catalogue need no download for this."""
    no_telemetry()
    from transformers import AutoConfig

    entry = CATALOGUE.get(spec.base)
    with loading(spec.base, spec.base), quiet_transformers():
        if entry and entry.shape:
            config = AutoConfig.for_model(**entry.shape)
        else:
            place = locate(spec.base)
            if (Path(place) / ADAPTER_FILE).is_file():
                place = locate(base_of(Path(place)))
            config = AutoConfig.from_pretrained(**source(place))
    refuse_layers(spec.base, config)
    if spec.prune.layers:
        text = config.get_text_config()
        text.num_hidden_layers = max(1, text.num_hidden_layers - spec.prune.layers)
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[: text.num_hidden_layers]
    return config


def on_meta(config: Any, spec: ModelSpec, dtype: torch.dtype, attention: str) -> Any:
    """Return the model on the meta device, prepared for `spec.strategy`; `attention` is an `attn_implementation`.

    Even if `spec.quantize` is set, the weights are in `dtype`; `weight_bytes` computes the size of quantized weights.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    # GPT-2 would look for padding in token ids, which have no values here.
    config.pad_token_id = None
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    attention = supported_attention(config, attention)
    with quiet_transformers(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        trainable = make_trainable(model, spec, seed=0)
    if spec.quantize != "none" and spec.strategy not in {"lora", "rslora"}:
        # On a quantized base, the other strategies create their weights in FP32.
        for parameter in trainable.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return trainable


def weight_bytes(model: Any, quantize: Quantize) -> int:
    """Return the bytes of parameters and buffers if all linear layers except the head are quantized by `quantize`."""
    stored = {id(weight): _quantized_bytes(weight, quantize) for weight in _quantizable(model, quantize)}
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(stored.get(key, tensor.numel() * tensor.element_size()) for key, tensor in tensors.items())


def dequantized_bytes(model: Any, quantize: Quantize) -> int:
    """Return the bytes that the largest quantized weight needs while it is dequantized for use."""
    return max((weight.numel() * weight.element_size() for weight in _quantizable(model, quantize)), default=0)


def planned_attention(spec: ModelSpec, device: str, has_flash: bool) -> str:
    """Return the `attn_implementation` that needs on the meta device what `spec.attention` needs on `device`."""
    if spec.attention == "eager":
        return "eager"
    if device == "cpu" or spec.attention == "grouped":
        return register()
    # PyTorch's flash kernels don't support the dense masks of sdpa.
    return use_fused_attention(has_flash and spec.attention == "auto")


def use_fused_attention(has_flash: bool = True) -> str:
    """Register PyTorch's attention operators for GPUs with transformers; return their name for `attn_implementation`.

    On the meta device, `scaled_dot_product_attention` would fall back to the plain formula, which stores all scores.
    Without flash kernels, heads are repeated and rows aren't packed.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import repeat_kv
    from transformers.masking_utils import eager_mask

    def fused(
        _module: Any,
        query: Any,
        key: Any,
        value: Any,
        mask: Any,
        scaling: float | None = None,
        packed: Any = None,
        sliding_window: int | None = None,
        **_: Any,
    ) -> tuple[Any, None]:
        if packed is not None:
            return gpu_attention.packed_attention(query, key, value, packed, scaling, sliding_window), None
        causal = mask is None or not mask.numel()
        supported = query.dtype in gpu_attention.HALF and query.shape[-1] <= gpu_attention.MAX_HEAD_SIZE
        if has_flash and causal and supported:
            flash = torch.ops.aten._scaled_dot_product_flash_attention
            mixed = flash(query, key, value, 0.0, True, scale=scaling)[0]
        else:
            groups = query.shape[1] // key.shape[1]
            key, value = (repeat_kv(part, groups) if groups > 1 else part for part in (key, value))
            bias = None if causal else mask.expand(-1, query.shape[1], -1, -1)
            efficient = torch.ops.aten._scaled_dot_product_efficient_attention
            mixed = efficient(query, key, value, bias, True, 0.0, causal, scale=scaling)[0]
        return mixed.transpose(1, 2).contiguous(), None

    name = PACKED if has_flash else EFFICIENT
    AttentionInterface.register(name, fused)
    AttentionMaskInterface.register(name, eager_mask)
    gpu_attention.CAUSAL_MASK_ATTENTION.add(name)
    if has_flash:
        gpu_attention.PACKED_ATTENTION.add(name)
    return name


def _quantizable(model: Any, quantize: Quantize) -> list[torch.nn.Parameter]:
    """Return the weights that bitsandbytes would quantize: all linear layers of the base, except the head."""
    if quantize == "none":
        return []
    head = model.get_output_embeddings()
    return [
        module.weight
        for name, module in model.named_modules()
        if type(module).__name__ in {"Linear", "Conv1D"}
        and module is not head
        and not {"lora_A", "lora_B"} & set(name.split("."))
        and isinstance(getattr(module, "weight", None), torch.nn.Parameter)
    ]


def _quantized_bytes(weight: torch.nn.Parameter, quantize: Quantize) -> int:
    count = weight.numel()
    if quantize == "int8":
        return count + 4 * weight.shape[0]
    blocks = -(-count // BLOCK)
    # Half a byte per weight and an 8-bit scale per block. The scales of these scales, an offset, and both code tables
    # (16 and 256 numbers) are in FP32.
    return -(-count // 2) + blocks + 4 * (-(-blocks // OUTER_BLOCK) + 1 + 16 + 256)


@dataclass(frozen=True)
class RehearsedBatch:
    """The resources of one forward and backward pass."""

    tokens: int
    held: int  # peak memory in bytes, without the weights and gradients that existed before
    flops: int  # operations of matrix products and attention, two for each multiply-add


def longest_rows(recipe: Recipe) -> list[Row]:
    """Return one batch of rows with `prompt.max_tokens` tokens; the answer in each row is as long as possible.

    If an example's tasks or a pair's answers share a prompt, the answer is divided among two branches.
    """
    form, spec = recipe.prompt, recipe.train
    prompt, length = [0] * (form.max_tokens - form.answer_room), form.answer_room + 1
    are_shared = spec.objective == "dpo" or (spec.objective == "sft" and len(spec.tasks) > 1)
    lengths = [length // 2, length - length // 2] if are_shared else [length]
    row = join([Encoded("longest", "answer", prompt, [0] * each, answer_cut=False) for each in lengths])
    row = with_prompt(row) if recipe.train.prompt_share else row
    return [row] * max(1, recipe.train.batch_tokens // len(row))


def rehearse_batch(model: Any, recipe: Recipe, on_gpu: bool = False) -> RehearsedBatch:
    """Return the resources of a step's largest batch: run it on the meta device as a CPU or GPU would compute it."""
    rows = longest_rows(recipe)
    tokens = sum(map(len, rows))
    if recipe.train.gradient_checkpointing:
        recompute_activations(model)
    model.train()
    count = 0 if virtual_tokens(model) else frozen_count(model, recipe.model.top_layers)
    frozen = HiddenStateCache(model, count)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    weights = [1.0] * sum(len(row.targets) for row in rows)
    before = PLANNED_FOR_GPU.set(on_gpu)
    try:
        with fuse_lora(model), _Watched() as watched:
            loss, _ = loss_of_rows(model, frozen, rows, weights, 0)
            loss.backward()
    finally:
        PLANNED_FOR_GPU.reset(before)
    for parameter in model.parameters():
        parameter.grad = None
    return RehearsedBatch(tokens, watched.peak, watched.flops)


IN_PLACE = {torch.ops.aten.addmm_: torch.ops.aten.addmm}
"""In-place products that `flop_registry` lacks -> a product with the same cost"""


class _Watched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A recorder of the number of operations, and of the peak bytes of the tensors created inside the block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.flops = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        counted = IN_PLACE.get(func._overloadpacket, func._overloadpacket)
        if counted in flop_registry:
            self.flops += flop_registry[counted](*args, **(kwargs or {}), out_val=result)
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if torch.is_tensor(each)}
        for each in filter(torch.is_tensor, tree_leaves(result)):
            storage = each.untyped_storage()
            if storage._cdata not in given | self._known.keys():
                self.now += storage.nbytes()
                self._known[storage._cdata] = weakref.ref(storage, self._on_release(storage._cdata, storage.nbytes()))
        self.peak = max(self.peak, self.now)
        return result

    def _on_release(self, key: int, size: int) -> Callable[[Any], None]:
        def released(_: Any) -> None:
            self.now -= size
            self._known.pop(key, None)

        return released


PROCESS = 0.55e9
"""Bytes of Python with PyTorch, transformers and peft: measured on a CPU (0.51 to 0.59 GB), assumed for a GPU's context
and workspace."""
WORD = 1280  # bytes that a tokenizer needs per vocabulary entry; measured: 0.335 GB for Gemma's 262,144 entries


@dataclass(frozen=True)
class Memory:
    """A memory prediction, in bytes."""

    weights: int
    training: int  # gradients, FP32 copies and optimizer state that exist at the peak
    piece: int
    """Activations and other tensors of a forward and backward pass; 0 where the optimizer's step is the peak"""
    process: int  # Python, libraries and tokenizer

    @property
    def total(self) -> int:
        """The predicted peak in bytes."""
        return self.weights + self.training + self.piece + self.process


def peak_of(model: Any, piece: RehearsedBatch, recipe: Recipe, on_gpu: bool) -> Memory:
    """Return the peak memory of training `model`, excluding memory for data, replay, EWC and evaluation."""
    passing, stepping, process = _training_bytes(model, recipe, on_gpu)
    held = piece.held + dequantized_bytes(model, recipe.model.quantize)
    weights = weight_bytes(model, recipe.model.quantize)
    if passing + held >= stepping:
        return Memory(weights, passing, held, process)
    return Memory(weights, stepping, 0, process)


def _training_bytes(model: Any, recipe: Recipe, on_gpu: bool) -> tuple[int, int, int]:
    """Return three numbers of bytes: training state in a backward pass and in an optimizer step, and the process."""
    trained, _ = parameter_counts(model)
    gradients = sum(each.numel() * each.element_size() for each in model.parameters() if each.requires_grad)
    state = state_bytes(recipe.train) * trained
    # After the last batch, the masters' gradients are created from the parameters' gradients, which are then freed.
    passing = state - 4 * trained + gradients
    # On a GPU, PyTorch updates all weights at once, which needs a copy of their second moments.
    stepping = state + (4 * trained if on_gpu and recipe.train.optimizer == "adamw" else 0)
    # The tokenizer is in host memory even if training runs on a GPU, so it doesn't count there.
    process = int(PROCESS) if on_gpu else int(PROCESS) + WORD * model.config.get_text_config().vocab_size
    return passing, stepping, process


WORK = 2**23
"""Tokens times hidden size above which larger batches hardly speed up training on a GPU (estimated, not measured)"""


def sized(recipe: Recipe, model: Any, room: float, processes: int = 1) -> tuple[Recipe, RehearsedBatch]:
    """Return the recipe with batch size and checkpointing set for a GPU with `room` free bytes, and its largest batch.

    Settings in the recipe are kept. Otherwise, batches are as large as a GPU computes efficiently (WORK), or as memory
    allows. Activations are recomputed, which costs a third more time, only if batches would otherwise be less than a
    quarter of the efficient size, or too small for one row. With several `processes`, each process has a share of the
    weights.
    """
    longest, asked = recipe.prompt.max_tokens, recipe.train
    wanted = asked.micro_batch_tokens or max(longest, WORK // model.config.get_text_config().hidden_size)
    weights, (passing, _, process) = weight_bytes(model, recipe.model.quantize), _training_bytes(model, recipe, True)
    spare = TIGHT * room - process - (weights + passing) / processes - dequantized_bytes(model, recipe.model.quantize)
    if processes > 1:
        # The weights outside the layers and the weights of one layer are gathered.
        spare -= weights / 2
    if recipe.model.top_layers:
        spare -= HiddenStateCache(model, 0).max_bytes
    choices = [bool(asked.gradient_checkpointing)]
    if asked.gradient_checkpointing is None and recipe.model.strategy != "prefix":
        choices = [False, True] if spare > 0 else [True]
    for checkpointing in choices:
        sizes: dict[str, Any] = {"micro_batch_tokens": max(64, longest), "gradient_checkpointing": checkpointing}
        one_row = recipe.model_copy(update={"train": asked.model_copy(update=sizes)})
        piece = rehearse_batch(model, one_row, on_gpu=True)
        fitting = int(spare / piece.held * piece.tokens)
        if fitting >= (wanted if asked.micro_batch_tokens else max(longest, wanted // 4)):
            break
    sizes["micro_batch_tokens"] = asked.micro_batch_tokens or max(64, min(wanted, fitting) // 64 * 64)
    chosen = recipe.model_copy(update={"train": asked.model_copy(update=sizes)})
    # Memory and operations are proportional to the number of rows.
    rows = max(1, chosen.train.batch_tokens // piece.tokens)
    return chosen, RehearsedBatch(rows * piece.tokens, rows * piece.held, rows * piece.flops)


TIGHT = 0.9  # a prediction above this share of the memory may not fit, because it can be off by a few percent
Verdict = Literal["fits", "tight", "no"]


@dataclass(frozen=True)
class Estimate:
    """The prediction for training with one strategy and quantization."""

    strategy: Strategy
    quantize: Quantize
    trained: int
    parameters: int
    memory: Memory
    tokens_per_s: float  # an upper bound for quantized bases, because dequantizing isn't counted
    verdict: Verdict
    batch_tokens: int  # number of tokens in a batch, chosen by the recipe or the plan
    checkpointing: bool  # whether the backward pass recomputes activations
    read_tokens_per_s: float  # speed of reading given text, without training
    step_s: float  # seconds to compute one more token of each answer of a batch
    text_s: float  # seconds that each answer of the batch adds to that
    cached_tokens: int  # number of tokens in the key-value cache of a batch of answers

    def seconds(self, tokens: int) -> float:
        """Return the duration in seconds of training on this number of tokens."""
        return tokens / self.tokens_per_s

    def measuring(self, recipe: Recipe, items: int, item_tokens: float, answers: int) -> Measuring:
        """Return the duration of measuring one model on `items` test items with this mean number of tokens.

        At most `answers` of the items have an answer. Suites, samples and retrieved passages aren't included.
        """
        spec, form = recipe.evaluate, recipe.prompt
        answers = min(answers, spec.answers or answers)
        # The likelihood of an answer is measured with and without its question.
        tokens = items * item_tokens + answers * min(item_tokens, form.answer_room) + spec.choices * CHOICE_TOKENS
        tokens += (spec.general_tokens if _has_wikitext() else 0) + spec.technical_tokens
        at_once = max(1, self.cached_tokens // (form.max_tokens - form.answer_room + spec.max_new_tokens))
        writing = answers * max(0.0, item_tokens - form.answer_room) / self.read_tokens_per_s
        for begin in range(0, answers, at_once):
            texts = min(at_once, answers - begin)
            writing += spec.max_new_tokens * (self.step_s + texts * self.text_s)
        return Measuring(tokens / self.read_tokens_per_s, writing)


CHOICE_TOKENS = 20  # mean tokens of a general-knowledge question with its choices


def _has_wikitext() -> bool:
    try:
        return bool(locate_source("wikitext-2", download=False))
    except DataError:
        return False


@dataclass(frozen=True)
class Measuring:
    """Predicted seconds of measuring one model, before or after training."""

    scoring: float  # likelihoods of given texts
    writing: float  # answers of the maximum length

    @property
    def total(self) -> float:
        """The sum."""
        return self.scoring + self.writing


@dataclass(frozen=True)
class Planned:
    """The result of `meditune plan`."""

    target: Target
    own: Estimate  # the unchanged recipe
    others: list[Estimate]  # the other strategies, with the recipe's other settings where these apply
    advice: list[str]  # alternative settings with which the recipe fits into memory, least intrusive first


def plan(recipe: Recipe, gpu: str | None = None) -> Planned:
    """Predict training with the recipe and with the other strategies, on the named GPU or on this machine.

    Only the model's configuration is needed. Raises MedituneError if the GPU or the model is unknown, or if the model
    doesn't accept rows of the recipe's length.
    """
    target, config = target_of(recipe.model, gpu), config_of(recipe.model)
    refuse_unreadable(recipe.model.base, config, recipe.prompt, recipe)
    alternatives = list(_alternatives(recipe))
    with Progress("Predicting", len(alternatives) + 1, "strategies") as progress:
        own = estimate(recipe, config, target)
        progress.advance(1)
        others = []
        for alternative in alternatives:
            others.append(estimate(alternative, config, target))
            progress.advance(1)
    advice = [] if own.verdict == "fits" else _advice(recipe, config, target)
    return Planned(target, own, others, advice)


def estimate(recipe: Recipe, config: Any, target: Target) -> Estimate:
    """Return the prediction for training with this recipe on this machine."""
    on_gpu = target.device == "cuda"
    dtype = in_range(target.dtype, config) if recipe.model.dtype == "auto" else target.dtype
    model = on_meta(config, recipe.model, dtype, planned_attention(recipe.model, target.device, target.has_flash))
    if on_gpu:
        recipe, piece = sized(recipe, model, target.memory_gb * 1e9)
    else:
        piece = rehearse_batch(model, recipe)
    memory = peak_of(model, piece, recipe, on_gpu)
    speed = target.flops * UTILIZATION[target.device] / (piece.flops / piece.tokens)
    share = memory.total / (target.memory_gb * 1e9)
    verdict: Verdict = "fits" if share <= TIGHT else "tight" if share <= 1 else "no"
    sizes = recipe.train.batch_tokens, bool(recipe.train.gradient_checkpointing)
    counts, layers = parameter_counts(model), config.get_text_config().num_hidden_layers
    reading = target.flops * UTILIZATION[target.device] / (2 * counts[1])
    # A step reads all weights; in layers with few weights, starting the operations takes most of the time.
    layer_bytes = weight_bytes(model, recipe.model.quantize) / layers
    step = layers * target.layer_seconds * max(1.0, layer_bytes / target.layer_bytes)
    # On a CPU, half of the time is assumed to grow with the number of answers; a GPU computes them at once.
    step, text = (step, 0.0) if on_gpu else (step / 2, step / 2 / STEP_TEXTS)
    free = max(0, int(target.memory_gb * 1e9) - memory.weights - memory.process)
    cached = cache_limit(config, dtype.itemsize, free, on_gpu)
    kind = recipe.model.strategy, recipe.model.quantize
    return Estimate(*kind, *counts, memory, speed, verdict, *sizes, reading, step, text, cached)


def _alternatives(recipe: Recipe) -> Iterator[Recipe]:
    quantized: list[tuple[Strategy, Quantize]] = [("lora", "nf4"), ("lora", "int8")]
    alternatives: list[tuple[Strategy, Quantize]] = [(strategy, "none") for strategy in get_args(Strategy)]
    for strategy, quantize in [*alternatives, *quantized]:
        if (strategy, quantize) != (recipe.model.strategy, recipe.model.quantize):
            yield _changed(recipe, {"model.strategy": strategy, "model.quantize": quantize})


def _advice(recipe: Recipe, config: Any, target: Target) -> list[str]:
    """Return single changes with which the recipe fits; if there are none, the first combination that fits."""

    def as_options(change: dict[str, Any]) -> str:
        return " ".join(f"--set {key}={str(value).lower()}" for key, value in change.items())

    found, together = [], recipe
    changes = [
        change
        for change in _changes(recipe, config.get_text_config().num_hidden_layers)
        if _is_valid(_changed(recipe, change))
    ]
    for change in changes:
        if estimate(_changed(recipe, change), config, target).verdict == "fits":
            found.append(as_options(change))
    if found:
        return found
    gathered: dict[str, Any] = {}
    for change in changes:
        gathered |= change
        together = _changed(recipe, gathered)
        if estimate(together, config, target).verdict == "fits":
            return [as_options(gathered)]
    return []


def _changes(recipe: Recipe, layers: int) -> Iterator[dict[str, Any]]:
    """Yield changes that save memory, from the least to the greatest effect on the result."""
    longest, strategy = recipe.prompt.max_tokens, recipe.model.strategy
    if recipe.train.batch_tokens // longest > 1:
        yield {"train.micro_batch_tokens": max(64, longest)}
    if strategy != "prefix" and not recipe.train.gradient_checkpointing:
        yield {"train.gradient_checkpointing": True}
    if strategy == "full":
        yield {"train.optimizer": "adafactor"}
        yield {"model.strategy": "lora"}
    if recipe.model.quantize != "nf4":
        yield {"model.quantize": "nf4"} | ({"model.strategy": "lora"} if strategy == "full" else {})
    if strategy not in VIRTUAL and recipe.model.top_layers is None and layers > 1:
        yield {"model.top_layers": layers // 2}
    if longest >= 256:
        half = {"prompt.max_tokens": longest // 2, "train.micro_batch_tokens": max(64, longest // 2)}
        answer = min(recipe.prompt.answer_tokens, longest // 4)
        yield half | ({"prompt.answer_tokens": answer} if answer < recipe.prompt.answer_tokens else {})


def _is_valid(recipe: Recipe) -> bool:
    try:
        Recipe.model_validate(recipe.model_dump())
    except ValueError:
        return False
    return True


def _changed(recipe: Recipe, change: dict[str, Any]) -> Recipe:
    """Return the recipe with these keys changed, and with settings removed that no longer apply."""
    groups: dict[str, dict[str, Any]] = {"model": {}, "train": {}, "prompt": {}}
    for key, value in change.items():
        group, _, name = key.partition(".")
        groups[group][name] = value
    strategy = groups["model"].get("strategy")
    if strategy in VIRTUAL:
        groups["model"]["top_layers"] = None
    if strategy == "prefix":
        groups["train"]["gradient_checkpointing"] = False
    return recipe.model_copy(
        update={group: getattr(recipe, group).model_copy(update=values) for group, values in groups.items()}
    )
