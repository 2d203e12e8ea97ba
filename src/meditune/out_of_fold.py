"""Decisions to fit calibration to: on the dev split, or out of fold on the training items.

Calibration and the threshold for abstaining need decisions on items that the model wasn't trained on. If few items have
decisions, a dev split is too small for this, and its items are missing from training. Cross-validation instead
trains one more model for each fold of the training items, predicts the decisions on this fold with it, and pools the
decisions (Platt 1999, "Probabilistic outputs for support vector machines"). The correction that is fitted to these
decisions is then applied to the model that was trained on all items.
"""

from __future__ import annotations

import gc
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
from meditune.hardware import release_memory
from meditune.run_folder import run_behind, stage, training_data_of

if TYPE_CHECKING:
    from meditune.models.load import LoadedModel

FOLDER = "folds"
"""Folder in the run's folder with models and decisions of the folds, which exists until all folds are finished"""
MIN_ITEMS = 10
"""Minimum number of decisions to fit to"""


def unseen_items(model: str, splits: Splits, recipe: Recipe) -> list[Example]:
    """Return the items to fit to: those with a decision on which the model `model` wasn't trained before this run.

    They come from the dev split or, with folds, from the training split; nothing is returned if nothing is fitted.
    Raises DataError if fewer than MIN_ITEMS are left because the model was trained on the others.
    """
    if not recipe.evaluate.fits_decisions:
        return []
    decided = [example for example in _to_fit(splits, recipe) if example.decision]
    known = {leak.test for leak in known_test_items(*training_data_of(model), decided)}
    unseen = [example for example in decided if example.id not in known]
    if known and len(unseen) < MIN_ITEMS:
        raise DataError(
            f"{model} was trained on {len(known)} of the {len(decided)} items that evaluate.calibrate and "
            "evaluate.abstain_target would be fitted to, so its decisions on them would look too good. Evaluate it "
            "with the recipe that it was trained with, train it with evaluate.calibration_folds, or set "
            "evaluate.calibrate to none and evaluate.abstain_target to null."
        )
    return unseen


def _to_fit(splits: Splits, recipe: Recipe) -> list[Example]:
    return splits.train if recipe.evaluate.calibration_folds else splits.dev


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
                "folds that each have a decision. Related and similar examples stay together. Use more examples or, if "
                "there are more than 2 folds, fewer folds; or set evaluate.calibration_folds to 0."
            )
        similar = {pair for held in divided for pair in straddling(Splits(_other(examples, held), [], held, ""))}
        if similar <= joined:
            return divided
        joined |= similar


Fold = tuple[Splits, list[Example]]
"""The splits for training without a fold, and the fold's examples"""


def missing_folds(splits: Splits, recipe: Recipe, folder: Path) -> list[Fold]:
    """Return the folds; empty if the recipe has none, or if the run's folder already has all decisions."""
    if not recipe.evaluate.calibration_folds:
        return []
    if _stored(folder).is_file():
        # A run that was killed after storing the decisions may have left its folds behind.
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        return []
    divided = folds(splits.train, recipe.evaluate.calibration_folds, recipe.seed)
    return [(replace(splits, train=_other(splits.train, held)), held) for held in divided]


def decide_out_of_fold(
    divided: Sequence[Fold],
    recipe: Recipe,
    folder: Path,
    start: str,
    load: Callable[[str], LoadedModel],
    items: Sequence[Example],
) -> None:
    """Train a model for each fold, and store the decisions on `items` as those of the tuned model on the dev split.

    A fold's model is trained for as many steps as the model on all items: with fewer steps, it would be less confident,
    so the fitted temperature would be too low. `start` names the model that tuning starts from, and `load` loads it. A
    finished fold isn't computed again, so the same call resumes.
    """
    from meditune.train.trainer import epoch_steps

    rows: dict[str, Row] = {}
    wanted = {example.id for example in items}
    for number, (others, held) in enumerate(divided, start=1):
        finished = folder / FOLDER / f"{number}.jsonl"
        if not finished.is_file():
            with stage(folder, f"cross-validate, fold {number}"):
                decided = [example for example in held if example.id in wanted]
                kept, whole = len(others.train), len(others.train) + len(held)
                longer = epoch_steps(whole, recipe.train) / epoch_steps(kept, recipe.train)
                trained = recipe.train.model_copy(update={"tracker": "none", "epochs": recipe.train.epochs * longer})
                of_fold = recipe.model_copy(update={"train": trained})
                write_jsonl(finished, _decided(number, others, decided, of_fold, folder, start, load))
            # Free the memory of this fold's model before the next one is loaded.
            gc.collect()
            release_memory()
        shutil.rmtree(folder / FOLDER / str(number), ignore_errors=True)
        rows |= {row["id"]: row for row in read_jsonl(finished)}
    if divided:
        write_jsonl(_stored(folder), (rows[example.id] for example in items if example.id in rows))
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _decided(
    number: int,
    splits: Splits,
    decided: Sequence[Example],
    recipe: Recipe,
    folder: Path,
    start: str,
    load: Callable[[str], LoadedModel],
) -> list[Row]:
    """Train a fold's model on the training split, unless an interrupted call did, and return its decisions."""
    from meditune.evaluate.decision_calibration import dev_measure
    from meditune.evaluate.weights_backend import Scoring
    from meditune.train.finetune import fine_tune
    from meditune.train.replay import FILE as REPLAY

    place = folder / FOLDER / str(number)
    place.mkdir(parents=True, exist_ok=True)
    if (place / "model" / "training.json").is_file():
        loaded = load(str(place / "model"))
    else:
        loaded = load(start)
        for name in (TRAINING, REPLAY):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, place / name)
        fine_tune(loaded, splits, recipe, place, dev_measure(loaded, splits.dev, recipe))
    encoder = loaded.encoder(recipe.prompt)
    scoring = Scoring(encoder, encoder.fitting(decided, "decision"), [])
    return scoring.predictions(loaded, recipe.train.micro_batch_tokens, f"Scoring fold {number}").decision


def copy_out_of_fold(model: str, splits: Splits, recipe: Recipe, folder: Path) -> None:
    """Store the out-of-fold decisions of the run that trained `model`, if any, as those of the evaluated model.

    With folds, a model that was trained on none of the items decides them itself.
    """
    stored = _stored(run_behind(Path(model).expanduser()))
    if not recipe.evaluate.calibration_folds or not stored.is_file():
        return
    decided = {example.id: example.decision for example in splits.train if example.decision}
    rows = [row for row in read_jsonl(stored) if decided.get(row["id"]) == row["reference"]]
    known = known_test_items(*training_data_of(model), [each for each in splits.train if each.decision])
    if known and len(rows) >= MIN_ITEMS:
        write_once(folder / "predictions", "model", "dev_decision", lambda: rows)


def _stored(folder: Path) -> Path:
    return path_of(folder / "predictions", "tuned", "dev_decision")


def _other(examples: Sequence[Example], held: Sequence[Example]) -> list[Example]:
    ids = {example.id for example in held}
    return [example for example in examples if example.id not in ids]
