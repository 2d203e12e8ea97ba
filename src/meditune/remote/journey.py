"""The stages of a run, in order, for a model behind an API.

    check the rows -> estimate -> ask -> measure the base -> tune -> measure the tuned

Nothing is sent before the answer to the question.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

from meditune.data.prepare import Prepared
from meditune.data.restrictions import refuse_restricted_for_api
from meditune.data.retrieved import in_training
from meditune.errors import DataError
from meditune.evaluate.api import ApiMeasuring
from meditune.folder import RECIPE, stage
from meditune.grounding.measured import shown
from meditune.models.api.client import Client
from meditune.models.api.model import ApiModel, find
from meditune.recipe import PromptFormat, Recipe
from meditune.recipes.loading import load_recipe
from meditune.remote.estimate import Approve, Estimate, ask_once
from meditune.train.api.job import JOBS, State, events
from meditune.train.api.stage import fine_tune, prepare_rows


def tune(
    model: ApiModel, data: Prepared, recipe: Recipe, folder: Path, approve: Approve, measured: bool = True
) -> None:
    """Tune through the API, and measure the model before and after unless told not to; what is done stays.

    Raises DataError where a row may not leave this machine, and MedituneError where the cost isn't approved of.
    """
    examples = data.splits.measured(recipe.evaluate.split) if measured else []
    dev, found = (data.splits.dev, shown(recipe, examples, folder)) if measured else ([], [])
    measuring = ApiMeasuring(recipe, examples, folder / "predictions", dev, found)
    tuned, form = find(str(folder / "model"), recipe.model.api), recipe.prompt
    unmeasured = [name for name in ("base", "tuned") if not measuring.is_done(name)]
    if tuned and not unmeasured:
        return
    with _allowed(model, data) as client:
        facts = None if tuned else prepare_rows(model, in_training(data.splits.train, folder), recipe, folder)
        begun = facts is None or State.of(folder).job
        estimate = _measurements(measuring, model, form, len(unmeasured))
        if facts and not begun:
            estimate = replace(estimate, rows=facts.rows, training=facts.tokens * int(recipe.train.epochs))
        ask_once(estimate, model, folder, approve)
        if "base" in unmeasured:
            with stage(folder, "measure base"):
                measuring.measure(client, model, form, "base")
        if facts:
            with stage(folder, "train"):
                tuned = fine_tune(client, model, facts, data.splits.train, recipe, folder)
        if tuned and "tuned" in unmeasured:
            with stage(folder, "measure tuned"):
                measuring.measure(client, tuned, form, "tuned")


def measure(model: ApiModel, data: Prepared, recipe: Recipe, folder: Path, approve: Approve) -> None:
    """Measure one model; what is done stays. Raises as `tune`."""
    examples = data.splits.measured(recipe.evaluate.split)
    found = shown(recipe, examples, folder)
    measuring = ApiMeasuring(recipe, examples, folder / "predictions", data.splits.dev, found)
    if measuring.is_done("model"):
        return
    form = model.form or recipe.prompt
    with _allowed(model, data) as client:
        ask_once(_measurements(measuring, model, form, 1), model, folder, approve)
        with stage(folder, "measure"):
            measuring.measure(client, model, form, "model")


def status(folder: Path) -> str:
    """How the run's training job is, as the API says, with its last events."""
    model, state, job_id = _job(folder)
    with model.client() as client:
        job = client.get(f"{JOBS}/{job_id}")
        last = [str(event.get("message")) for event in islice(events(client, job_id, set()), 5)]
    lines = [f"{job_id} at {model.spec.host}: {job.get('status')}", *(f"  {message}" for message in reversed(last))]
    if job.get("fine_tuned_model"):
        lines.append(f"Tuned model: {job['fine_tuned_model']}")
    return "\n".join(lines + [f"Earlier job {each['job']}: {each['status']}" for each in state.ended])


def cancel(folder: Path) -> str:
    """Ask the API to end the run's training job; says how it is then."""
    model, _, job_id = _job(folder)
    with model.client() as client:
        job = client.post(f"{JOBS}/{job_id}/cancel")
    return f"{job_id} at {model.spec.host}: {job.get('status')}"


def _allowed(model: ApiModel, data: Prepared) -> Client:
    refuse_restricted_for_api((row for rows in data.splits.named().values() for row in rows), model.title)
    return model.client()


def _measurements(measuring: ApiMeasuring, model: ApiModel, form: PromptFormat, count: int) -> Estimate:
    if not count:
        return Estimate()
    read, written = measuring.tokens(model, form)
    requests = sum(map(len, measuring.items.values()))
    return Estimate(requests=count * requests, read=count * read, written=count * written)


def _job(folder: Path) -> tuple[ApiModel, State, str]:
    if not (folder / RECIPE).is_file():
        raise DataError(f"{folder} holds no run: {RECIPE} is missing. Give the --output folder of `meditune run`.")
    recipe = load_recipe(str(folder / RECIPE)).recipe
    model, state = find(recipe.model.base, recipe.model.api), State.of(folder)
    if model is None or state.job is None:
        raise DataError(f"{folder} has no training job at an API.")
    return model, state, state.job
