"""What preference tuning reads: the run's pairs as rows, and for DPO what the model made of them before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from meditune.data.preference.prepare import stored_pairs
from meditune.data.splits import Splits
from meditune.errors import DataError
from meditune.files import read_jsonl, write_jsonl
from meditune.models.load import LoadedModel
from meditune.models.pairs import rows_of_pairs
from meditune.models.rows import Row, by_length
from meditune.progress import Progress
from meditune.recipe import Recipe
from meditune.train.encode import check_masks, token_facts
from meditune.train.plan import Plan, visited
from meditune.train.preference.losses import PairLoss, Reference, log_likelihoods
from meditune.train.preference.written import pairs_of_own_answers
from meditune.train.replay_text import replay_rows
from meditune.train.sft import plan_steps

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
    loaded.frozen.group(visited(rows, steps), spec.micro_batch_tokens)
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
