"""Experimental: preference tuning after supervised fine-tuning, through the same training loop.

Its options, files and figures may change from one version to the next.

What preference tuning reads: the run's pairs as rows, and for DPO what the model made of them before.

Answers that the model writes before it is tuned, of which pairs are made (`data/preference/prepare_pairs.py`).
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
    pairs = pairs_of_sampled(examples, read_jsonl(path), spec, rejects)
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
            written = sample_texts(loaded, [prompts[name] for name in names], more, spec.temperature)
            for name, ids in zip(names, written, strict=True):
                texts[name].append((loaded.tokenizer.decode(ids, skip_special_tokens=True), ids[-1] == end))
            progress.advance(len(names))
    for example in examples:
        for text, ended in texts.get(example.id, []):
            yield score_answer(example, text, ended)


REFERENCE = "reference.jsonl"
"""Lies beside what was measured and trained, so that a folder which has it takes no other settings"""


def plan_pairs(loaded: LoadedModel, splits: Splits, recipe: Recipe, folder: Path) -> Plan:
    """Plan the preference tuning of `loaded`, which must still be where training starts, on the pairs of the run.

    Raises DataError where none of them fits.
    """
    spec, pairs = recipe.train, stored_pairs(folder)
    if not pairs.train:
        pairs = pairs_of_own_answers(loaded, splits, recipe, folder)
    rows, kept = rows_of_pairs(pairs.train, loaded.encoder(recipe.prompt))
    if not rows:
        raise DataError(
            f"None of the {len(pairs.train)} pairs fits into prompt.max_tokens={recipe.prompt.max_tokens} with answers "
            "that still differ. Raise it."
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
        shown=f"One pair ({kept[0].kind}): after the same prompt the answer to prefer, then the one to avoid, each "
        "between « »:",
        further={
            "preference": {"beta": spec.preference.beta}
            | {key: pairs.facts[key] for key in ("source", "train", "held_out", "left_out")}
        },
    )


def _reference(loaded: LoadedModel, rows: Sequence[Row], batch_tokens: int, folder: Path) -> Reference:
    """Both answers' log-likelihoods under the untrained model, computed once for each pair and kept with the run.

    So the reference takes no second model and no second forward pass in a step. JSON gives every float back exactly.
    """
    path = folder / REFERENCE
    if not path.is_file():
        found: dict[str, list[float]] = {}
        with torch.no_grad(), Progress("Reference", sum(map(len, rows)), "tokens") as progress:
            for indices in by_length(rows, batch_tokens):
                chosen = [rows[index] for index in indices]
                likelihoods, _, batch = log_likelihoods(loaded.model, loaded.frozen, chosen, loaded.pad_id)
                found |= {row.encoded[0].id: both for row, both in zip(chosen, likelihoods.tolist(), strict=True)}
                progress.advance(batch.real_tokens)
        write_jsonl(path, ({"id": name, "chosen": both[0], "rejected": both[1]} for name, both in found.items()))
    return {row["id"]: (row["chosen"], row["rejected"]) for row in read_jsonl(path)}
