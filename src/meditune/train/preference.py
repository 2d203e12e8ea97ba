"""Experimental: preference tuning (DPO, KTO) after supervised fine-tuning, with the same training loop.

The module turns the run's pairs or single answers into rows and computes the reference of the loss. Options, files and
metrics may change between versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from meditune.config.recipe import Recipe
from meditune.data.preference.pairs import DOWN, UP
from meditune.data.preference.prepare_pairs import stored_pairs
from meditune.data.splits import Splits
from meditune.errors import DataError
from meditune.files import read_jsonl, write_jsonl
from meditune.models.load import LoadedModel
from meditune.models.shared_prefix_batch import Row, by_length, rows_of_pairs
from meditune.progress import Progress
from meditune.train.dataset import check_masks, token_facts
from meditune.train.losses import PairLoss, Reference, SingleAnswerLoss, log_likelihoods, mismatched
from meditune.train.replay import replay_rows
from meditune.train.trainer import plan_steps
from meditune.train.training_plan import Plan, visited_rows

REFERENCE = "reference.jsonl"
"""Stored beside predictions and models, so that a folder with this file accepts no other settings"""


def plan_pairs(loaded: LoadedModel, splits: Splits, recipe: Recipe, folder: Path) -> Plan:
    """Plan the preference tuning of `loaded`, which must still be at its starting point, on the run's pairs.

    Raises DataError if no pair fits, or for KTO only answers with the same thumb.
    """
    spec, pairs, single = recipe.train, stored_pairs(folder), recipe.train.objective == "kto"
    rows, fitting = rows_of_pairs(pairs.train, loaded.encoder(recipe.prompt))
    desirable = {pair.id: bool(pair.chosen) for pair in fitting}
    if not rows:
        raise DataError(
            f"None of the {len(pairs.train)} pairs fits into prompt.max_tokens={recipe.prompt.max_tokens} with answers "
            "that still differ. Raise prompt.max_tokens."
        )
    if single and len(set(desirable.values())) < 2:
        raise DataError(
            f"Of the answers that fit into prompt.max_tokens={recipe.prompt.max_tokens}, all have thumbs "
            f"{fitting[0].kind}. Raise prompt.max_tokens."
        )
    pool = replay_rows(loaded, recipe, splits, folder)
    check_masks([*rows, *pool])
    steps, limit = plan_steps(len(rows), spec, recipe.seed), recipe.prompt.max_tokens
    others = [each for step in steps for each in mismatched([rows[index] for index in step], limit)] if single else []
    others = list({row.encoded[0].id: row for row in others}.values())
    loaded.frozen.group([*visited_rows(rows, steps), *others], spec.batch_tokens)
    reference = _reference(loaded, [*rows, *others], spec.batch_tokens, folder)
    facts: dict[str, Any] = {"beta": spec.preference.beta}
    shown = "pair", "the same prompt with the preferred, then the rejected answer, each"
    loss = PairLoss(spec.preference.beta, reference)
    if single:
        shown = "answer", "the prompt with the answer, which is"
        loss = by_thumbs = SingleAnswerLoss(spec.preference.beta, reference, desirable, limit)
        facts["weights"] = dict(zip((UP, DOWN), by_thumbs.weights, strict=True))
    return Plan(
        rows=rows,
        fitted=token_facts(rows, len(pairs.train) - len(rows)),
        weights=loss,
        steps=steps,
        pool=pool,
        loss_of=loss,
        prepare_step=loss.prepare_step,
        unit="rated answers" if single else "pairs",
        row_introduction=f"One {shown[0]} ({fitting[0].kind}): {shown[1]} between « »:",
        further={"preference": facts | {key: pairs.facts[key] for key in ("source", "train", "held_out", "left_out")}},
    )


def _reference(loaded: LoadedModel, rows: Sequence[Row], batch_tokens: int, folder: Path) -> Reference:
    """Return the answers' log-likelihoods under the untrained model, computed once per row and stored with the run.

    So the reference needs no second model and no second forward pass per step. JSON preserves every float exactly.
    """
    path = folder / REFERENCE
    if not path.is_file():
        found: dict[str, list[float]] = {}
        with torch.no_grad(), Progress("Reference likelihoods", sum(map(len, rows)), "tokens") as progress:
            for indices in by_length(rows, batch_tokens):
                chosen = [rows[index] for index in indices]
                likelihoods, batch = log_likelihoods(loaded.model, loaded.frozen, chosen, loaded.pad_id)
                found |= {row.encoded[0].id: each for row, each in zip(chosen, likelihoods.tolist(), strict=True)}
                progress.advance(batch.real_tokens)
        names = ("chosen", "rejected") if len(rows[0].encoded) == 2 else ("answer",)
        write_jsonl(path, ({"id": id, **dict(zip(names, each, strict=True))} for id, each in found.items()))
    return {row.pop("id"): tuple(row.values()) for row in read_jsonl(path)}
