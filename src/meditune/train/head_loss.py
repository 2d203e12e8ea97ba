"""Cross-entropy through the output head in pieces, without keeping the logits.

With 262,000 words the logits of 500 supervised tokens are half a gigabyte in FP32, and a plain backward pass fills
several tensors of that size. Here each piece's logits live only until their loss and the gradient of their hidden
states are known (as in Liger's fused linear cross-entropy, arXiv:2410.10989). `plain_loss` is the fallback for heads
that are trained themselves or whose logits the architecture changes afterwards; a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from meditune.models.forward import Predicted
from meditune.models.frozen import FrozenLayers
from meditune.models.rows import Batch, Row

PIECE = 256
"""Supervised tokens whose logits are held at once."""
CHANGED_AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings of architectures that scale or cap what their head gives."""


def is_plain_head(model: Any) -> bool:
    """Whether the logits are a linear map of the last hidden state and nothing else, of which no gradient is asked."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in head.parameters())
    if type(head) is not torch.nn.Linear or trained:
        return False
    return not any(getattr(config, name, None) for name in CHANGED_AFTER_HEAD)


def loss_of_rows(
    model: Any, frozen: FrozenLayers, rows: Sequence[Row], weights: Sequence[float], pad_id: int
) -> tuple[Any, Batch]:
    """Sum over the rows' targets of weight * cross-entropy, and the batch that the rows made."""
    head = model.get_output_embeddings() if is_plain_head(model) else None
    batch, predicted = frozen.predict(model, rows, pad_id, logits=head is None)
    device = predicted.hidden.device
    weight, targets = torch.tensor(weights, device=device), batch.targets.to(device)
    if head is None:
        return plain_loss(predicted, targets, weight), batch
    return fused_loss(head, predicted.hidden, targets, weight), batch


def losses_of_rows(model: Any, frozen: FrozenLayers, rows: Sequence[Row], pad_id: int) -> tuple[torch.Tensor, Batch]:
    """(N,) cross-entropy of each of the rows' targets, FP32, and the batch that the rows made."""
    head = model.get_output_embeddings() if is_plain_head(model) else None
    batch, predicted = frozen.predict(model, rows, pad_id, logits=head is None)
    targets = batch.targets.to(predicted.hidden.device)
    if head is None:
        return torch.nn.functional.cross_entropy(predicted.logits.float(), targets, reduction="none"), batch
    losses: torch.Tensor = _TokenLosses.apply(predicted.hidden, head.weight, head.bias, targets)  # type: ignore[no-untyped-call]
    return losses, batch


def plain_loss(predicted: Predicted, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum over N tokens of weight * cross-entropy, from (N, vocabulary) logits."""
    each = torch.nn.functional.cross_entropy(predicted.logits.float(), targets, reduction="none")
    return (each * weights).sum()


def fused_loss(head: torch.nn.Linear, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> Any:
    """The same sum from (N, hidden size) hidden states; the gradient reaches the hidden states only."""
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
        for start in range(0, len(hidden), PIECE):
            here = slice(start, start + PIECE)
            weight, target = weights[here, None].float(), targets[here, None]
            logits, normalizer = _logits(hidden[here], matrix, bias)
            total += ((normalizer - logits.gather(1, target)) * weight).sum()
            gradient[here] = _slope(logits, normalizer, target, weight).to(hidden.dtype) @ matrix
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *above: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * above[0].to(gradient.dtype), None, None, None, None


class _TokenLosses(torch.autograd.Function):
    """Each token's cross-entropy, for losses that aren't a weighted sum; logits are computed again on the way back."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, matrix, bias, targets)
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), PIECE):
            here = slice(start, start + PIECE)
            logits, normalizer = _logits(hidden[here], matrix, bias)
            losses[here] = (normalizer - logits.gather(1, targets[here, None]))[:, 0]
        return losses

    @staticmethod
    def backward(ctx: Any, *above: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, matrix, bias, targets = ctx.saved_tensors
        gradient = torch.empty_like(hidden)
        for start in range(0, len(hidden), PIECE):
            here = slice(start, start + PIECE)
            logits, normalizer = _logits(hidden[here], matrix, bias)
            slope = _slope(logits, normalizer, targets[here, None], above[0][here, None])
            gradient[here] = slope.to(hidden.dtype) @ matrix
        return gradient, None, None, None


def _logits(hidden: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, vocabulary) logits in FP32 and their (n, 1) log-sum-exp."""
    logits = torch.nn.functional.linear(hidden, matrix, bias).float()
    return logits, logits.logsumexp(dim=1, keepdim=True)


def _slope(logits: torch.Tensor, normalizer: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Gradient of the summed weight * cross-entropy with respect to the logits, whose memory it takes."""
    slope = logits.sub_(normalizer).exp_().mul_(weight)
    return slope.scatter_add_(1, target, -weight)
