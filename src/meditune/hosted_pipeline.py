"""Run the stages of a run whose model is behind an API, after an estimate of the cost was approved.

    check the rows -> estimate -> ask -> measure the base -> tune -> measure the tuned

Nothing is sent before the estimate is approved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from meditune.config.data_options import PromptFormat
from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import Recipe
from meditune.data.prepare import Prepared
from meditune.data.read_sources import refuse_restricted_for_api
from meditune.data.retrieved_passages import in_training
from meditune.errors import DataError, MedituneError
from meditune.evaluate.backends import ApiBackend, estimate_tokens
from meditune.evaluate.evaluator import API, Evaluator
from meditune.evaluate.suites import open_answers
from meditune.evaluate.suites.medical_suites import stored_suites
from meditune.files import read_json, write_json
from meditune.http_client import RETRY_TO_RESUME
from meditune.models.api_client import RULE, ApiModel, Client, find_api_model
from meditune.retrieval_augmentation import with_retrieved
from meditune.run_folder import RECIPE, stage
from meditune.train.hosted_job import FOLDER, JOBS, State, events, fine_tune, prepare_rows

APPROVED = "approved.json"

Approve = Callable[[str], None]
"""A function that is given the estimate; it raises MedituneError if the user doesn't approve."""


@dataclass(frozen=True)
class Estimate:
    """The amount of data that is still to be sent; tokens are estimated."""

    rows: int = 0  # training rows to be uploaded
    training: int = 0  # training tokens over all epochs
    requests: int = 0
    read: int = 0
    written: int = 0  # output tokens, at most

    def text(self, model: ApiModel, prompts: str = "test prompts") -> str:
        """Return a description for people: the destination, the amount and the cost."""
        spec = model.spec
        key = f"with the key in {spec.key_variable}" if spec.key_variable else "without a key"
        lines = [f"To be sent to {spec.url}, {key}:"]
        if self.rows:
            lines.append(f"  {self.rows:,} training rows, about {self.training:,} training tokens")
        if self.requests:
            lines.append(
                f"  {self.requests:,} {prompts}: about {self.read:,} input tokens and at most {self.written:,} "
                "output tokens"
            )
        parts = {"training": (self.rows, self.training), "input": (self.requests, self.read)}
        parts["output"] = (self.requests, self.written)
        asked = {kind: tokens for kind, (count, tokens) in parts.items() if count}
        costs = {kind: tokens * spec.prices[kind] / 1e6 for kind, tokens in asked.items() if kind in spec.prices}
        unknown = [f"{spec.KEY}.prices.{kind}" for kind in asked if kind not in spec.prices]
        if costs:
            each = ", ".join(f"{kind} {cost:,.2f}" for kind, cost in costs.items())
            lines.append(f"Cost: about {sum(costs.values()):,.2f} ({each}), in the currency of the prices.")
        if unknown:
            what = "The rest of the cost is" if costs else "The cost is"
            lines.append(f"{what} unknown: set {', '.join(unknown)} to the provider's prices per million tokens.")
        lines.append(f"Token counts are estimates: {RULE}.")
        return "\n".join(lines)


def refuse(text: str) -> None:
    """Reject every estimate."""
    raise MedituneError(
        f"Nothing was sent. This command sends data to another machine and costs money:\n{text}\nTo agree, add --yes."
    )


def ask_once(
    estimate: Estimate,
    model: ApiModel,
    folder: Path,
    approve: Approve,
    prompts: str = "test prompts",
    file: str = APPROVED,
) -> None:
    """Ask for approval, unless at least as much was approved in this folder before and no job has failed since."""
    what = {"model": model.name, "url": model.spec.url, "failed": len(State.load(folder).ended)}
    path = folder / FOLDER / file
    earlier: dict[str, Any] = read_json(path) if path.is_file() else {}
    if what.items() <= earlier.items() and all(left <= earlier[name] for name, left in asdict(estimate).items()):
        return
    approve(estimate.text(model, prompts))
    write_json(path, what | asdict(estimate))


JUDGE_APPROVED = "judge_approved.json"


def approve_judge(recipe: Recipe, folder: Path, models: Sequence[str], approve: Approve) -> None:
    """Ask for approval of what the judge will be sent, unless it was given before; answers count at full length."""
    judge = open_answers.api_judge(recipe)
    requests, read, written = open_answers.planned(recipe, folder, models) if judge else (0, 0, 0)
    if judge and requests:
        estimate = Estimate(requests=requests, read=read, written=written)
        ask_once(estimate, judge, folder, approve, "questions to the judge of answers", JUDGE_APPROVED)


def judge_suites(recipe: Recipe, folder: Path, models: Sequence[str]) -> None:
    """Have the models' open answers judged, as far as they aren't yet."""
    gradings = open_answers.pending(recipe, folder, models)
    if not gradings:
        return
    with stage(folder, "judge answers"):
        judge = open_answers.api_judge(recipe)
        if judge is None:
            open_answers.grade_suites(gradings, open_answers.LocalJudge(str(recipe.evaluate.suite_judge)))
            return
        with judge.client(RETRY_TO_RESUME) as client:
            open_answers.grade_suites(gradings, open_answers.ApiJudge(judge, client))


def tune(
    model: ApiModel, data: Prepared, recipe: Recipe, folder: Path, approve: Approve, measured: bool = True
) -> None:
    """Tune through the API, and measure the model before and after if `measured`; keep finished parts.

    Raises DataError if a row may not leave this machine, and MedituneError if the cost isn't approved.
    """
    evaluator = _evaluator(data, recipe, folder) if measured else None
    tuned, form = find_api_model(str(folder / "model"), recipe.model.api), recipe.prompt
    unmeasured = [name for name in ("base", "tuned") if evaluator and not evaluator.is_done(name)]
    if tuned and not unmeasured:
        return
    with _allowed(model, data) as client:
        facts = None if tuned else prepare_rows(model, in_training(data.splits.train, folder), recipe, folder)
        begun = facts is None or State.load(folder).job
        estimate = _measurements(evaluator, model, form, recipe, len(unmeasured))
        if facts and not begun:
            estimate = replace(estimate, rows=facts.rows, training=facts.tokens * int(recipe.train.epochs))
        ask_once(estimate, model, folder, approve)
        if evaluator and "base" in unmeasured:
            with stage(folder, "measure base"):
                evaluator.measure(ApiBackend(client, model, form, recipe), "base")
        if facts:
            with stage(folder, "train"):
                tuned = fine_tune(client, model, facts, data.splits.train, recipe, folder)
        if evaluator and tuned and "tuned" in unmeasured:
            with stage(folder, "measure tuned"):
                evaluator.measure(ApiBackend(client, tuned, form, recipe), "tuned")


def measure(model: ApiModel, data: Prepared, recipe: Recipe, folder: Path, approve: Approve) -> None:
    """Measure one model and keep finished parts; raise the same errors as `tune`."""
    evaluator = _evaluator(data, recipe, folder)
    if evaluator.is_done("model"):
        return
    form = model.form or recipe.prompt
    with _allowed(model, data) as client:
        ask_once(_measurements(evaluator, model, form, recipe, 1), model, folder, approve)
        with stage(folder, "measure"):
            evaluator.measure(ApiBackend(client, model, form, recipe), "model")


def status(folder: Path) -> str:
    """Return the status of the run's training job as the API reports it, with its latest events."""
    model, state, job_id = _job(folder)
    with model.client() as client:
        job = client.get(f"{JOBS}/{job_id}")
        last = [str(event.get("message")) for event in islice(events(client, job_id, set()), 5)]
    lines = [f"{job_id} at {model.spec.host}: {job.get('status')}", *(f"  {message}" for message in reversed(last))]
    if job.get("fine_tuned_model"):
        lines.append(f"Tuned model: {job['fine_tuned_model']}")
    return "\n".join(lines + [f"Earlier job {each['job']}: {each['status']}" for each in state.ended])


def cancel(folder: Path) -> str:
    """Ask the API to cancel the run's training job, and return its status afterwards."""
    model, _, job_id = _job(folder)
    with model.client() as client:
        job = client.post(f"{JOBS}/{job_id}/cancel")
    return f"{job_id} at {model.spec.host}: {job.get('status')}"


def _allowed(model: ApiModel, data: Prepared) -> Client:
    refuse_restricted_for_api((row for rows in data.splits.named().values() for row in rows), model.title)
    return model.client(RETRY_TO_RESUME)


def _evaluator(data: Prepared, recipe: Recipe, folder: Path) -> Evaluator:
    examples = data.splits.measured(recipe.evaluate.split)
    retrieved = with_retrieved(recipe, examples, folder)
    suites = stored_suites(recipe, folder)
    return Evaluator(
        recipe, examples, folder / "predictions", dev=data.splits.dev, retrieved=retrieved, can=API, suites=suites
    )


def _measurements(
    evaluator: Evaluator | None, model: ApiModel, form: PromptFormat, recipe: Recipe, count: int
) -> Estimate:
    if not evaluator or not count:
        return Estimate()
    requests, read, written = estimate_tokens(evaluator, model, form, recipe.model.api.context_tokens)
    return Estimate(requests=count * requests, read=count * read, written=count * written)


def _job(folder: Path) -> tuple[ApiModel, State, str]:
    if not (folder / RECIPE).is_file():
        raise DataError(f"{folder} holds no run: {RECIPE} is missing. Give the --output folder of `meditune run`.")
    recipe = load_recipe(str(folder / RECIPE)).recipe
    model, state = find_api_model(recipe.model.base, recipe.model.api), State.load(folder)
    if model is None or state.job is None:
        raise DataError(f"{folder} has no training job behind an API.")
    return model, state, state.job
