"""Supervised fine-tuning of a causal language model on the answers' tokens only."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from meditune.models.frozen import FrozenLayers
from meditune.models.quiet import quiet_transformers
from meditune.models.rows import Row, by_length
from meditune.progress import Progress
from meditune.recipe import TrainSpec
from meditune.train.head_loss import fused_loss, is_plain_head, plain_loss
from meditune.train.optimizer import MasterAdamW, learning_rate
from meditune.train.weights import TokenWeights


@dataclass(frozen=True)
class Step:
    """What one optimizer step did."""

    step: int
    """From 1."""
    epoch: float
    loss: float
    """Weighted mean cross-entropy of the step's supervised tokens, in nats."""
    learning_rate: float
    grad_norm: float
    tokens: int
    """Real tokens read, padding not counted."""
    supervised_tokens: int
    seconds: float


def plan_steps(count: int, spec: TrainSpec, seed: int) -> list[list[int]]:
    """Indices of the examples of every optimizer step, from a seeded shuffle of each epoch.

    Each step takes batch_size * accumulation examples; an epoch's last step takes what is left.
    """
    size = spec.batch_size * spec.accumulation
    steps: list[list[int]] = []
    for epoch in range(math.ceil(spec.epochs)):
        order = list(range(count))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        share = min(1.0, spec.epochs - epoch)
        order = order[: max(1, round(share * count))]
        steps += [order[start : start + size] for start in range(0, len(order), size)]
    return steps


def train(
    model: Any,
    pad_id: int,
    rows: Sequence[Row],
    weights: TokenWeights,
    spec: TrainSpec,
    seed: int,
    frozen: FrozenLayers,
    resume: tuple[int, dict[str, torch.Tensor]] | None = None,
    checkpoint: Callable[[int, dict[str, torch.Tensor]], None] | None = None,
) -> Iterator[Step]:
    """Train in place and yield each step.

    Every step's loss is the weighted mean over all of its supervised tokens, however the step is cut into pieces, so
    batch size, accumulation and `micro_batch_tokens` don't change what a step does beyond their product. `frozen` are
    the layers below the lowest trained one. `resume` is a finished step and the tensors that `checkpoint` was given
    there.
    """
    steps = plan_steps(len(rows), spec, seed)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Virtual tokens, and adapters on a quantized base, may be FP32 in a model that computes in FP16.
    fp16 = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    optimizer = MasterAdamW(trainable, spec, fp16)
    done = 0
    if resume is not None:
        done, tensors = resume
        optimizer.restore(tensors)
    if spec.gradient_checkpointing:
        with quiet_transformers():
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    frozen.without_dropout(model)
    total = sum(len(rows[index]) for step in steps[done:] for index in step)
    with Progress("Training", total, "tokens") as progress:
        for number, indices in enumerate(steps[done:], start=done):
            started = time.monotonic()
            torch.manual_seed(hash((seed, number)) & 0x7FFFFFFF)
            chosen = [rows[index] for index in indices]
            loss = _gather_gradients(model, pad_id, chosen, weights, spec, frozen, progress, optimizer.scale)
            if not math.isfinite(loss):
                raise FloatingPointError(f"The loss of step {number + 1} is {loss}; lower train.learning_rate.")
            rate = learning_rate(number, len(steps), spec)
            norm = optimizer.step(rate)
            tokens = sum(len(rows[index]) for index in indices)
            supervised = sum(len(rows[index].targets) for index in indices)
            epoch = (number + 1) / len(steps) * spec.epochs
            yield Step(number + 1, epoch, loss, rate, norm, tokens, supervised, round(time.monotonic() - started, 3))
            if checkpoint and (number + 1) % spec.checkpoint_steps == 0 and number + 1 < len(steps):
                checkpoint(number + 1, optimizer.state())
    model.eval()


def probe(
    model: Any, pad_id: int, rows: Sequence[Row], weights: TokenWeights, spec: TrainSpec, frozen: FrozenLayers
) -> float:
    """Tokens per second of one piece of training on the longest rows, which also shows the most memory it will take.

    Nothing is changed by it.
    """
    longest = [rows[index] for index in by_length(rows, spec.micro_batch_tokens)[0]]
    model.train()
    frozen.without_dropout(model)
    started = time.monotonic()
    with Progress("Trying one piece", None) as progress:
        _gather_gradients(model, pad_id, longest, weights, spec, frozen, progress)
    model.zero_grad()
    return sum(map(len, longest)) / (time.monotonic() - started)


def _gather_gradients(
    model: Any,
    pad_id: int,
    rows: list[Row],
    weights: TokenWeights,
    spec: TrainSpec,
    frozen: FrozenLayers,
    progress: Progress,
    scale: float = 1.0,
) -> float:
    row_weights = [weights.of(row) for row in rows]
    whole = sum(sum(values) for values in row_weights)
    total = 0.0
    head = model.get_output_embeddings() if is_plain_head(model) else None
    for indices in by_length(rows, spec.micro_batch_tokens):
        batch, predicted = frozen.predict(model, [rows[index] for index in indices], pad_id, logits=head is None)
        device = predicted.hidden.device
        weight = torch.tensor([value / whole for index in indices for value in row_weights[index]], device=device)
        targets = batch.targets.to(device)
        if head is None:
            loss = plain_loss(predicted, targets, weight)
        else:
            loss = fused_loss(head, predicted.hidden, targets, weight)
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        total += loss.item()
        progress.advance(batch.real_tokens, f"loss {total:.3f}" if indices else None)
    return total
