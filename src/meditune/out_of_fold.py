"""Out-of-fold decisions on the training items: each item is decided by a model that was trained without it.

Calibration and the threshold for abstaining need decisions on items that the model wasn't trained on. If few items have
decisions, a dev split is too small for this, and training lacks its items. Cross-validation instead trains one more
model for each fold of the training items, and pools the decisions (Platt 1999, "Probabilistic outputs for support
vector machines"). What is fitted to them is then applied to the model that was trained on all items.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from meditune.config.recipe import Recipe
from meditune.data.example import Example
from meditune.data.leakage import known_test_items, straddling
from meditune.data.retrieved_passages import TRAINING
from meditune.data.splits import Pair, Splits, by_group
from meditune.errors import DataError
from meditune.evaluate.predictions import Row, path_of, write_once
from meditune.files import read_jsonl, write_jsonl
from meditune.run_folder import run_behind, stage, training_data_of

if TYPE_CHECKING:
    from meditune.models.load import LoadedModel

FOLDER = "folds"
"""Folder in the run's folder with models and decisions of the folds, which exists until all folds are finished"""


def folds(examples: Sequence[Example], count: int, seed: int) -> list[list[Example]]:
    """Divide the examples into `count` folds of about the same size, stratified by source and decision.

    Related and similar examples are in the same fold. Raises DataError if a fold would have no decision.
    """
    joined: set[Pair] = set()
    while True:
        rest, divided = list(examples), []
        for left in range(count, 1, -1):
            rest, held = by_group(rest, 1 / left, seed + 1 + left, joined=joined)
            divided.append(held)
        divided.append(rest)
        if not all(any(example.decision for example in held) for held in divided):
            raise DataError(
                f"evaluate.calibration_folds: the {len(examples)} training examples can't be divided into {count} "
                "folds that each have a decision, because related and similar examples stay together. Use fewer folds."
            )
        similar = {pair for held in divided for pair in straddling(Splits(_other(examples, held), [], held, ""))}
        if similar <= joined:
            return divided
        joined |= similar


def fold_splits(splits: Splits, recipe: Recipe) -> list[tuple[Splits, list[Example]]]:
    """Return, for each fold, the splits for training without it, and its examples; empty without folds."""
    count = recipe.evaluate.calibration_folds
    divided = folds(splits.train, count, recipe.seed) if count else []
    return [(replace(splits, train=_other(splits.train, held)), held) for held in divided]


def decide_out_of_fold(
    splits: Splits, recipe: Recipe, folder: Path, start: str, load: Callable[[str], LoadedModel]
) -> None:
    """Train a model for each fold, and store all decisions as those of the tuned model on the dev split.

    `start` names the model that tuning starts from, and `load` loads it. A finished fold isn't computed again, so the
    same call resumes. Without folds, or if the decisions are stored already, this does nothing.
    """
    from meditune.evaluate.decision_calibration import dev_measure
    from meditune.evaluate.weights_backend import Scoring
    from meditune.train.finetune import fine_tune
    from meditune.train.replay import FILE as REPLAY

    stored = path_of(folder / "predictions", "tuned", "dev_decision")
    if not recipe.evaluate.calibration_folds or stored.is_file():
        return
    untracked = recipe.model_copy(update={"train": recipe.train.model_copy(update={"tracker": "none"})})
    rows: dict[str, Row] = {}
    for number, (others, held) in enumerate(fold_splits(splits, recipe), start=1):
        place = folder / FOLDER / str(number)
        finished = place.with_suffix(".jsonl")
        if not finished.is_file():
            with stage(folder, f"cross-validate, fold {number}"):
                place.mkdir(parents=True, exist_ok=True)
                is_trained = (place / "model" / "training.json").is_file()
                loaded = load(str(place / "model") if is_trained else start)
                if not is_trained:
                    for name in (TRAINING, REPLAY):
                        if (folder / name).is_file():
                            shutil.copyfile(folder / name, place / name)
                    fine_tune(loaded, others, untracked, place, dev_measure(loaded, others.dev, recipe))
                decided = [example for example in held if example.decision]
                scoring = Scoring(loaded.encoder(recipe.prompt), decided, [])
                scored = scoring.predictions(loaded, recipe.train.micro_batch_tokens, f"Scoring fold {number}")
                write_jsonl(finished, scored.decision)
                shutil.rmtree(place)
        rows |= {row["id"]: row for row in read_jsonl(finished)}
    write_jsonl(stored, (rows[example.id] for example in splits.train if example.decision))
    shutil.rmtree(folder / FOLDER)


def copy_out_of_fold(model: str, splits: Splits, recipe: Recipe, folder: Path) -> None:
    """Store the out-of-fold decisions of the run that trained `model` as those of the evaluated model.

    Does nothing without folds, or if the model wasn't trained on these items, because it can then decide them itself.
    Raises DataError if it was trained on them, but its run has no out-of-fold decisions on them.
    """
    decided = [example for example in splits.train if example.decision]
    if not recipe.evaluate.calibration_folds or not known_test_items(*training_data_of(model), decided):
        return
    run = run_behind(Path(model).expanduser())
    stored = path_of(run / "predictions", "tuned", "dev_decision")
    rows = read_jsonl(stored) if stored.is_file() else []
    if {row["id"]: row["reference"] for row in rows} != {example.id: example.decision for example in decided}:
        raise DataError(
            f"evaluate.calibration_folds: {model} was trained on some of the {len(decided)} training items, and {run} "
            "contains no out-of-fold decisions on them. Train the model with this recipe, or set evaluate.calibrate to "
            "none and evaluate.abstain_target to null."
        )
    write_once(folder / "predictions", "model", "dev_decision", lambda: rows)


def _other(examples: Sequence[Example], held: Sequence[Example]) -> list[Example]:
    ids = {example.id for example in held}
    return [example for example in examples if example.id not in ids]
