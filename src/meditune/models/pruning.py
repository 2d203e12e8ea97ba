"""Prune a model: set the least important weights to zero, or remove whole layers.

Only the linear layers inside the model's blocks are pruned, as in the literature. For calibration, the model runs one
layer at a time, so that each layer gets the output of the pruned layers below it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from meditune.config.training_options import PruneSpec
from meditune.errors import ModelError
from meditune.models.forward import attention_masks
from meditune.models.hidden_state_cache import blocks_of
from meditune.models.inference import batch_limit
from meditune.models.shared_prefix_batch import Row, by_length, collate, sees_of
from meditune.progress import track


@dataclass
class Passage:
    """The state of one batch between two layers.

    `hidden` is the (B, T, hidden size) input of the next layer. `real` is (B, T), false at padding. `calls` contains
    each layer's other arguments, such as masks and positions.
    """

    hidden: torch.Tensor
    real: torch.Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def after(self, layers: Sequence[Any], number: int) -> torch.Tensor:
        """Return the (B, T, hidden size) output of layer `number` for the hidden states."""
        positional, named = self.calls[number]
        output = layers[number](self.hidden, *positional, **named)
        found: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return found


def passages(model: Any, rows: Sequence[Row], pad_id: int, batch_tokens: int | None) -> list[Passage]:
    """Return the input of the lowest layer, in batches of at most `batch_tokens` tokens. Dropout must be off."""
    device = next(model.parameters()).device
    result = []
    for indices in track(by_length(rows, batch_limit(model, batch_tokens)), "Calibration text", unit="batches"):
        chosen = [rows[index] for index in indices]
        batch = collate(chosen, pad_id)
        tokens, sees, positions = batch.tokens.to(device), sees_of(batch.branch.to(device)), batch.positions.to(device)
        lengths = torch.tensor([len(row) for row in chosen], device=device)
        with torch.no_grad(), _calls_kept(blocks_of(model)) as (first, calls):
            model.get_decoder()(
                input_ids=tokens,
                attention_mask=attention_masks(model, sees, positions, positions),
                position_ids=positions,
                use_cache=False,
            )
        real = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
        result.append(Passage(first[0], real, calls))
    return result


@contextmanager
def _calls_kept(layers: Sequence[Any]) -> Iterator[tuple[list[torch.Tensor], list[Any]]]:
    """Yield two lists that a call of the model fills: the lowest layer's input, and each layer's other arguments."""
    first: list[torch.Tensor] = []
    calls: list[Any] = []

    def keep(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not first:
            first.append(positional[0])
        calls.append((positional[1:], named))

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        yield first, calls
    finally:
        for hook in hooks:
            hook.remove()


GROUP, KEPT = 4, 2
"""The pattern 2-of-4, which sparse tensor cores support: size of a group, and number of weights kept in each group"""


def magnitude(model: Any, spec: PruneSpec) -> None:
    """Set the weights with the smallest absolute values to zero, the same share in each layer (Han et al. 2015)."""
    for layer in track(list(linears(model).values()), "Pruning", unit="layers"):
        weight = _weight(layer)
        _keep_largest(weight, weight.float().abs(), spec, by_row=False)


def wanda(model: Any, spec: PruneSpec, batches: Sequence[Passage]) -> None:
    """Set the weights with the lowest scores on calibration text to zero, the same share for each output.

    A weight's score is its absolute value times the L2 norm of its input over all calibration tokens (Sun et al. 2023,
    arXiv:2306.11695). Layers are pruned from the lowest to the highest. `batches` must be `passages` of this model, and
    can't be reused.
    """
    linears(model)
    layers = blocks_of(model)
    for number, layer in track(list(enumerate(layers)), "Pruning", unit="layers"):
        inside = _linears_in(layer)
        squares = {name: _weight(each).new_zeros(_weight(each).shape[1]).float() for name, each in inside.items()}
        with torch.no_grad():
            for batch in batches:
                hooks = [each.register_forward_pre_hook(_adding(squares[name], batch)) for name, each in inside.items()]
                batch.after(layers, number)
                for hook in hooks:
                    hook.remove()
            for name, each in inside.items():
                weight = _weight(each)
                _keep_largest(weight, weight.float().abs() * squares[name].sqrt(), spec)
            for batch in batches:
                batch.hidden = batch.after(layers, number)


def linears(model: Any) -> dict[str, Any]:
    """Return the unquantized linear layers inside the model's blocks, by name. Raises ModelError if there are none."""
    inside = {id(module) for block in blocks_of(model) for module in block.modules()}
    found = {name: module for name, module in _linears_in(model).items() if id(module) in inside}
    if not found:
        raise ModelError("Pruning needs unquantized linear layers inside the model's blocks, but there are none.")
    return found


def _linears_in(part: Any) -> dict[str, Any]:
    return {name: module for name, module in part.named_modules() if type(module).__name__ in {"Linear", "Conv1D"}}


def sparsity(model: Any) -> float:
    """Return the share of zeros in the linear layers inside the model's blocks."""
    weights: list[torch.Tensor] = [layer.weight for layer in linears(model).values()]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def largest_mask(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Return a mask that is false at the round(columns * sparsity) smallest scores of each row.

    If scores are equal, the earlier score counts as smaller.
    """
    dropped = scores.argsort(dim=1, stable=True)[:, : round(scores.shape[1] * sparsity)]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, dropped, False)


def two_of_four(scores: torch.Tensor) -> torch.Tensor:
    """Return a mask that is true at the two largest of every four consecutive scores in a row.

    Raises ModelError if the length of a row isn't divisible by 4.
    """
    rows, columns = scores.shape
    if columns % GROUP:
        raise ModelError(
            f"model.prune.pattern 2-of-4 needs layers whose number of inputs is divisible by 4, but one layer has "
            f"{columns} inputs. Set model.prune.pattern to unstructured."
        )
    return largest_mask(scores.reshape(-1, GROUP), 1 - KEPT / GROUP).view(rows, columns)


def _weight(layer: Any) -> torch.Tensor:
    """Return the layer's weights as (outputs, inputs); GPT-2's layers store the transpose."""
    weight: torch.Tensor = layer.weight.data
    return weight.T if type(layer).__name__ == "Conv1D" else weight


def _keep_largest(weight: torch.Tensor, scores: torch.Tensor, spec: PruneSpec, by_row: bool = True) -> None:
    """Set the weights with the lowest scores to zero, separately in each row if `by_row`, else in the whole matrix."""
    if spec.pattern == "2-of-4":
        mask = two_of_four(scores)
    else:
        rows = scores if by_row else scores.reshape(1, -1)
        mask = largest_mask(rows, spec.sparsity).view_as(scores)
    weight.masked_fill_(~mask, 0)


def _adding(squares: torch.Tensor, batch: Passage) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
    def add(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        seen = inputs[0][batch.real] if inputs[0].shape[:2] == batch.real.shape else inputs[0].flatten(0, -2)
        squares.add_(seen.float().square().sum(dim=0))

    return add


def check_count(model: Any, count: int) -> None:
    """Raise ModelError if removing `count` layers would leave none."""
    total = len(blocks_of(model))
    if count >= total:
        raise ModelError(
            f"model.prune.layers: the model has {total} layers, and at least one must stay. Remove at most {total - 1}."
        )


def block_influence(model: Any, batches: Sequence[Passage]) -> list[float]:
    """Return, for each layer, 1 minus the mean cosine between a token's hidden states before and after the layer.

    Source: Men et al. 2024 (ShortGPT), arXiv:2403.03853. `batches` must be `passages` of this model, and can't be
    reused.
    """
    layers = blocks_of(model)
    tokens = sum(int(batch.real.sum()) for batch in batches)
    found = []
    for number in track(range(len(layers)), "Layer influence", unit="layers"):
        cosines = 0.0
        with torch.no_grad():
            for batch in batches:
                after = batch.after(layers, number)
                before, changed = batch.hidden[batch.real].float(), after[batch.real].float()
                cosines += float(torch.nn.functional.cosine_similarity(before, changed, dim=-1).double().sum())
                batch.hidden = after
        found.append(1 - cosines / tokens)
    return found


def least(influence: Sequence[float], count: int) -> list[int]:
    """Return the 0-based numbers of the `count` layers with the least influence, in ascending order."""
    return sorted(sorted(range(len(influence)), key=lambda number: influence[number])[:count])


def remove_layers(model: Any, removed: Collection[int]) -> None:
    """Remove layers by their 0-based numbers, in place, with their entries in the config; renumber the other layers."""
    config = model.config.get_text_config()
    count = config.num_hidden_layers
    blocks = blocks_of(model)
    stack = next(
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count and module[0] is blocks[0]
    )
    for number in sorted(removed, reverse=True):
        del stack[number]
    for number, block in enumerate(stack):
        for module in (each for each in block.modules() if isinstance(getattr(each, "layer_idx", None), int)):
            module.__dict__["layer_idx"] = number
    config.num_hidden_layers = len(stack)
    for name, kinds in list(vars(config).items()):
        if "layer" in name and isinstance(kinds, list) and len(kinds) == count:
            setattr(config, name, [kind for number, kind in enumerate(kinds) if number not in removed])
