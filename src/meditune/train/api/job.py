"""A training job at an API: uploaded once, created once, and followed, over any number of calls and crashes."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from meditune.errors import DataError, ModelError, Stopped
from meditune.files import read_json, write_json
from meditune.models.api.client import ApiError, Client
from meditune.models.api.model import ApiModel
from meditune.models.api.retry import echoless
from meditune.recipe import Recipe

FOLDER = "api"
"""In a run's folder."""
JOB, ROWS = "job.json", "training.jsonl"
JOBS = "/fine_tuning/jobs"
ENDED = {"succeeded", "failed", "cancelled"}
NOT_OFFERED = {404, 405, 501}


@dataclass
class State:
    """How far the job is. What is about to be made is written down before, what was made afterwards."""

    name: str = field(default_factory=lambda: f"meditune-{uuid.uuid4().hex}.jsonl")
    """Of the uploaded file, by which it is found again."""
    uploading: bool = False
    file: str | None = None
    creating: bool = False
    job: str | None = None
    ended: list[dict[str, str]] = field(default_factory=list)
    """Earlier jobs that didn't succeed: job, status."""

    @classmethod
    def of(cls, folder: Path) -> State:
        """The state of a run's job; a new one where none was begun."""
        path = folder / FOLDER / JOB
        if not path.is_file():
            return cls()
        try:
            return cls(**read_json(path))
        except TypeError as error:
            raise DataError(f"{path} isn't what Meditune wrote there. Choose another --output.") from error

    def save(self, folder: Path) -> None:
        """Write it down, whole or not at all."""
        write_json(folder / FOLDER / JOB, asdict(self))


def tune(client: Client, model: ApiModel, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Upload `folder`'s training rows, create the job and follow it, each where that isn't done; the finished job.

    Raises ModelError where it didn't succeed; the next call then makes a new job.
    """
    state = State.of(folder)
    if state.job is None:
        if state.file is None:
            state.file = _upload(client, state, folder)
            state.save(folder)
        state.job = _create(client, state, model, recipe, folder)
        state.save(folder)
    try:
        job = follow(client, state.job, model.spec.poll_seconds)
    except (Stopped, ApiError):
        print(
            f"\nThe job {state.job} goes on at {client.host}. The same command follows it again; "
            f"`meditune api cancel {folder}` ends it.",
            file=sys.stderr,
        )
        raise
    if job["status"] != "succeeded":
        state.ended.append({"job": state.job, "status": job["status"]})
        state.job, state.creating = None, False
        state.save(folder)
        raise ModelError(
            f"The job {job['id']} at {client.host} {_ending(job, folder)} Nothing was tuned. The same command makes a "
            "new job, after asking again."
        )
    if not job.get("fine_tuned_model"):
        raise ModelError(f"The job {job['id']} at {client.host} succeeded, but the API names no tuned model.")
    return job


def follow(client: Client, job_id: str, poll_seconds: float) -> dict[str, Any]:
    """Wait until the job has ended, showing its events as they come; returns it as the API describes it."""
    seen: set[str] = set()
    status = ""
    while True:
        job = client.get(f"{JOBS}/{job_id}")
        if job.get("status") != status:
            status = str(job.get("status"))
            say(f"{job_id}: {status}")
        fresh = [event for event in reversed(list(events(client, job_id, seen))) if event.get("message")]
        metrics = [event for event in fresh if event.get("type") == "metrics"]
        for event in fresh:
            # Of the steps since the last look, the latest says enough.
            if event not in metrics[:-1]:
                say(f"  {event['message']}")
        if status in ENDED:
            return job
        time.sleep(poll_seconds)


def events(client: Client, job_id: str, seen: set[str]) -> Iterator[dict[str, Any]]:
    """The job's events, newest first, up to the first that was seen; they are added to `seen`."""
    after: dict[str, str] = {}
    while True:
        try:
            page = client.get(f"{JOBS}/{job_id}/events", limit=100, **after)
        except ApiError as error:
            if error.status in NOT_OFFERED:
                return
            raise
        data = [event for event in page.get("data") or [] if event.get("id")]
        for event in data:
            if event["id"] in seen:
                return
            seen.add(event["id"])
            yield event
        if not data or not page.get("has_more"):
            return
        after = {"after": data[-1]["id"]}


def say(text: str) -> None:
    """One line of progress."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def _upload(client: Client, state: State, folder: Path) -> str:
    def find() -> dict[str, Any] | None:
        try:
            return _listed(client, "/files", lambda file: file.get("filename") == state.name, purpose="fine-tune")
        except ApiError as error:
            if error.status in NOT_OFFERED:
                return None  # A second copy of the file costs nothing.
            raise

    found = find() if state.uploading else None
    state.uploading = True
    state.save(folder)
    say(f"Uploading {folder / FOLDER / ROWS}")
    return _id(found or client.upload(folder / FOLDER / ROWS, state.name, find), client)


def _create(client: Client, state: State, model: ApiModel, recipe: Recipe, folder: Path) -> str:
    earlier = {each["job"] for each in state.ended}

    def find() -> dict[str, Any] | None:
        try:
            return _listed(
                client, JOBS, lambda job: job.get("training_file") == state.file and job.get("id") not in earlier
            )
        except ApiError as error:
            if error.status not in NOT_OFFERED:
                raise
            raise ModelError(
                f"Whether a job was created at {client.host} can't be told, because it lists no jobs. Look there for "
                f'one with the file {state.file}, and put its id as "job" into {folder / FOLDER / JOB}; if there is '
                'none, change "creating" there to false. Then run the same command again.'
            ) from error

    found = find() if state.creating else None
    state.creating = True
    state.save(folder)
    say(f"Creating the job: {model.name}, {recipe.train.epochs:g} epochs")
    return _id(found or client.create(JOBS, _request(state, model, recipe), find), client)


def _request(state: State, model: ApiModel, recipe: Recipe) -> dict[str, Any]:
    hyperparameters = {"n_epochs": int(recipe.train.epochs), **model.spec.hyperparameters}
    return {
        "model": model.name,
        "training_file": state.file,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "suffix": "meditune",
        "seed": recipe.seed & 0x7FFFFFFF,
    }


def _listed(
    client: Client, path: str, wanted: Callable[[dict[str, Any]], bool], **parameters: str
) -> dict[str, Any] | None:
    """The first wanted object of a list that comes in pages."""
    after: dict[str, str] = {}
    while True:
        page = client.get(path, limit=100, **parameters, **after)
        data = page.get("data") or []
        found: dict[str, Any] | None = next((each for each in data if wanted(each)), None)
        if found or not data or not page.get("has_more"):
            return found
        after = {"after": data[-1]["id"]}


def _id(made: dict[str, Any], client: Client) -> str:
    if not isinstance(made.get("id"), str):
        raise ApiError(f"{client.host} answered without an id. Does it offer fine-tuning as OpenAI's API does?")
    return str(made["id"])


def _ending(job: dict[str, Any], folder: Path) -> str:
    rows = (folder / FOLDER / ROWS).read_text(encoding="utf-8")
    message = echoless(str((job.get("error") or {}).get("message") or ""), [rows]).rstrip(".")
    return f"{'was cancelled' if job['status'] == 'cancelled' else 'failed'}{f': {message}' if message else ''}."
