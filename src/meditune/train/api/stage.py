"""The training stage of a run whose base model is behind an API; it leaves a folder that says where the model is."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from meditune.data import trained_on
from meditune.data.example import Example
from meditune.errors import RecipeError
from meditune.files import replacing_folder, write_json, write_jsonl
from meditune.models.api.client import Client
from meditune.models.api.model import ApiModel
from meditune.prompts import save_format
from meditune.recipe import Recipe
from meditune.train.api.card import model_card
from meditune.train.api.job import FOLDER, JOB, ROWS, events, tune
from meditune.train.api.rows import RowFacts, chats, check

STRATEGY = "api"
"""In training.json and report.json, in place of the recipe's strategy."""


def prepare_rows(model: ApiModel, examples: Any, recipe: Recipe, folder: Path) -> RowFacts:
    """Write and check the training file, unless a job was begun with it; returns what it holds.

    Raises RecipeError where the API can't train as the recipe says, and DataError where it would refuse the rows.
    """
    if recipe.train.epochs != int(recipe.train.epochs) or recipe.train.epochs > 50:
        raise RecipeError(
            f"train.epochs: {recipe.train.epochs:g}; an API trains for a whole number of epochs from 1 to 50."
        )
    if recipe.train.dev.is_on:
        raise RecipeError(
            "train.dev: an API's training can't be measured on its way. Leave patience and keep_best out for it."
        )
    if recipe.data.balance.weights:
        raise RecipeError(
            "data.balance.weights: an API reads every row once in an epoch. Take a cap or a share, or leave them out."
        )
    rows, facts = chats(examples, recipe, model)
    path = folder / FOLDER / ROWS
    if not (folder / FOLDER / JOB).is_file():
        write_jsonl(path, rows)
    check(path)
    print(
        f"{facts.rows} training rows in {path}, about {facts.tokens:,} tokens, the longest {facts.longest:,}; "
        f"{facts.dropped} left out because they are longer than {model.spec.context_tokens:,}.\n"
        "Of the keys under train, an API follows tasks and epochs; the rest is its own choice, or stands in "
        "model.api.hyperparameters.",
        file=sys.stderr,
    )
    return facts


def fine_tune(
    client: Client, model: ApiModel, facts: RowFacts, examples: Sequence[Example], recipe: Recipe, folder: Path
) -> ApiModel:
    """Tune through the API, leave `folder/model` with a record of `examples`, and return the tuned model."""
    started = time.monotonic()
    job = tune(client, model, recipe, folder)
    steps = _steps(client, job["id"])
    write_jsonl(folder / "training.jsonl", steps)
    tuned = ApiModel(job["fine_tuned_model"], model.spec, recipe.prompt, model.system)
    training = {
        "strategy": STRATEGY,
        **asdict(facts),
        "trained_tokens": job.get("trained_tokens"),
        "epochs": int(recipe.train.epochs),
        "wall_seconds": round(time.monotonic() - started, 1),
        "job": job["id"],
        "model": tuned.name,
        **_seconds(job),
        **({"steps": steps[-1]["step"], "final_loss": steps[-1]["loss"]} if steps else {}),
    }
    with replacing_folder(folder / "model") as partial:
        tuned.save(partial, model.name)
        save_format(recipe.prompt, partial)
        write_json(partial / "training.json", training)
        write_json(partial / trained_on.FILE_NAME, trained_on.record(examples))
        (partial / "README.md").write_text(model_card(recipe, training, None), encoding="utf-8")
    return tuned


def _seconds(job: dict[str, Any]) -> dict[str, int]:
    begun, ended = job.get("created_at"), job.get("finished_at")
    return {"seconds": ended - begun} if isinstance(begun, int) and isinstance(ended, int) else {}


def _steps(client: Client, job_id: str) -> list[dict[str, Any]]:
    """Step and loss of each event with metrics."""
    told = [event.get("data") or {} for event in events(client, job_id, set()) if event.get("type") == "metrics"]
    steps = [{"step": data["step"], "loss": data["train_loss"]} for data in told if {"step", "train_loss"} <= set(data)]
    return sorted(steps, key=lambda step: step["step"])
