"""Run the stages of a run whose model is behind an OpenAI-compatible API, after an estimate of the cost is approved.

    check the rows -> estimate -> ask -> measure the base -> tune -> measure the tuned model

Nothing is sent before the estimate is approved. The training file is uploaded only once, and only one job is created
and followed, even if the command is interrupted and repeated
(https://developers.openai.com/api/docs/guides/supervised-fine-tuning).
"""

from __future__ import annotations

import shlex
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from meditune.config.data_options import PromptFormat
from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import Recipe
from meditune.data import leakage
from meditune.data.example import Example
from meditune.data.prepare import Prepared
from meditune.data.read_sources import refuse_restricted_for_api
from meditune.data.retrieved_passages import in_training
from meditune.errors import DataError, MedituneError, ModelError, RecipeError, Stopped
from meditune.evaluate.backends import ApiBackend, estimate_tokens
from meditune.evaluate.evaluator import Evaluator
from meditune.evaluate.suites import llm_judge
from meditune.files import read_json, replace_folder, write_json, write_jsonl
from meditune.http_client import RETRY_TO_RESUME
from meditune.models.api_client import RULE, ApiError, ApiModel, Client, find_api_model, of_chat, without_echo
from meditune.prompts import WORD_OF_LABEL, chat_messages, save_format
from meditune.run_folder import RECIPE, stage
from meditune.text import counted

APPROVED = "approved.json"

Approve = Callable[[str], None]
"""A function that is called with the estimate. It raises MedituneError if the user doesn't approve."""


@dataclass(frozen=True)
class Estimate:
    """The amount of data that will be sent from now on. Token counts are estimates."""

    rows: int = 0  # training rows to be uploaded
    training: int = 0  # training tokens over all epochs
    requests: int = 0
    read: int = 0  # input tokens
    written: int = 0  # output tokens, at most

    def text(self, model: ApiModel, prompts: str = "test prompts") -> str:
        """Return a text for the user with the destination, the amount of data and the cost."""
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
    """Ask for approval, unless `folder` records the approval of at least as much and no job has failed since."""
    what = {"model": model.name, "url": model.spec.url, "failed": len(State.load(folder).ended)}
    path = folder / FOLDER / file
    earlier: dict[str, Any] = read_json(path) if path.is_file() else {}
    if what.items() <= earlier.items() and all(left <= earlier[name] for name, left in asdict(estimate).items()):
        return
    approve(estimate.text(model, prompts))
    write_json(path, what | asdict(estimate))


JUDGE_APPROVED = "judge_approved.json"


def approve_judge(recipe: Recipe, folder: Path, models: Sequence[str], approve: Approve) -> None:
    """Ask for approval to send answers to the judge, unless it was given already. Assumes answers of maximum length."""
    judge = llm_judge.api_judge(recipe)
    requests, read, written = llm_judge.planned(recipe, folder, models) if judge else (0, 0, 0)
    if judge and requests:
        estimate = Estimate(requests=requests, read=read, written=written)
        ask_once(estimate, judge, folder, approve, "questions to the judge of answers", JUDGE_APPROVED)


def judge_suites(recipe: Recipe, folder: Path, models: Sequence[str]) -> None:
    """Let the judge grade the models' open answers that have no grade yet."""
    gradings = llm_judge.pending(recipe, folder, models)
    if not gradings:
        return
    with stage(folder, "judge answers"):
        judge = llm_judge.api_judge(recipe)
        if judge is None:
            items = [item for grading in gradings for item in grading.items]
            print(
                f"The judge {recipe.evaluate.suite_judge} grades {counted(len(items), 'answer')} on this machine: "
                f"up to {counted(sum(len(item.statements) for item in items), 'statement')} to decide.",
                file=sys.stderr,
            )
            llm_judge.grade_suites(gradings, llm_judge.LocalJudge(str(recipe.evaluate.suite_judge)))
            return
        with judge.client(RETRY_TO_RESUME) as client:
            llm_judge.grade_suites(gradings, llm_judge.ApiJudge(judge, client))


def tune(
    model: ApiModel, data: Prepared, recipe: Recipe, folder: Path, approve: Approve, evaluator: Evaluator | None = None
) -> None:
    """Tune through the API, and measure the model before and after tuning with `evaluator`; skip finished parts.

    Raises DataError if a row may not leave this machine, and MedituneError if the cost isn't approved.
    """
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


def measure(
    model: ApiModel, data: Prepared, recipe: Recipe, folder: Path, approve: Approve, evaluator: Evaluator
) -> None:
    """Measure one model; skip finished parts. Raises the same errors as `tune`."""
    if evaluator.is_done("model"):
        return
    form = model.form or recipe.prompt
    with _allowed(model, data) as client:
        ask_once(_measurements(evaluator, model, form, recipe, 1), model, folder, approve)
        with stage(folder, "measure"):
            evaluator.measure(ApiBackend(client, model, form, recipe), "model")


def status(folder: Path) -> str:
    """Return the status and the latest events of the run's training job, as reported by the API."""
    model, state, job_id = _job(folder)
    with model.client() as client:
        job = client.get(f"{JOBS}/{job_id}")
        last = [str(event.get("message")) for event in islice(events(client, job_id, set()), 5)]
    lines = [f"{job_id} at {model.spec.host}: {job.get('status')}", *(f"  {message}" for message in reversed(last))]
    if job.get("fine_tuned_model"):
        lines.append(f"Tuned model: {job['fine_tuned_model']}")
    return "\n".join(lines + [f"Earlier job {each['job']}: {each['status']}" for each in state.ended])


def cancel(folder: Path) -> str:
    """Ask the API to cancel the run's training job, and return the job's status afterwards."""
    model, _, job_id = _job(folder)
    with model.client() as client:
        job = client.post(f"{JOBS}/{job_id}/cancel")
    return f"{job_id} at {model.spec.host}: {job.get('status')}"


def _allowed(model: ApiModel, data: Prepared) -> Client:
    refuse_restricted_for_api((row for rows in data.splits.named().values() for row in rows), model.title)
    return model.client(RETRY_TO_RESUME)


def _measurements(
    evaluator: Evaluator | None, model: ApiModel, form: PromptFormat, recipe: Recipe, count: int
) -> Estimate:
    if not evaluator or not count:
        return Estimate()
    requests, read, written = estimate_tokens(evaluator, model, form, recipe.model.api.context_tokens)
    return Estimate(requests=count * requests, read=count * read, written=count * written)


def _job(folder: Path) -> tuple[ApiModel, State, str]:
    if not (folder / RECIPE).is_file():
        raise DataError(f"{folder} contains no run: {RECIPE} is missing. Pass the --output folder of `meditune run`.")
    recipe = load_recipe(str(folder / RECIPE)).recipe
    model, state = find_api_model(recipe.model.base, recipe.model.api), State.load(folder)
    if model is None or state.job is None:
        raise DataError(f"The run in {folder} has no training job on a hosted API.")
    return model, state, state.job


FOLDER = "api"  # subfolder of a run
JOB, ROWS = "job.json", "training.jsonl"
JOBS = "/fine_tuning/jobs"
FINAL_STATES = {"succeeded", "failed", "cancelled"}
NOT_OFFERED = {404, 405, 501}
POLL_SECONDS = 15.0  # time between two checks of a training job


@dataclass
class State:
    """The progress of a training job. Each step is recorded before it begins and after it succeeds."""

    name: str = field(default_factory=lambda: f"meditune-{uuid.uuid4().hex}.jsonl")
    """Name of the uploaded file, by which it is found in the API's list of files"""
    uploading: bool = False
    file: str | None = None
    creating: bool = False
    job: str | None = None
    ended: list[dict[str, str]] = field(default_factory=list)  # earlier jobs that didn't succeed: job, status

    @classmethod
    def load(cls, folder: Path) -> State:
        """Return the state of a run's job, or a new state if no job was started."""
        path = folder / FOLDER / JOB
        if not path.is_file():
            return cls()
        try:
            return cls(**read_json(path))
        except TypeError as error:
            raise DataError(f"{path} was not written by Meditune, or is damaged. Choose another --output.") from error

    def save(self, folder: Path) -> None:
        """Write the state atomically."""
        write_json(folder / FOLDER / JOB, asdict(self))


def run_job(client: Client, model: ApiModel, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Upload the training rows, create the job and follow it; skip finished steps, and return the finished job.

    Raises ModelError if the job didn't succeed; the next call then creates a new job.
    """
    state = State.load(folder)
    if state.job is None:
        if state.file is None:
            state.file = _upload(client, state, folder)
            state.save(folder)
        state.job = _create(client, state, model, recipe, folder)
        state.save(folder)
    try:
        job = follow(client, state.job)
    except (Stopped, KeyboardInterrupt, ApiError):  # KeyboardInterrupt: in a Python program, instead of Stopped
        print(
            f"\nThe job {state.job} continues at {client.host}. To follow it again, run the same command; "
            f"to cancel it, run `{shlex.join(['meditune', 'api', 'cancel', str(folder)])}`.",
            file=sys.stderr,
        )
        raise
    if job["status"] != "succeeded":
        state.ended.append({"job": state.job, "status": job["status"]})
        state.job, state.creating = None, False
        state.save(folder)
        raise ModelError(
            f"The job {job['id']} at {client.host} {_ending(job, folder)} No model was tuned. The same command asks "
            "again and creates a new job."
        )
    if not job.get("fine_tuned_model"):
        raise ModelError(f"The job {job['id']} at {client.host} succeeded, but the API doesn't name a tuned model.")
    return job


def follow(client: Client, job_id: str) -> dict[str, Any]:
    """Wait until the job has ended, print its events as they arrive, and return the API's description of it."""
    seen: set[str] = set()
    status = ""
    while True:
        job = client.get(f"{JOBS}/{job_id}")
        if job.get("status") != status:
            status = str(job.get("status"))
            report_event(f"{job_id}: {status}")
        fresh = [event for event in reversed(list(events(client, job_id, seen))) if event.get("message")]
        metrics = [event for event in fresh if event.get("type") == "metrics"]
        for event in fresh:
            # Print only the latest of several new metrics events.
            if event not in metrics[:-1]:
                report_event(f"  {event['message']}")
        if status in FINAL_STATES:
            return job
        time.sleep(POLL_SECONDS)


def events(client: Client, job_id: str, seen: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the job's events, newest first, until one is in `seen`, and add them to `seen`."""
    try:
        for event in _listed(client, f"{JOBS}/{job_id}/events"):
            if event["id"] in seen:
                return
            seen.add(event["id"])
            yield event
    except ApiError as error:
        if error.status not in NOT_OFFERED:
            raise


def report_event(text: str) -> None:
    """Print one line of progress."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def _upload(client: Client, state: State, folder: Path) -> str:
    def find() -> dict[str, Any] | None:
        try:
            files = _listed(client, "/files", purpose="fine-tune")
            return next((file for file in files if file.get("filename") == state.name), None)
        except ApiError as error:
            if error.status in NOT_OFFERED:
                return None  # Uploading a second copy of the file costs nothing.
            raise

    found = find() if state.uploading else None
    state.uploading = True
    state.save(folder)
    report_event(f"Uploading {folder / FOLDER / ROWS}")
    return _id(found or client.upload(folder / FOLDER / ROWS, state.name, find), client)


def _create(client: Client, state: State, model: ApiModel, recipe: Recipe, folder: Path) -> str:
    earlier = {each["job"] for each in state.ended}

    def find() -> dict[str, Any] | None:
        try:
            jobs = (job for job in _listed(client, JOBS) if job.get("training_file") == state.file)
            return next((job for job in jobs if job["id"] not in earlier), None)
        except ApiError as error:
            if error.status not in NOT_OFFERED:
                raise
            raise ModelError(
                f"{client.host} does not list its jobs, so it may have created a job. Look there for a job "
                f'with the file {state.file}. If it exists, add its id as "job" to {folder / FOLDER / JOB}; if not, '
                'set "creating" in that file to false. Then run the same command again.'
            ) from error

    found = find() if state.creating else None
    state.creating = True
    state.save(folder)
    report_event(f"Creating the job: {model.name}, {recipe.train.epochs:g} epochs")
    return _id(found or client.create(JOBS, _request(state, model, recipe), find), client)


def _request(state: State, model: ApiModel, recipe: Recipe) -> dict[str, Any]:
    hyperparameters = {"n_epochs": int(recipe.train.epochs), **recipe.model.api.hyperparameters}
    return {
        "model": model.name,
        "training_file": state.file,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "suffix": "meditune",
        "seed": recipe.seed & 0x7FFFFFFF,
    }


def _listed(client: Client, path: str, **parameters: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a paginated list that have an id."""
    after: dict[str, str] = {}
    while True:
        page = client.get(path, limit=100, **parameters, **after)
        objects = [each for each in page.get("data") or [] if each.get("id")]
        yield from objects
        if not objects or not page.get("has_more"):
            return
        after = {"after": objects[-1]["id"]}


def _id(response: dict[str, Any], client: Client) -> str:
    if not isinstance(response.get("id"), str):
        raise ApiError(f"{client.host} returned no id. Does it support fine-tuning as OpenAI's API does?")
    return str(response["id"])


def _ending(job: dict[str, Any], folder: Path) -> str:
    rows = (folder / FOLDER / ROWS).read_text(encoding="utf-8")
    message = without_echo(str((job.get("error") or {}).get("message") or ""), [rows]).rstrip(".")
    return f"{'was cancelled' if job['status'] == 'cancelled' else 'failed'}{f': {message}' if message else ''}."


MIN_ROWS = 10
MAX_BYTES = 512 * 10**6


@dataclass(frozen=True)
class RowFacts:
    """Counts of training rows. Token counts are estimates."""

    rows: int  # one row for each task of an example
    tokens: int  # tokens of one epoch; the API bills them for every epoch
    longest: int  # tokens of the longest row
    dropped: int  # rows left out because they are longer than the model's context


def chats(examples: Sequence[Example], recipe: Recipe, model: ApiModel) -> tuple[list[dict[str, Any]], RowFacts]:
    """Return a chat for each task of each example, and counts. Raises DataError if the API needs more rows."""
    from meditune.train.dataset import supported_tasks

    rows: list[dict[str, Any]] = []
    lengths: list[int] = []
    dropped = 0
    for example in examples:
        for task in supported_tasks(example, recipe.train.tasks):
            target = example.answer.strip()
            if task == "decision":
                target = str(example.decision)
            elif task == "claim" and example.label:
                target = WORD_OF_LABEL[example.label]
            messages = chat_messages(recipe.prompt, example, task, model.system, target)
            length = of_chat(messages)
            if length > recipe.model.api.context_tokens:
                dropped += 1
                continue
            rows.append({"messages": messages})
            lengths.append(length)
    if len(rows) < MIN_ROWS:
        left_out = f" ({dropped} are longer than model.api.context_tokens={recipe.model.api.context_tokens})"
        raise DataError(
            f"The fine-tuning API needs at least {MIN_ROWS} rows, but the training examples yield {len(rows)}"
            f"{left_out if dropped else ''}. Add more data."
        )
    return rows, RowFacts(len(rows), sum(lengths), max(lengths), dropped)


STRATEGY = "api"  # value in training.json and report.json that replaces the recipe's strategy


def prepare_rows(model: ApiModel, examples: Any, recipe: Recipe, folder: Path) -> RowFacts:
    """Write the training file, unless a job was already started with it, and return counts of its rows.

    Raises RecipeError if the API doesn't support the recipe, and DataError if it would reject the file.
    """
    if recipe.train.epochs != int(recipe.train.epochs) or recipe.train.epochs > 50:
        raise RecipeError(
            f"train.epochs: {recipe.train.epochs:g} isn't possible; an API trains for a whole number of epochs from 1 "
            "to 50."
        )
    if recipe.train.dev.is_on:
        raise RecipeError("train.dev: a model can't be measured while an API trains it. Remove patience and keep_best.")
    rows, facts = chats(examples, recipe, model)
    path = folder / FOLDER / ROWS
    if not (folder / FOLDER / JOB).is_file():
        write_jsonl(path, rows)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(
            f"{path}: {size / 1e6:,.0f} MB; the API accepts files of up to {MAX_BYTES / 1e6:.0f} MB. Use "
            "fewer examples: set data.sources.N.limit."
        )
    print(
        f"{facts.rows} training rows in {path}: about {facts.tokens:,} tokens, {facts.longest:,} in the longest row; "
        f"{facts.dropped} rows are left out because they exceed {recipe.model.api.context_tokens:,} tokens.\n"
        "An API uses only the options tasks and epochs under train. It chooses other options itself, or takes them "
        "from model.api.hyperparameters.",
        file=sys.stderr,
    )
    return facts


def fine_tune(
    client: Client, model: ApiModel, facts: RowFacts, examples: Sequence[Example], recipe: Recipe, folder: Path
) -> ApiModel:
    """Tune through the API, write `folder/model` with a record of the training examples, and return the tuned model."""
    from meditune.train.model_card import hosted_model_card

    started = time.monotonic()
    job = run_job(client, model, recipe, folder)
    metrics = [event.get("data") or {} for event in events(client, job["id"], set()) if event.get("type") == "metrics"]
    done = [data for data in metrics if {"step", "train_loss"} <= data.keys()]
    steps = sorted(({"step": data["step"], "loss": data["train_loss"]} for data in done), key=lambda row: row["step"])
    begun, ended = job.get("created_at"), job.get("finished_at")
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
        **({"seconds": ended - begun} if isinstance(begun, int) and isinstance(ended, int) else {}),
        **({"steps": steps[-1]["step"], "final_loss": steps[-1]["loss"]} if steps else {}),
    }
    with replace_folder(folder / "model") as partial:
        tuned.save(partial, model.name)
        save_format(recipe.prompt, partial)
        write_json(partial / "training.json", training)
        write_json(partial / leakage.FILE_NAME, leakage.record(examples))
        (partial / "README.md").write_text(hosted_model_card(recipe, training, None), encoding="utf-8")
    return tuned
