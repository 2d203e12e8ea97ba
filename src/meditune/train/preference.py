"""Experimental: preference tuning (DPO) after supervised fine-tuning, with the same training loop.

The module turns the run's pairs into rows and computes DPO's reference. Options, files and metrics may change between
versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from meditune.config.recipe import Recipe
from meditune.data.preference.prepare_pairs import stored_pairs
from meditune.data.splits import Splits
from meditune.errors import DataError
from meditune.files import read_jsonl, write_jsonl
from meditune.models.load import LoadedModel
from meditune.models.shared_prefix_batch import Row, by_length, rows_of_pairs
from meditune.progress import Progress
from meditune.train.dataset import check_masks, token_facts
from meditune.train.losses import PairLoss, Reference, log_likelihoods
from meditune.train.replay import replay_rows
from meditune.train.trainer import plan_steps
from meditune.train.training_plan import Plan, visited_rows

REFERENCE = "reference.jsonl"
"""Stored beside predictions and models, so that a folder with this file accepts no other settings"""


def plan_pairs(loaded: LoadedModel, splits: Splits, recipe: Recipe, folder: Path) -> Plan:
    """Plan the preference tuning of `loaded`, which must still be at its starting point, on the run's pairs.

    Raises DataError if no pair fits.
    """
    spec, pairs = recipe.train, stored_pairs(folder)
    rows, fitting = rows_of_pairs(pairs.train, loaded.encoder(recipe.prompt))
    if not rows:
        raise DataError(
            f"None of the {len(pairs.train)} pairs fits into prompt.max_tokens={recipe.prompt.max_tokens} with answers "
            "that still differ. Raise prompt.max_tokens."
        )
    pool = replay_rows(loaded, recipe, splits, folder)
    check_masks([*rows, *pool])
    steps = plan_steps(len(rows), spec, recipe.seed)
    loaded.frozen.group(visited_rows(rows, steps), spec.batch_tokens)
    loss = PairLoss(spec.preference.beta, _reference(loaded, rows, spec.batch_tokens, folder))
    return Plan(
        rows=rows,
        fitted=token_facts(rows, len(pairs.train) - len(rows)),
        weights=loss,
        steps=steps,
        pool=pool,
        loss_of=loss,
        unit="pairs",
        row_introduction=f"One pair ({fitting[0].kind}): the same prompt with the preferred, then the rejected answer, "
        "each between « »:",
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
                likelihoods, batch = log_likelihoods(loaded.model, loaded.frozen, chosen, loaded.pad_id)
                found |= {row.encoded[0].id: both for row, both in zip(chosen, likelihoods.tolist(), strict=True)}
                progress.advance(batch.real_tokens)
        write_jsonl(path, ({"id": name, "chosen": both[0], "rejected": both[1]} for name, both in found.items()))
    return {row["id"]: (row["chosen"], row["rejected"]) for row in read_jsonl(path)}
