"""Record each training step in `training.jsonl` and in the recipe's tracker (TensorBoard, MLflow, Trackio or W&B).

Both records are in the run's folder, and nothing is sent to a server. When training resumes, both records are rewritten
up to the step at which training resumes.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from meditune import distributed
from meditune.config.recipe import Recipe
from meditune.config.training_options import TrackerName
from meditune.errors import MedituneError, install_command
from meditune.files import append_jsonl, write_jsonl
from meditune.models.quiet_libraries import no_telemetry
from meditune.train.trainer import Step

LOG = "training.jsonl"
FLUSH_SECONDS = 5
EXPERIMENT = "meditune"
BATCH = 1000  # maximum number of metrics that MLflow accepts in one call


def check_tracker(name: TrackerName) -> None:
    """Raise MedituneError, with the install command, if the tracker's package is missing."""
    if name == "none":
        return
    found = find_spec(name)
    # `find_spec` also finds a plain folder with that name in the working directory, such as wandb's own. Such a folder
    # has no origin.
    if found is None or found.origin is None:
        raise MedituneError(f"train.tracker {name} needs the package {name}. Install it with: {install_command(name)}")


@contextmanager
def followed(recipe: Recipe, folder: Path, log: Sequence[Step]) -> Iterator[Callable[[Step], None]]:
    """Record the steps in `log`, and yield a function that records a further step. A failing tracker is turned off."""
    if not distributed.is_first():
        yield lambda _: None
        return
    tracker: Any = None
    finished = False

    @contextmanager
    def guarded() -> Iterator[None]:
        nonlocal tracker
        try:
            yield
        except Exception as error:  # noqa: BLE001 - no error of a tracker's package may end training
            tracker = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(
                f"train.tracker {recipe.train.tracker} failed and is turned off ({reason}). Training continues; "
                f"{LOG} contains every step.",
                file=sys.stderr,
            )

    def follow(step: Step) -> None:
        append_jsonl(folder / LOG, asdict(step))
        with guarded():
            if tracker:
                tracker.add([step])

    if recipe.train.tracker != "none":
        with guarded():
            tracker = TRACKERS[recipe.train.tracker](folder / recipe.train.tracker, recipe.name)
            tracker.add(log)
    try:
        write_jsonl(folder / LOG, map(asdict, log))
        yield follow
        finished = True
    finally:
        with guarded():
            if tracker:
                tracker.close(finished)


class TensorBoard:
    """TensorBoard's event files. Earlier event files in the same folder are deleted."""

    def __init__(self, place: Path, _: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if place.exists():
            shutil.rmtree(place)
        self._writer: Any = SummaryWriter(place, flush_secs=FLUSH_SECONDS)

    def add(self, steps: Sequence[Step]) -> None:
        """Record these steps."""
        for step in steps:
            for name, value in _figures(step).items():
                self._writer.add_scalar(name, value, step.step)

    def close(self, finished: bool) -> None:  # noqa: ARG002
        """Write the remaining events."""
        self._writer.close()


class MLflow:
    """A run in its own MLflow store. The SQLite file is reused, because MLflow keeps it open and caches its tables."""

    def __init__(self, place: Path, run: str) -> None:
        no_telemetry()
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        place.mkdir(exist_ok=True)
        place = place.resolve()
        self._client: Any = MlflowClient(tracking_uri=f"sqlite:///{place / 'mlflow.db'}")
        if found := self._client.get_experiment_by_name(EXPERIMENT):
            experiment = found.experiment_id
            for earlier in self._client.search_runs([experiment]):
                self._client.delete_run(earlier.info.run_id)
        else:
            experiment = self._client.create_experiment(EXPERIMENT, artifact_location=(place / "artifacts").as_uri())
        self._run = self._client.create_run(experiment, run_name=run).info.run_id

    def add(self, steps: Sequence[Step]) -> None:
        """Record these steps."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step.step) for step in steps for name, value in _figures(step).items()]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(self._run, metrics=metrics[start : start + BATCH])

    def close(self, finished: bool) -> None:
        """Record how the run ended."""
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


class Trackio:
    """A run in its own Trackio store, an SQLite file, which is written directly: `trackio.init` contacts the hub."""

    def __init__(self, place: Path, run: str) -> None:
        no_telemetry()
        from trackio import sqlite_storage, utils

        # Trackio reads TRACKIO_DIR only once, when it is imported.
        utils.TRACKIO_DIR = sqlite_storage.TRACKIO_DIR = place.resolve()
        self._store: Any = sqlite_storage.SQLiteStorage
        self._name = run
        for earlier in self._store.get_runs(EXPERIMENT):
            self._store.delete_run(EXPERIMENT, earlier)

    def add(self, steps: Sequence[Step]) -> None:
        """Record these steps."""
        self._store.bulk_log(EXPERIMENT, self._name, list(map(_figures, steps)), [step.step for step in steps])

    def close(self, finished: bool) -> None:
        """Do nothing, because every step is already stored."""


class WeightsAndBiases:
    """An offline run of Weights & Biases, in which wandb records nothing about machine, user, code and console."""

    def __init__(self, place: Path, run: str) -> None:
        no_telemetry()
        import wandb

        if place.exists():
            shutil.rmtree(place)
        settings = wandb.Settings(
            mode="offline",
            # wandb adds a folder `wandb`.
            root_dir=str(place.parent.resolve()),
            reinit="create_new",
            silent=True,
            symlink=False,
            console="off",
            host="",
            disable_code=True,
            disable_git=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run: Any = wandb.init(project=EXPERIMENT, name=run, settings=settings)

    def add(self, steps: Sequence[Step]) -> None:
        """Record these steps."""
        for step in steps:
            self._run.log(_figures(step), step=step.step)

    def close(self, finished: bool) -> None:
        """Write the remaining steps, and record how the run ended."""
        self._run.finish(exit_code=0 if finished else 1)


TRACKERS: dict[str, Callable[[Path, str], Any]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "trackio": Trackio,
    "wandb": WeightsAndBiases,
}


def _figures(step: Step) -> dict[str, float]:
    """Return the step's metrics by name, without those that are None."""
    return {name: value for name, value in asdict(step).items() if name != "step" and value is not None}
