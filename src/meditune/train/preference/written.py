"""Answers that the model writes before it is tuned, of which pairs are made (`data/preference/sampled.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from meditune.data.example import Example
from meditune.data.preference.prepare import PairSets, with_training_pairs
from meditune.data.preference.sampled import judged, paired, usable
from meditune.data.rejects import Rejects
from meditune.data.splits import Splits
from meditune.errors import DataError
from meditune.files import read_jsonl, write_jsonl
from meditune.models.continuing import batch_size, sampled
from meditune.models.load import LoadedModel
from meditune.progress import Progress
from meditune.prompts import QuestionTooLongError
from meditune.recipe import Recipe

FILE = "samples.jsonl"
"""Lies beside what was measured and trained, so that a folder which has it takes no other settings"""


def pairs_of_own_answers(loaded: LoadedModel, splits: Splits, recipe: Recipe, folder: Path) -> PairSets:
    """The run's pairs, those to train on made of answers that `loaded` writes to the training examples with context.

    The answers are kept in `folder/samples.jsonl`, so that a run that goes on has the same ones. Raises DataError where
    they make no pair.
    """
    examples, spec, rejects = usable(splits.train), recipe.train.preference.sampled, Rejects()
    path = folder / FILE
    if not path.is_file():
        write_jsonl(path, answers(loaded, examples, recipe))
    pairs = paired(examples, read_jsonl(path), spec, rejects)
    if not pairs:
        raise DataError(
            f"{path}: none of {len(examples)} examples has two answers whose scores differ by "
            f"train.preference.sampled.margin ({spec.margin:g}). Choose another --output and lower it, or raise answers"
            " or temperature beside it."
        )
    return with_training_pairs(folder, pairs, rejects)


def answers(loaded: LoadedModel, examples: Sequence[Example], recipe: Recipe) -> Iterator[dict[str, Any]]:
    """`train.preference.sampled.answers` rows of `judged` for each example whose question fits, in their order.

    An answer has at most the tokens that prompts leave free for one. The recipe's seed fixes all of them.
    """
    spec, encoder, more = recipe.train.preference.sampled, loaded.encoder(recipe.prompt), recipe.prompt.answer_room
    prompts = {}
    for example in examples:
        try:
            prompts[example.id] = encoder.prompt(example, "answer").prompt
        except QuestionTooLongError:
            continue  # counted with the examples that have no answer
    # Prompts of like length share a batch, the longest first: what needs most memory shows at once.
    order = [name for name in sorted(prompts, key=lambda name: -len(prompts[name])) for _ in range(spec.answers)]
    texts: dict[str, list[tuple[str, bool]]] = {name: [] for name in prompts}
    end = loaded.tokenizer.eos_token_id
    torch.manual_seed(recipe.seed)
    with Progress("The model writes answers", len(order), "answers") as progress:
        while order:
            size = batch_size(len(prompts[order[0]]), more, loaded.model)
            names, order = order[:size], order[size:]
            written = sampled(loaded, [prompts[name] for name in names], more, spec.temperature)
            for name, ids in zip(names, written, strict=True):
                texts[name].append((loaded.tokenizer.decode(ids, skip_special_tokens=True), ids[-1] == end))
            progress.advance(len(names))
    for example in examples:
        for text, ended in texts.get(example.id, []):
            yield judged(example, text, ended)
