"""Pruning single weights: those that matter least become zero, and everything keeps its shape.

Only the linear layers inside the model's blocks are pruned, as in the literature; embeddings, norms, biases and the
output head stay. Dense matrix products take as long with zeros in them as without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from meditune.errors import ModelError
from meditune.models.calibration import Passage
from meditune.models.frozen import blocks_of
from meditune.progress import track
from meditune.recipe import PruneSpec

GROUP, KEPT = 4, 2
"""In the pattern 2-of-4, so many of so many neighbouring inputs are kept: what sparse tensor cores can use."""


def magnitude(model: Any, spec: PruneSpec) -> None:
    """Set the weights of smallest absolute value to zero, the same share of each linear layer (Han et al. 2015).

    Raises ModelError as `linears`.
    """
    for layer in track(list(linears(model).values()), "Pruning", unit="layers"):
        scores = _weight(layer).float().abs()
        whole = scores.reshape(1, -1)
        kept = two_of_four(scores) if spec.pattern == "2-of-4" else largest(whole, spec.sparsity).view_as(scores)
        _keep_only(layer, kept)


def wanda(model: Any, spec: PruneSpec, batches: Sequence[Passage]) -> None:
    """Set the weights to zero that the calibration text needs least, the same share of each output's inputs.

    A weight's score is its absolute value times the L2 norm of its input over all calibration tokens (Sun et al. 2023,
    arXiv:2306.11695). Layers are pruned from the lowest on, and the norms in a layer are those that come out of the
    pruned ones below. `batches` must come from this model; they are used up. Raises ModelError as `linears`.
    """
    linears(model)
    layers = blocks_of(model)
    for number, layer in track(list(enumerate(layers)), "Pruning", unit="layers"):
        inside = _linears_in(layer)
        squares = {
            name: torch.zeros(_weight(each).shape[1], device=_weight(each).device) for name, each in inside.items()
        }
        with torch.no_grad():
            for batch in batches:
                hooks = [each.register_forward_pre_hook(_adding(squares[name], batch)) for name, each in inside.items()]
                batch.after(layers, number)
                for hook in hooks:
                    hook.remove()
            for name, each in inside.items():
                scores = _weight(each).float().abs() * squares[name].sqrt()
                _keep_only(each, two_of_four(scores) if spec.pattern == "2-of-4" else largest(scores, spec.sparsity))
            for batch in batches:
                batch.hidden = batch.after(layers, number)


def linears(model: Any) -> dict[str, Any]:
    """The linear layers inside the model's blocks, by name.

    Raises ModelError where there are none that are held as plain numbers.
    """
    inside = {id(module) for block in blocks_of(model) for module in block.modules()}
    found = {name: module for name, module in _linears_in(model).items() if id(module) in inside}
    if not found:
        raise ModelError("Pruning needs linear layers of plain numbers inside the model's blocks, and found none.")
    return found


def _linears_in(part: Any) -> dict[str, Any]:
    return {name: module for name, module in part.named_modules() if type(module).__name__ in {"Linear", "Conv1D"}}


def zero_share(model: Any) -> float:
    """The share of zeros in the linear layers inside the model's blocks."""
    weights: list[torch.Tensor] = [layer.weight for layer in linears(model).values()]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def largest(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Where the scores (rows, columns) are among the largest of their row.

    Exactly round(columns * sparsity) of each row are not; of equal ones the earlier go first.
    """
    dropped = scores.argsort(dim=1, stable=True)[:, : round(scores.shape[1] * sparsity)]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, dropped, False)


def two_of_four(scores: torch.Tensor) -> torch.Tensor:
    """Where the scores (rows, columns) are among the two largest of their four neighbours in a row.

    Raises ModelError where the number of columns can't be divided by four.
    """
    rows, columns = scores.shape
    if columns % GROUP:
        raise ModelError(
            f"model.prune.pattern 2-of-4 needs layers whose number of inputs can be divided by 4; one has {columns}. "
            "Take unstructured."
        )
    return largest(scores.reshape(-1, GROUP), 1 - KEPT / GROUP).view(rows, columns)


def _weight(layer: Any) -> torch.Tensor:
    """The layer's weights as (outputs, inputs); GPT-2's layers hold them the other way round."""
    weight: torch.Tensor = layer.weight.data
    return weight.T if type(layer).__name__ == "Conv1D" else weight


def _keep_only(layer: Any, kept: torch.Tensor) -> None:
    _weight(layer).masked_fill_(~kept, 0)


def _adding(squares: torch.Tensor, batch: Passage) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
    def add(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        seen = inputs[0][batch.real] if inputs[0].shape[:2] == batch.real.shape else inputs[0].flatten(0, -2)
        squares.add_(seen.float().square().sum(dim=0))

    return add
