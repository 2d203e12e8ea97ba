"""Cross-entropy computed in pieces without storing all logits, and the preference losses DPO and KTO.

With a vocabulary of 262,000 tokens, the logits of 500 supervised tokens take half a gigabyte in FP32, and a plain
backward pass fills several tensors of that size. Here, the logits of a piece exist only until the loss of the piece and
the gradient of its hidden states are computed (as in Liger's fused linear cross-entropy, arXiv:2410.10989).
`plain_loss` is the fallback for heads that are trained, and for architectures that change the head's logits. A test
checks that both computations agree.

DPO takes rows with two branches, a preferred and a rejected answer: Rafailov et al. 2023, "Direct Preference
Optimization" (arXiv:2305.18290). KTO takes rows with one answer, which is desirable or undesirable: Ethayarajh et al.
2024, "KTO: Model Alignment as Prospect Theoretic Optimization" (arXiv:2402.01306).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.functional import logsigmoid, sigmoid

from meditune.models.forward import CHANGED_AFTER_HEAD, Predicted, label_logits
from meditune.models.hidden_state_cache import HiddenStateCache
from meditune.models.shared_prefix_batch import PROMPT, Batch, Row, by_length, join
from meditune.prompts import Encoded

CHUNK_TOKENS = 256
"""Number of supervised tokens whose logits are stored at the same time, in the model's number format."""
GPU_LOGITS = 2**29
"""Bytes of logits and their FP32 copy that a GPU may store instead, so that matrix products are fewer and larger."""
EXACT = 2**21
"""Number of logits that a CPU stores in FP32 at the same time (8 MB)."""
PLANNED_FOR_GPU = ContextVar("PLANNED_FOR_GPU", default=False)
"""True while a plan for a GPU runs on the meta device, whose tensors then count as a GPU's"""


def is_plain_head(model: Any) -> bool:
    """Return whether the logits are just a linear map of the last hidden state, and this map needs no gradient."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in head.parameters())
    if type(head) is not torch.nn.Linear or trained:
        return False
    return not any(getattr(config, name, None) for name in CHANGED_AFTER_HEAD)


def loss_of_rows(
    model: Any, frozen: HiddenStateCache, rows: Sequence[Row], weights: Sequence[float], pad_id: int
) -> tuple[Any, Batch]:
    """Return the sum of weight * cross-entropy over the rows' targets, and the rows' batch."""
    head = model.get_output_embeddings() if is_plain_head(model) else None
    targets = _targets(model, rows)
    weight = torch.tensor(weights, device=targets.device)
    batch, predicted = frozen.predict(model, rows, pad_id, logits=head is None)
    total: Any = 0.0
    if choices := choices_of(rows):
        rest = [place for place in range(len(targets)) if place not in choices]
        total = choice_loss(model, predicted.hidden, batch.targets, weight, choices)
        if not rest:
            return total, batch
        targets, weight = targets[rest], weight[rest]
        logits = predicted.logits[rest] if head is None else predicted.logits
        predicted = Predicted(predicted.hidden[rest], logits)
    if head is None:
        return total + plain_loss(predicted, targets, weight), batch
    return total + fused_loss(head, predicted.hidden, targets, weight), batch


def losses_of_rows(
    model: Any, frozen: HiddenStateCache, rows: Sequence[Row], pad_id: int
) -> tuple[torch.Tensor, Batch]:
    """Return the (N,) cross-entropy of each of the rows' targets in FP32, and the rows' batch."""
    head = model.get_output_embeddings() if is_plain_head(model) else None
    targets = _targets(model, rows)
    batch, predicted = frozen.predict(model, rows, pad_id, logits=head is None)
    if head is None:
        return torch.nn.functional.cross_entropy(predicted.logits.float(), targets, reduction="none"), batch
    losses: torch.Tensor = _TokenLosses.apply(predicted.hidden, head.weight, head.bias, targets)  # type: ignore[no-untyped-call]
    return losses, batch


def _targets(model: Any, rows: Sequence[Row]) -> torch.Tensor:
    """Return the (N,) ids of the rows' targets on the model's device.

    A copy to a GPU waits for the operations before it, so this is called before the forward pass.
    """
    targets = [target for row in rows for target in row.targets]
    return torch.tensor(targets, dtype=torch.long, device=next(model.parameters()).device)


def choices_of(rows: Sequence[Row]) -> dict[int, tuple[int, ...]]:
    """Return the targets that compete only with a few tokens (claims): the target's index -> ids of these tokens."""
    items = [row.encoded[number] if number != PROMPT else None for row in rows for number in row.of]
    return {place: item.choices for place, item in enumerate(items) if item and item.choices}


def choice_loss(
    model: Any,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    choices: Mapping[int, tuple[int, ...]],
) -> torch.Tensor:
    """Return the sum of weight * cross-entropy over the targets with `choices`, normalized over the choices alone.

    The logits are computed in FP32 from the (N, hidden size) states. `targets` should be on the CPU, because they are
    read one by one.
    """
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for tokens in sorted(set(choices.values())):
        places = [place for place, each in choices.items() if each == tokens]
        logits = label_logits(model, hidden[places], tokens)
        target = torch.tensor([tokens.index(int(targets[place])) for place in places], device=hidden.device)
        total = total + (torch.nn.functional.cross_entropy(logits, target, reduction="none") * weights[places]).sum()
    return total


def plain_loss(predicted: Predicted, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the sum over N tokens of weight * cross-entropy, from (N, vocabulary) logits."""
    each = torch.nn.functional.cross_entropy(predicted.logits.float(), targets, reduction="none")
    return (each * weights).sum()


def fused_loss(head: torch.nn.Linear, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> Any:
    """Return the same loss as `plain_loss`, computed from (N, hidden size) states; only the states get a gradient."""
    return _FusedLoss.apply(hidden, head.weight, head.bias, targets, weights)  # type: ignore[no-untyped-call]


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        matrix: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        for rows, logits in _pieces(hidden, matrix, bias):
            for few, exact in _in_fp32(logits):
                target, weight = targets[rows][few, None], weights[rows][few, None].float()
                target_logits, normalizer = _normalized(exact, target)
                total += ((normalizer - target_logits) * weight).sum()
                logits[few] = _slope(exact, target, weight)
            torch.mm(logits, matrix, out=gradient[rows])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *above: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * above[0].to(gradient.dtype), None, None, None, None


class _TokenLosses(torch.autograd.Function):
    """Each token's cross-entropy, for losses that aren't a weighted sum; the backward pass recomputes the logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, matrix, bias, targets)
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        for rows, logits in _pieces(hidden, matrix, bias):
            for few, exact in _in_fp32(logits):
                target_logits, normalizer = _normalized(exact, targets[rows][few, None])
                losses[rows][few] = (normalizer - target_logits)[:, 0]
        return losses

    @staticmethod
    def backward(ctx: Any, *above: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, matrix, bias, targets = ctx.saved_tensors
        gradient = torch.empty_like(hidden)
        for rows, logits in _pieces(hidden, matrix, bias):
            for few, exact in _in_fp32(logits):
                target = targets[rows][few, None]
                _normalized(exact, target)
                logits[few] = _slope(exact, target, above[0][rows][few, None])
            torch.mm(logits, matrix, out=gradient[rows])
        return gradient, None, None, None


def _pieces(
    hidden: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield slices of the hidden states, each with its (n, vocabulary) logits, whose memory the next slice reuses."""
    size = CHUNK_TOKENS
    if _is_on_gpu(hidden):
        size = max(CHUNK_TOKENS, GPU_LOGITS // (matrix.shape[0] * (hidden.element_size() + 4)))
    memory = hidden.new_empty((min(size, len(hidden)), matrix.shape[0]))
    for start in range(0, len(hidden), size):
        rows = slice(start, min(start + size, len(hidden)))
        logits = memory[: rows.stop - rows.start]
        if bias is None:
            torch.mm(hidden[rows], matrix.t(), out=logits)
        else:
            torch.addmm(bias, hidden[rows], matrix.t(), out=logits)
        yield rows, logits


def _is_on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda or (tensor.is_meta and PLANNED_FOR_GPU.get())


def _in_fp32(logits: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield slices of a few rows of logits, each with an FP32 copy, whose memory the next slice reuses.

    The slices are small enough for a CPU's cache; a GPU gets all rows at once.
    """
    size = len(logits) if _is_on_gpu(logits) else max(1, EXACT // logits.shape[1])
    memory = torch.empty((min(size, len(logits)), logits.shape[1]), dtype=torch.float32, device=logits.device)
    for start in range(0, len(logits), size):
        few = slice(start, min(start + size, len(logits)))
        yield few, memory[: few.stop - few.start].copy_(logits[few])


def _normalized(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the targets' (n, 1) logits, and the rows' (n, 1) log-sum-exps; `logits` become probabilities."""
    target_logits, top = logits.gather(1, target), logits.amax(dim=1, keepdim=True)
    total = logits.sub_(top).exp_().sum(dim=1, keepdim=True)
    logits.div_(total)
    return target_logits, total.log_().add_(top)


def _slope(probabilities: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the sum of weight * cross-entropy for the logits; overwrite `probabilities` with it."""
    return probabilities.mul_(weight).scatter_add_(1, target, -weight)


Reference = Mapping[str, Sequence[float]]
"""Id of a pair or rated answer -> the log-likelihoods of its answers before training"""


class PairLoss:
    """The DPO loss, averaged over pairs."""

    def __init__(self, beta: float, reference: Reference) -> None:
        self.beta, self.reference = beta, reference

    def of(self, row: Row) -> list[float]:  # noqa: ARG002 (every pair counts the same)
        """Return the weight of a pair, which is always 1."""
        return [1.0]

    def prepare_step(
        self, model: Any, frozen: HiddenStateCache, rows: Sequence[Row], pad_id: int, batch_tokens: int
    ) -> None:
        """Prepare the losses of a step, if a loss depends on other rows of the step; for DPO, do nothing."""

    def __call__(
        self, model: Any, frozen: HiddenStateCache, rows: Sequence[Row], weights: Sequence[float], pad_id: int
    ) -> tuple[Any, Batch]:
        """Return the sum over the rows of weight * loss, and the rows' batch."""
        each, batch = self._each(model, frozen, rows, pad_id)
        return (each * torch.tensor(weights, device=each.device)).sum(), batch

    def _each(
        self, model: Any, frozen: HiddenStateCache, rows: Sequence[Row], pad_id: int
    ) -> tuple[torch.Tensor, Batch]:
        now, before, batch = self._likelihoods(model, frozen, rows, pad_id)
        return dpo(now, before, self.beta), batch

    def _likelihoods(
        self, model: Any, frozen: HiddenStateCache, rows: Sequence[Row], pad_id: int
    ) -> tuple[torch.Tensor, torch.Tensor, Batch]:
        """Return the (R, A) log-likelihoods of R rows' answers now, those before training, and the batch."""
        now, batch = log_likelihoods(model, frozen, rows, pad_id)
        before = [self.reference[row.encoded[0].id] for row in rows]
        return now, torch.tensor(before, device=now.device), batch


class SingleAnswerLoss(PairLoss):
    """The KTO loss, averaged over answers that are desirable or undesirable.

    All rows of a step have the same reference point, so `prepare_step` must be called before the step's losses are
    computed. It combines each of the step's prompts with the answer of the next row. On these mismatched rows, the mean
    log-ratio between the model and its starting point estimates the KL divergence, which is the reference point.
    """

    def __init__(self, beta: float, reference: Reference, desirable: Mapping[str, bool], max_tokens: int) -> None:
        """`desirable` maps row ids to True or False; prompts with other rows' answers are cut to `max_tokens`."""
        super().__init__(beta, reference)
        self.desirable, self.max_tokens = desirable, max_tokens
        self.weights = weights_of_thumbs(sum(desirable.values()), len(desirable) - sum(desirable.values()))
        self.kl = 0.0
        """The reference point in nats"""

    def prepare_step(
        self, model: Any, frozen: HiddenStateCache, rows: Sequence[Row], pad_id: int, batch_tokens: int
    ) -> None:
        """Estimate the reference point for a step's rows, in batches of at most `batch_tokens` tokens."""
        total, others = 0.0, mismatched(rows, self.max_tokens)
        with torch.no_grad():
            for indices in by_length(others, batch_tokens):
                now, before, _ = self._likelihoods(model, frozen, [others[index] for index in indices], pad_id)
                total += float((now - before).sum())
        self.kl = max(0.0, total / len(others)) if others else 0.0

    def _each(
        self, model: Any, frozen: HiddenStateCache, rows: Sequence[Row], pad_id: int
    ) -> tuple[torch.Tensor, Batch]:
        now, before, batch = self._likelihoods(model, frozen, rows, pad_id)
        desirable = torch.tensor([self.desirable[row.encoded[0].id] for row in rows], device=now.device)
        return kto(now[:, 0] - before[:, 0], self.kl, desirable, self.beta, self.weights), batch


def mismatched(rows: Sequence[Row], max_tokens: int) -> list[Row]:
    """Return rows that combine each prompt with the next row's answer; the last prompt gets the first row's answer.

    A row that would be longer than `max_tokens` is cut. For a single row, the result is empty.
    """
    if len(rows) < 2:
        return []
    found = []
    for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
        own, given = row.encoded[0], other.encoded[0]
        target = given.target[: max_tokens - len(own.prompt)]
        found.append(join([Encoded(f"{own.id} with {given.id}", "answer", own.prompt, target)]))
    return found


def weights_of_thumbs(desirable: int, undesirable: int) -> tuple[float, float]:
    """Return the loss weights of desirable and undesirable answers, computed from the numbers of such answers.

    Following the paper, weight * number is 1 to 4/3 times as large for desirable answers as for undesirable answers. If
    equal weights don't give a ratio in this range, the weight of the rarer kind is raised until the ratio reaches it.
    """
    ratio = desirable / undesirable
    return max(1.0, 1 / ratio), max(1.0, ratio * 3 / 4)


def log_likelihoods(
    model: Any, frozen: HiddenStateCache, rows: Sequence[Row], pad_id: int
) -> tuple[torch.Tensor, Batch]:
    """Return the (R, A) log-likelihoods of R rows' answers, summed over tokens including end tokens, and the batch.

    All rows have the same number A of answers: two for a pair, one for a single answer.
    """
    each, batch = losses_of_rows(model, frozen, rows, pad_id)
    answers = len(rows[0].encoded)
    place = torch.tensor([answers * number + branch for number, row in enumerate(rows) for branch in row.of])
    sums = torch.zeros(answers * len(rows), device=each.device).index_add(0, place.to(each.device), -each)
    return sums.view(-1, answers), batch


def dpo(now: torch.Tensor, before: torch.Tensor, beta: float) -> torch.Tensor:
    """Return (R,) losses from (R, 2) summed log-likelihoods under the model and under its starting point.

    A loss is -log sigmoid(beta * ((chosen - rejected) now - (chosen - rejected) before)), which is ln 2 if nothing has
    changed.
    """
    moved = now - before
    return -logsigmoid(beta * (moved[:, 0] - moved[:, 1]))


def kto(
    log_ratio: torch.Tensor, kl: float, desirable: torch.Tensor, beta: float, weights: tuple[float, float]
) -> torch.Tensor:
    """Return (R,) losses of answers, from their (R,) log-ratios (model to starting point) and the reference point `kl`.

    The loss is weight * (1 - sigmoid(beta * (log-ratio - kl))) for answers in the (R,) mask `desirable`. For all other
    answers, the sign inside the sigmoid is the opposite. `weights` contains the weight of desirable answers, then that
    of undesirable answers.
    """
    gain = beta * (log_ratio - kl)
    return torch.where(desirable, weights[0] * sigmoid(-gain), weights[1] * sigmoid(gain))
