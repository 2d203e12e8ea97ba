"""The shared input of the training benchmarks: the same model, recipe, examples and tokens for every engine."""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FRESH = "distilgpt2-fresh"
"""DistilGPT-2's shape with fresh weights, because its own weights need a hub"""


@dataclass
class Material:
    """A recipe, its base model without an adapter, and the examples to train on."""

    recipe: Any
    loaded: Any
    examples: Sequence[Any]
    base: str
    """The model's name in the catalogue; a fresh model has only its tokenizer"""
    data_sha256: str

    def rows(self) -> list[dict[str, list[int]]]:
        """Return a row of token ids for each task of each example; labels are -100 where nothing is predicted."""
        encoder = self.loaded.encoder(self.recipe.prompt)
        items = [encoder.supervised(one, task) for one in self.examples for task in self.recipe.train.tasks]
        return [
            {"input_ids": [*item.prompt, *item.target], "labels": [-100] * len(item.prompt) + item.target}
            for item in items
        ]

    def rows_by_step(self) -> list[dict[str, list[int]]]:
        """Return `rows` in the order of Meditune's optimizer steps, for trainers that read one row after another.

        Rows are shuffled within each step, so that batches are padded as in training on shuffled rows.
        """
        from meditune.train.trainer import plan_steps

        rows, tasks, ordered = self.rows(), len(self.recipe.train.tasks), []
        for number, step in enumerate(plan_steps(len(self.examples), self.recipe.train, self.recipe.seed)):
            mine = [rows[index * tasks + task] for index in step for task in range(tasks)]
            random.Random(f"{self.recipe.seed}/{number}").shuffle(mine)
            ordered += mine
        return ordered


def material(name: str, count: int, settings: Sequence[str], recipe: str = "gemma3-270m") -> Material:
    """Return the named model and the first `count` training examples, or all if there are fewer."""
    from meditune.config.load_recipe import load_recipe
    from meditune.data.prepare import prepare
    from meditune.models.load import load

    base = "smollm2-135m" if name == FRESH else name
    fixed = [f"model.base={base}", "train.epochs=1", "train.accumulation=1", "data.fallback_to_sample=true"]
    made = load_recipe(recipe, [*fixed, *settings]).recipe
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(made, Path(folder) / "data")
    loaded = load(base, made.model)
    if name == FRESH:
        loaded.model = fresh_distilgpt2(loaded.model)
    return Material(made, loaded, prepared.splits.train[:count], base, prepared.sha256)


def lengths(max_tokens: int) -> list[str]:
    """Return settings for rows of at most `max_tokens` tokens, which keep room for the answer as the recipes do."""
    return [f"prompt.max_tokens={max_tokens}", f"prompt.answer_tokens={min(128, max_tokens // 2)}"]


def fresh_distilgpt2(like: Any) -> Any:
    """Return a DistilGPT-2 with fresh weights and the number format and attention of `like`."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    attention = like.config._attn_implementation
    return AutoModelForCausalLM.from_config(distilgpt2_shape(), attn_implementation=attention).to(like.dtype)


def distilgpt2_shape() -> Any:
    """Return DistilGPT-2's configuration, without dropout."""
    from transformers import GPT2Config

    return GPT2Config(n_layer=6, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


def config_of(name: str) -> Any:
    """Return the named model's configuration, without loading weights."""
    from transformers import AutoConfig

    from meditune.models.load import locate

    return distilgpt2_shape() if name == FRESH else AutoConfig.from_pretrained(locate(name)).get_text_config()


def sha256_of(rows: Sequence[dict[str, list[int]]]) -> str:
    """Return the SHA-256 of the rows' tokens and labels; engines with the same hash trained on the same data."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
