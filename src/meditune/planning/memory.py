"""The most memory that a training holds at once, part by part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from meditune.models.strategies import parameter_counts
from meditune.planning.rehearsal import Piece
from meditune.planning.shape import dequantized_bytes, weight_bytes
from meditune.recipe import Recipe
from meditune.train.optimizer import state_bytes

PROCESS = 0.55e9
"""Python with PyTorch, transformers and peft, measured on a CPU (0.51 to 0.59 GB); on a GPU context and workspace,
assumed."""
WORD = 1280
"""Bytes that a tokenizer takes for each of its words: 0.335 GB for Gemma's 262,144, measured."""


@dataclass(frozen=True)
class Memory:
    """In bytes."""

    weights: int
    training: int
    """Gradients, FP32 copies and what the optimizer remembers, as far as they are there at the peak"""
    piece: int
    """Activations and all else that a forward and backward pass holds; 0 where the optimizer's step is the peak"""
    process: int
    """Python, libraries and tokenizer"""

    @property
    def total(self) -> int:
        """The peak."""
        return self.weights + self.training + self.piece + self.process


def peak_of(model: Any, piece: Piece, recipe: Recipe, on_gpu: bool) -> Memory:
    """The peak of training `model` (on the meta device) by the recipe, of a backward pass or an optimizer's step.

    Data, replay's and EWC's own needs, and measuring aren't in it.
    """
    trained, _ = parameter_counts(model)
    gradients = sum(each.numel() * each.element_size() for each in model.parameters() if each.requires_grad)
    state = state_bytes(recipe.train) * trained
    # The masters' gradients are made after the last piece, out of the parameters', which go.
    passing = state - 4 * trained + gradients
    # PyTorch updates all weights at once on a GPU, which takes a copy of their second moments.
    stepping = state + (4 * trained if on_gpu and recipe.train.optimizer == "adamw" else 0)
    held = piece.held + dequantized_bytes(model, recipe.model.quantize)
    weights = weight_bytes(model, recipe.model.quantize)
    # A tokenizer's words lie in the CPU's memory, whatever trains.
    process = int(PROCESS) if on_gpu else int(PROCESS) + WORD * model.config.get_text_config().vocab_size
    if passing + held >= stepping:
        return Memory(weights, passing, held, process)
    return Memory(weights, stepping, 0, process)
