"""The training loop: supervised fine-tuning on the answers' tokens only, or another loss over rows.

A step's loss is the weighted mean of the losses of all supervised tokens in its examples. With several processes, each
process computes the gradient for its own rows, and the gradients are summed once per step. The result is therefore the
same as with one process.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, NamedTuple, Protocol

import torch

from meditune import distributed
from meditune.config.recipe import Recipe
from meditune.config.training_options import TrainSpec
from meditune.hardware import memory_gb, used_gb
from meditune.models.forward import takes_unpadded
from meditune.models.fsdp import is_sharded
from meditune.models.hidden_state_cache import HiddenStateCache, turn_off_dropout
from meditune.models.load import LoadedModel
from meditune.models.quiet_libraries import quiet_transformers
from meditune.models.shared_prefix_batch import Batch, Row, by_length
from meditune.progress import Progress
from meditune.train.early_stopping import DevMonitor
from meditune.train.losses import loss_of_rows
from meditune.train.optimizer import STATE_BYTES, MasterOptimizer, learning_rate
from meditune.train.regularization import Penalty
from meditune.train.replay import Replay, SourceMix

WINDOW = 50  # number of latest losses within bounds that are remembered
MIN_LOSSES = 10  # minimum number of losses within bounds before any loss is judged
FACTOR = 2.0
MARGIN = 3.0  # in nats
STREAK = 5  # number of consecutive steps out of bounds that count as an explosion


class DivergenceError(Exception):
    """The error for training that can't continue.

    `ids` contains the ids of the step's rows. The last checkpoint contains the state before that step.
    """

    def __init__(self, step: int, what: str, ids: Sequence[str]) -> None:
        super().__init__(f"step {step}: {what}")
        self.step, self.what, self.ids = step, what, list(ids)


class LossGuard:
    """A detector that distinguishes an exploding loss from a noisy one.

    A loss is out of bounds if it is more than twice the median of the last 50 losses within bounds, and also more than
    3 nats above this median. Five consecutive losses out of bounds are an explosion.
    """

    def __init__(self, earlier: Iterable[float] = ()) -> None:
        self.streak = 0  # number of consecutive steps out of bounds, up to the latest step
        self._usual: deque[float] = deque(maxlen=WINDOW)
        for loss in earlier:
            self.add(loss)

    def add(self, loss: float) -> None:
        """Record the next step's loss."""
        if loss > self.upper_limit:
            self.streak += 1
        else:
            self.streak = 0
            self._usual.append(loss)

    @property
    def upper_limit(self) -> float:
        """The largest loss within bounds."""
        if len(self._usual) < MIN_LOSSES:
            return float("inf")
        middle = median(self._usual)
        return max(FACTOR * middle, middle + MARGIN)

    @property
    def exploded(self) -> bool:
        """True if the loss has exploded."""
        return self.streak >= STREAK


class WeightAverage:
    """A running mean of the optimizer's FP32 weights over the last steps (Izmailov et al. 2018, arXiv:1803.05407)."""

    def __init__(self, optimizer: MasterOptimizer, steps: int, share: float) -> None:
        self.optimizer = optimizer
        self.first = steps - round(steps * share)
        """0-based number of the first step whose weights are included"""
        self.count = 0
        self.means: list[torch.Tensor] = []

    def add(self, step: int) -> None:
        """Include the weights after step `step` (0-based)."""
        if step < self.first:
            return
        self.count += 1
        with torch.no_grad():
            if not self.means:
                self.means = [master.detach().clone() for master in self.optimizer.masters]
            for mean, master in zip(self.means, self.optimizer.masters, strict=True):
                mean += (master.detach() - mean) / self.count

    def apply(self) -> None:
        """Set the model's weights to the means, if there are any; the optimizer keeps its own weights."""
        with torch.no_grad():
            for parameter, mean in zip(self.optimizer.parameters, self.means, strict=False):
                parameter.copy_(mean)

    def state(self) -> dict[str, torch.Tensor]:
        """Return everything that is needed to resume, as a flat dictionary of tensors."""
        if not self.count:
            return {}
        return {f"average.{index}": mean for index, mean in enumerate(self.means)} | {
            "averaged": torch.tensor(self.count)
        }

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore the state that `state` returned."""
        if "averaged" in tensors:
            self.count = int(tensors["averaged"])
            self.means = [
                tensors[f"average.{index}"].to(master.device, copy=True)
                for index, master in enumerate(self.optimizer.masters)
            ]


BUCKET = 25_000_000  # approximate number of gradient values that are summed in FP32 at once
MAX_MEMORY_SHARE = 0.5
"""Share of a process's memory that weights and optimizer may use before they are sharded; activations need the rest"""


def parallel_mode(model: Any, recipe: Recipe) -> Literal["one", "ddp", "fsdp"]:
    """Return how processes share the work.

    "one" is a single process. With "ddp", each process has all weights; with "fsdp", each has a shard of them.
    """
    if distributed.world() == 1:
        return "one"
    if recipe.train.parallel != "auto":
        return recipe.train.parallel
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    trained = sum(
        parameter.numel() * (STATE_BYTES[recipe.train.optimizer] + parameter.element_size())
        for parameter in model.parameters()
    )
    needed = weights + (trained if recipe.model.strategy == "full" else 0)
    memory = memory_gb()[0] * 1e9 / distributed.local_world()
    if torch.cuda.is_available():
        memory = float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    too_large = needed > MAX_MEMORY_SHARE * memory and not recipe.needs_full_weights
    return "fsdp" if distributed.broadcast(too_large) else "ddp"


class RowShare(NamedTuple):
    """The rows of one forward and backward pass."""

    indices: list[int]
    idle: bool = False
    """True if the rows get weights of zero, because they are computed only to gather sharded layers in all processes"""


def deal_rows(rows: Sequence[Row], max_tokens: int, lockstep: bool, longest: int | None = None) -> list[RowShare]:
    """Return this process's rows in pieces of at most `max_tokens` tokens; see `by_length` about `longest`.

    With `lockstep`, all processes get the same number of pieces.
    """
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))

    def pieces_of(rank: int) -> list[RowShare]:
        share = order[rank :: distributed.world()]
        grouped = by_length([rows[index] for index in share], max_tokens, longest)
        return [RowShare([share[index] for index in group]) for group in grouped]

    pieces = pieces_of(distributed.rank())
    if lockstep:
        most = max(len(pieces_of(rank)) for rank in range(distributed.world()))
        pieces += [RowShare(order[-1:], idle=True)] * (most - len(pieces))
    return pieces


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replace every parameter's gradient with the sum over all processes, in FP32; a missing gradient is zero."""
    if distributed.world() == 1:
        return
    sizes = itertools.accumulate(parameter.numel() for parameter in parameters)
    by_size = itertools.groupby(zip(sizes, parameters, strict=True), key=lambda pair: pair[0] // BUCKET)
    for bucket in ([parameter for _, parameter in group] for _, group in by_size):
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in bucket]
        flat = distributed.all_reduce_sum(torch.cat([gradient.flatten().float() for gradient in gradients]))
        for parameter, piece in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
            parameter.grad = piece.view_as(parameter).to(parameter.dtype)


@dataclass(frozen=True)
class Step:
    """The outcome of one optimizer step."""

    step: int  # 1-based
    epoch: float
    loss: float
    """Weighted mean cross-entropy of the examples' supervised tokens in nats; for DPO and KTO, the rows' mean loss."""
    learning_rate: float
    grad_norm: float | None  # None if it is infinite or NaN; then the step changes no weights
    tokens: int  # tokens read, without padding
    supervised_tokens: int  # supervised tokens of the examples, without replay
    seconds: float
    replay_loss: float | None = None
    """Mean cross-entropy of the replay rows' tokens; None in a step without replay rows."""
    penalty: float = 0.0  # value of the L2-SP and EWC penalties, added to the loss of the step
    dev: float | None = None  # metric on the dev split after the step; None if it wasn't measured


class Weights(Protocol):
    """An object that determines the weight of each term of the loss."""

    def of(self, row: Row) -> list[float]:
        """Return one weight for each of the row's targets, or for each other term of the loss."""


LossOfRows = Callable[[Any, HiddenStateCache, Sequence[Row], Sequence[float], int], tuple[Any, Batch]]
"""A function like `loss_of_rows`: it takes the model, the cache of the frozen layers, rows, the weights of the rows'
terms, and the pad id. It returns the weighted sum of the losses, and the batch."""
PrepareStep = Callable[[Any, HiddenStateCache, Sequence[Row], int, int], None]
"""A function of the model, the frozen layers' cache, all rows of a step, the pad id, and the number of tokens computed
at once"""


@dataclass(frozen=True)
class TrainingRows:
    """The rows to train on, and the loss that every step minimizes over them."""

    rows: Sequence[Row]
    weights: Weights
    mix: SourceMix | None = None  # how often each source's rows occur in an epoch; None: every row once
    replay: Replay | None = None
    loss_of: LossOfRows = loss_of_rows
    prepare_step: PrepareStep | None = None
    """Called before a step's losses, for a loss that depends on all of the step's rows"""


def plan_steps(count: int, spec: TrainSpec, seed: int, mix: SourceMix | None = None) -> list[list[int]]:
    """Return the example indices for every optimizer step; each epoch is shuffled with the seed.

    A step takes at most batch_size * accumulation examples. The sizes of an epoch's steps differ by at most one
    example, because a last step with few examples would move the weights as far as a full step. Without a mix, every
    example occurs once in an epoch.
    """
    steps: list[list[int]] = []
    in_order = (list(range(count)) for _ in range(math.ceil(spec.epochs)))
    for epoch, order in enumerate(mix.epochs(seed, spec.epochs) if mix else in_order):
        random.Random(f"{seed}/{epoch}").shuffle(order)
        if mix is None:
            order = order[: max(1, round(min(1.0, spec.epochs - epoch) * count))]
        number = epoch_steps(len(order), spec)
        steps += [order[len(order) * step // number : len(order) * (step + 1) // number] for step in range(number)]
    return steps


def epoch_steps(count: int, spec: TrainSpec) -> int:
    """Return the number of optimizer steps in a complete epoch of `count` examples."""
    return math.ceil(count / (spec.batch_size * spec.accumulation))


def train(
    loaded: LoadedModel,
    data: TrainingRows,
    spec: TrainSpec,
    seed: int,
    penalties: Sequence[Penalty] = (),
    resume: tuple[Sequence[Step], dict[str, torch.Tensor]] | None = None,
    checkpoint: Callable[[int, dict[str, torch.Tensor]], None] | None = None,
    dev_monitor: DevMonitor | None = None,
) -> Iterator[Step]:
    """Train `loaded.model` in place and yield each step.

    Every step minimizes the weighted mean loss over its supervised tokens, including replay tokens, or over other terms
    if `data.loss_of` has them. The result doesn't depend on how the step is split into pieces. `penalties` are added
    once to each step's loss. `resume` contains the finished steps, and the tensors that `checkpoint` received after
    these steps. `dev_monitor` may end training early, and restore the weights of an earlier step. All processes must
    call this with the same arguments.

    Raises DivergenceError if the loss or the gradient isn't finite, or if the loss explodes.
    """
    model, rows, replay = loaded.model, data.rows, data.replay
    steps = plan_steps(len(rows), spec, seed, data.mix)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Virtual tokens and adapters on a quantized base may be FP32 in a model that computes in FP16.
    fp16 = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    optimizer = MasterOptimizer(trainable, spec, fp16)
    average = WeightAverage(optimizer, len(steps), spec.average_last)
    earlier, tensors = resume or ((), {})
    done, guard = len(earlier), LossGuard(step.loss for step in earlier)
    if resume is not None:
        optimizer.restore(tensors)
        average.restore(tensors)
        if dev_monitor:
            dev_monitor.restore(tensors)
    _set_training_mode(loaded, spec)
    lockstep = is_sharded(model)
    longest = max(map(len, [*rows, *(replay.rows if replay else [])])) if takes_unpadded(model) else None

    def divergence_error(number: int, what: str) -> DivergenceError:
        read = [rows[index] for index in steps[number]] + (replay.step(number) if replay else [])
        return DivergenceError(number + 1, what, [row.encoded[0].id for row in read])

    def save(number: int) -> None:
        if checkpoint:
            checkpoint(number, optimizer.state() | average.state() | (dev_monitor.state() if dev_monitor else {}))

    total = sum(len(rows[index]) for step in steps[done:] for index in step)
    total += replay.tokens(done) if replay else 0
    with Progress("Training", total, "tokens") as progress:
        for number, indices in enumerate(steps[done:], start=done):
            started = time.monotonic()
            # The seed differs between processes, so that each draws its own dropout.
            torch.manual_seed(
                hash((seed, number, distributed.rank()) if distributed.rank() else (seed, number)) & 0x7FFFFFFF
            )
            parts = [_weigh([rows[index] for index in indices], data.weights.of)]
            if replay and replay.steps[number]:
                parts.append(_weigh(replay.step(number), replay.weights.of))
            if data.prepare_step:
                data.prepare_step(model, loaded.frozen, parts[0].rows, loaded.pad_id, spec.batch_tokens)
            total_weight = sum(part.total for part in parts)
            tokens, read = sum(len(row) for part in parts for row in part.rows), progress.done
            supervised = sum(len(row.targets) for row in parts[0].rows)
            own_losses = []  # read only when all of the step's passes have been started
            for part in parts:
                pieces = deal_rows(part.rows, spec.batch_tokens, lockstep, longest)
                own_losses.append(
                    _add_gradients(
                        loaded, part, pieces, total_weight, progress, loss_of=data.loss_of, scale=optimizer.scale
                    )
                )
            own = torch.tensor([float(each) for each in own_losses], dtype=torch.float64)
            losses = distributed.all_reduce_sum(own).tolist()
            if not lockstep:
                sum_gradients(trainable)
            progress.advance(
                read + tokens - progress.done,
                f"loss {losses[0]:.3f}, {supervised / tokens:.0%} supervised, {used_gb():.1f} GB",
            )
            masters = dict(zip(optimizer.parameters, optimizer.masters, strict=True))
            penalty = sum(each.add_gradients(masters) for each in penalties) or 0.0
            if not math.isfinite(loss := sum(losses) + penalty):
                save(number)
                raise divergence_error(number, f"the loss is {loss}")
            guard.add(losses[0])
            if guard.streak == 1:
                save(number)
            if guard.exploded:
                began = number + 1 - guard.streak
                raise divergence_error(
                    began, f"since then the loss has been above {guard.upper_limit:.2f}, and is now {losses[0]:.2f}"
                )
            rate = learning_rate(number, len(steps), spec)
            may_overflow = optimizer.scale > 1
            norm = optimizer.step(rate)
            if not math.isfinite(norm) and not may_overflow:
                save(number)
                raise divergence_error(number, f"the gradient's norm is {norm}")
            average.add(number)
            seconds = round(time.monotonic() - started, 3)
            dev_metric = None
            if dev_monitor and dev_monitor.is_due(number + 1, len(steps)):
                model.eval()
                dev_metric = dev_monitor.take(number + 1, optimizer)
                _set_training_mode(loaded, spec)
            yield Step(
                step=number + 1,
                epoch=(number + 1) / len(steps) * spec.epochs,
                loss=losses[0],
                learning_rate=rate,
                grad_norm=norm if math.isfinite(norm) else None,
                tokens=tokens,
                supervised_tokens=supervised,
                seconds=seconds,
                replay_loss=losses[1] if losses[1:] else None,
                penalty=penalty,
                dev=dev_metric,
            )
            if dev_monitor and dev_monitor.is_over:
                break
            if (number + 1) % spec.checkpoint_steps == 0 and number + 1 < len(steps) and not guard.streak:
                save(number + 1)
    average.apply()
    if dev_monitor:
        dev_monitor.finish(optimizer)
    model.eval()


def probe(loaded: LoadedModel, data: TrainingRows, spec: TrainSpec, padded: bool = False) -> float:
    """Return the tokens per second of one batch of the longest rows; this batch also reaches training's peak memory.

    With `padded`, the batch contains the longest and the shortest row instead.
    """
    batches = by_length(data.rows, spec.batch_tokens)
    indices = [batches[0][0], batches[-1][-1]] if padded else batches[0]
    longest = _weigh([data.rows[index] for index in indices], data.weights.of)
    _set_training_mode(loaded, spec)
    started = time.monotonic()
    with Progress("Trying one batch", None, unit="tokens") as progress:
        piece = RowShare(list(range(len(longest.rows))))
        # Reading the loss waits until a GPU has computed the batch.
        float(_add_gradients(loaded, longest, [piece], longest.total, progress, loss_of=data.loss_of))
    loaded.model.zero_grad()
    return distributed.world() * sum(map(len, longest.rows)) / (time.monotonic() - started)


def _set_training_mode(loaded: LoadedModel, spec: TrainSpec) -> None:
    already = any(getattr(module, "gradient_checkpointing", False) for module in loaded.model.modules())
    if spec.gradient_checkpointing and not already:
        recompute_activations(loaded.model)
    loaded.model.train()
    if spec.objective == "sft":
        loaded.frozen.without_dropout(loaded.model)
    else:
        # The reference model is measured without dropout, so that only training changes the log-ratios.
        turn_off_dropout(loaded.model)


def recompute_activations(model: Any) -> None:
    """Enable gradient checkpointing, but no gradient for the embeddings, which would make frozen layers run twice."""
    with quiet_transformers():
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.disable_input_require_grads()


class _WeightedRows(NamedTuple):
    """Rows with the weight of each of their targets."""

    rows: list[Row]
    weights: list[list[float]]
    total: float  # sum of the weights


def _weigh(rows: list[Row], weights_of: Callable[[Row], list[float]]) -> _WeightedRows:
    weights = [weights_of(row) for row in rows]
    return _WeightedRows(rows, weights, sum(sum(values) for values in weights))


def _add_gradients(
    loaded: LoadedModel,
    part: _WeightedRows,
    pieces: Sequence[RowShare],
    total_weight: float,
    progress: Progress,
    loss_of: LossOfRows,
    scale: float = 1.0,
) -> Any:
    """Add `scale` times the gradient of these pieces' share of the step's loss; return their share of the mean loss.

    The result is a number, or an FP64 tensor on the model's device, because reading a number would wait for a GPU.
    """
    total: Any = 0.0
    for indices, idle in pieces:
        # Scale the weights, not the loss, because gradients are in FP16 from the output head on.
        weights = [0.0 if idle else scale * value / total_weight for index in indices for value in part.weights[index]]
        rows = [part.rows[index] for index in indices]
        loss, batch = loss_of(loaded.model, loaded.frozen, rows, weights, loaded.pad_id)
        loss.backward()
        total = total + loss.detach().double() / scale
        progress.advance(0 if idle else batch.real_tokens)
    return total * (total_weight / part.total)
