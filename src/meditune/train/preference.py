"""Experimental: preference tuning after supervised fine-tuning, with the same training loop.

The module turns the run's pairs into rows, computes DPO's reference, and samples answers from the model before tuning
to make pairs of (`data/preference/prepare_pairs.py`). Options, files and metrics may change between versions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from meditune.config.recipe import Recipe
from meditune.data.example import Example
from meditune.data.preference.prepare_pairs import (
    PairSets,
    pairs_of_sampled,
    score_answer,
    stored_pairs,
    usable,
    with_training_pairs,
)
from meditune.data.readers.tables import Rejects
from meditune.data.splits import Splits
from meditune.errors import DataError
from meditune.files import read_jsonl, write_jsonl
from meditune.models.generation import batch_size, sample_texts
from meditune.models.load import LoadedModel
from meditune.models.shared_prefix_batch import Row, by_length, rows_of_pairs
from meditune.progress import Progress
from meditune.prompts import QuestionTooLongError
from meditune.train.dataset import check_masks, token_facts
from meditune.train.losses import PairLoss, Reference, log_likelihoods
from meditune.train.replay import replay_rows
from meditune.train.trainer import plan_steps
from meditune.train.training_plan import Plan, visited_rows

FILE = "samples.jsonl"
"""Stored beside predictions and models, so that a folder with this file accepts no other settings"""


def pairs_of_own_answers(loaded: LoadedModel, splits: Splits, recipe: Recipe, folder: Path) -> PairSets:
    """Return the run's pairs, with training pairs made of answers that `loaded` generates.

    It answers the training examples that have a context. The answers are stored in `folder/samples.jsonl`, so that a
    resumed run has the same answers. Raises DataError where they yield no pair.
    """
    examples, spec, rejects = usable(splits.train), recipe.train.preference.sampled, Rejects()
    path = folder / FILE
    if not path.is_file():
        write_jsonl(path, answers(loaded, examples, recipe))
    pairs = pairs_of_sampled(examples, read_jsonl(path), spec, rejects)
    if not pairs:
        raise DataError(
            f"{path}: none of {len(examples)} examples has two answers whose scores differ by "
            f"train.preference.sampled.margin ({spec.margin:g}). Choose another --output, and lower the margin, or "
            "raise answers or temperature under train.preference.sampled."
        )
    return with_training_pairs(folder, pairs, rejects)


def answers(loaded: LoadedModel, examples: Sequence[Example], recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Yield `train.preference.sampled.answers` scored answers for each example whose question fits, in order.

    An answer has at most the number of tokens that prompts leave free for one. The recipe's seed determines all
    answers.
    """
    spec, encoder, more = recipe.train.preference.sampled, loaded.encoder(recipe.prompt), recipe.prompt.answer_room
    prompts = {}
    for example in examples:
        try:
            prompts[example.id] = encoder.prompt(example, "answer").prompt
        except QuestionTooLongError:
            continue  # counted among the examples without an answer
    # Prompts of similar length share a batch, longest first, so that memory peaks at the start.
    order = [name for name in sorted(prompts, key=lambda name: -len(prompts[name])) for _ in range(spec.answers)]
    texts: dict[str, list[tuple[str, bool]]] = {name: [] for name in prompts}
    end = loaded.tokenizer.eos_token_id
    torch.manual_seed(recipe.seed)
    with Progress("Sampling answers", len(order), "answers") as progress:
        while order:
            size = batch_size(len(prompts[order[0]]), more, loaded.model)
            names, order = order[:size], order[size:]
            written = sample_texts(loaded, [prompts[name] for name in names], more, spec.temperature)
            for name, ids in zip(names, written, strict=True):
                texts[name].append((loaded.tokenizer.decode(ids, skip_special_tokens=True), ids[-1] == end))
            progress.advance(len(names))
    for example in examples:
        for text, ended in texts.get(example.id, []):
            yield score_answer(example, text, ended)


REFERENCE = "reference.jsonl"
"""Stored beside predictions and models, so that a folder with this file accepts no other settings"""


def plan_pairs(loaded: LoadedModel, splits: Splits, recipe: Recipe, folder: Path) -> Plan:
    """Plan the preference tuning of `loaded`, which must still be at its starting point, on the run's pairs.

    Raises DataError where no pair fits.
    """
    spec, pairs = recipe.train, stored_pairs(folder)
    if not pairs.train:
        pairs = pairs_of_own_answers(loaded, splits, recipe, folder)
    rows, kept = rows_of_pairs(pairs.train, loaded.encoder(recipe.prompt))
    if not rows:
        raise DataError(
            f"None of the {len(pairs.train)} pairs fits into prompt.max_tokens={recipe.prompt.max_tokens} with answers "
            "that still differ. Raise prompt.max_tokens."
        )
    pool = replay_rows(loaded, recipe, splits, folder)
    check_masks([*rows, *pool])
    steps = plan_steps(len(rows), spec, recipe.seed)
    loaded.frozen.group(visited_rows(rows, steps), spec.micro_batch_tokens)
    known = _reference(loaded, rows, spec.micro_batch_tokens, folder) if spec.objective == "dpo" else None
    loss = PairLoss(spec.preference.beta, known)
    return Plan(
        rows=rows,
        fitted=token_facts(rows, len(pairs.train) - len(rows)),
        weights=loss,
        mix=None,
        steps=steps,
        pool=pool,
        replay=None,
        loss_of=loss,
        unit="pairs",
        shown=f"One pair ({kept[0].kind}): the same prompt with the preferred, then the rejected answer, each "
        "between « »:",
        further={
            "preference": {"beta": spec.preference.beta}
            | {key: pairs.facts[key] for key in ("source", "train", "held_out", "left_out")}
        },
    )


def _reference(loaded: LoadedModel, rows: Sequence[Row], batch_tokens: int, folder: Path) -> Reference:
    """Return both answers' log-likelihoods under the untrained model, computed once per pair and stored with the run.

    So the reference needs no second model and no second forward pass per step. JSON preserves every float exactly.
    """
    path = folder / REFERENCE
    if not path.is_file():
        found: dict[str, list[float]] = {}
        with torch.no_grad(), Progress("Reference likelihoods", sum(map(len, rows)), "tokens") as progress:
            for indices in by_length(rows, batch_tokens):
                chosen = [rows[index] for index in indices]
                likelihoods, _, batch = log_likelihoods(loaded.model, loaded.frozen, chosen, loaded.pad_id)
                found |= {row.encoded[0].id: both for row, both in zip(chosen, likelihoods.tolist(), strict=True)}
                progress.advance(batch.real_tokens)
        write_jsonl(path, ({"id": name, "chosen": both[0], "rejected": both[1]} for name, both in found.items()))
    return {row["id"]: (row["chosen"], row["rejected"]) for row in read_jsonl(path)}
