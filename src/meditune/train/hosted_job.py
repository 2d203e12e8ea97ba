"""Fine-tuning through an OpenAI-compatible API: the training file, the job, and the record of the tuned model.

The training file is uploaded once, and the job is created once and followed, over any number of calls and crashes
(https://developers.openai.com/api/docs/guides/supervised-fine-tuning).
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from meditune.config.recipe import Recipe
from meditune.data import leakage
from meditune.data.example import Example
from meditune.errors import DataError, ModelError, RecipeError, Stopped
from meditune.files import read_json, replace_folder, write_json, write_jsonl
from meditune.models.api_client import ApiError, ApiModel, Client, of_chat, without_echo
from meditune.prompts import WORD_OF_LABEL, chat_messages, save_format

FOLDER = "api"  # subfolder of a run
JOB, ROWS = "job.json", "training.jsonl"
JOBS = "/fine_tuning/jobs"
FINAL_STATES = {"succeeded", "failed", "cancelled"}
NOT_OFFERED = {404, 405, 501}
POLL_SECONDS = 15.0  # time between two checks of a training job


@dataclass
class State:
    """The progress of the job; each step is recorded before it begins and after it succeeds."""

    name: str = field(default_factory=lambda: f"meditune-{uuid.uuid4().hex}.jsonl")
    """Name of the uploaded file, by which it is found again."""
    uploading: bool = False
    file: str | None = None
    creating: bool = False
    job: str | None = None
    ended: list[dict[str, str]] = field(default_factory=list)  # earlier jobs that didn't succeed: job, status

    @classmethod
    def load(cls, folder: Path) -> State:
        """Return the state of a run's job, or a new one if none was started."""
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


def tune(client: Client, model: ApiModel, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Upload the training rows, create the job and follow it, skipping finished steps; return the finished job.

    Raises ModelError if the job didn't succeed; the next call then creates a new one.
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
    except (Stopped, ApiError):
        print(
            f"\nThe job {state.job} continues at {client.host}. The same command follows it again; "
            f"`meditune api cancel {folder}` cancels it.",
            file=sys.stderr,
        )
        raise
    if job["status"] != "succeeded":
        state.ended.append({"job": state.job, "status": job["status"]})
        state.job, state.creating = None, False
        state.save(folder)
        raise ModelError(
            f"The job {job['id']} at {client.host} {_ending(job, folder)} No model was tuned. The same command creates "
            "a new job, after asking again."
        )
    if not job.get("fine_tuned_model"):
        raise ModelError(f"The job {job['id']} at {client.host} succeeded, but the API returned no tuned model.")
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
            # Of several new metrics events, print only the latest.
            if event not in metrics[:-1]:
                report_event(f"  {event['message']}")
        if status in FINAL_STATES:
            return job
        time.sleep(POLL_SECONDS)


def events(client: Client, job_id: str, seen: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the job's events, newest first, up to the first one in `seen`, and add them to `seen`."""
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
                return None  # A second copy of the file costs nothing.
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
                f"{client.host} does not list its jobs, so it is unknown whether it created one. Look there for a job "
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
    """Counts of training rows; tokens are estimates."""

    rows: int  # one for each task of an example
    tokens: int  # tokens of one epoch; the API bills them for every epoch
    longest: int
    dropped: int  # rows left out because they are longer than the model's context


def chats(examples: Sequence[Example], recipe: Recipe, model: ApiModel) -> tuple[list[dict[str, Any]], RowFacts]:
    """Return a chat for each task that an example teaches, and counts; raise DataError if the API needs more rows."""
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
    """Write the training file unless a job was already started with it, and return its counts.

    Raises RecipeError if the API doesn't support the recipe, and DataError if it would reject the file.
    """
    if recipe.train.epochs != int(recipe.train.epochs) or recipe.train.epochs > 50:
        raise RecipeError(
            f"train.epochs: {recipe.train.epochs:g} isn't possible; an API trains for a whole number of epochs, 1 to "
            "50."
        )
    if recipe.train.dev.is_on:
        raise RecipeError(
            "train.dev: training behind an API can't be measured while it runs. Remove patience and keep_best."
        )
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
        f"{facts.dropped} rows left out because they exceed {recipe.model.api.context_tokens:,} tokens.\n"
        "Of the options under train, an API uses only tasks and epochs. It chooses the others itself, or takes them "
        "from model.api.hyperparameters.",
        file=sys.stderr,
    )
    return facts


def fine_tune(
    client: Client, model: ApiModel, facts: RowFacts, examples: Sequence[Example], recipe: Recipe, folder: Path
) -> ApiModel:
    """Tune through the API, write `folder/model` with a record of `examples`, and return the tuned model."""
    from meditune.train.model_card import hosted_model_card

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
    with replace_folder(folder / "model") as partial:
        tuned.save(partial, model.name)
        save_format(recipe.prompt, partial)
        write_json(partial / "training.json", training)
        write_json(partial / leakage.FILE_NAME, leakage.record(examples))
        (partial / "README.md").write_text(hosted_model_card(recipe, training, None), encoding="utf-8")
    return tuned


def _seconds(job: dict[str, Any]) -> dict[str, int]:
    begun, ended = job.get("created_at"), job.get("finished_at")
    return {"seconds": ended - begun} if isinstance(begun, int) and isinstance(ended, int) else {}


def _steps(client: Client, job_id: str) -> list[dict[str, Any]]:
    """Return step and loss of each metrics event."""
    metrics = [event.get("data") or {} for event in events(client, job_id, set()) if event.get("type") == "metrics"]
    steps = [
        {"step": data["step"], "loss": data["train_loss"]} for data in metrics if {"step", "train_loss"} <= set(data)
    ]
    return sorted(steps, key=lambda step: step["step"])
