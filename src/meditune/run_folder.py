"""A run's folder: whose it is, how far it got, and what it was made with."""

from __future__ import annotations

import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import meditune
from meditune.config.load_recipe import load_recipe, save
from meditune.config.recipe import Recipe, what_counts
from meditune.config.recipe_keys import dotted, leaves
from meditune.data import leakage, retrieved_passages
from meditune.data.example import Example
from meditune.data.leakage import Record, read_record
from meditune.data.prepare import stored_data
from meditune.data.read_sources import refuse_restricted_sources_for_api
from meditune.errors import DataError, MedituneError, ModelError
from meditune.files import read_json, write_json
from meditune.models.catalogue import MERGED, PRUNING

RECIPE = "recipe.yaml"
LOCK = ".lock"
SHOWN = 3
"""So many differing settings are named."""
STAGES = "stages.json"
EVALUATION = "evaluation.json"
FOUND = (retrieved_passages.FOUND, retrieved_passages.FACTS, retrieved_passages.TRAINING)
UNFINISHED = {RECIPE, LOCK, STAGES, EVALUATION, leakage.LEAKAGE_FILE_NAME, "rejected.jsonl", "pairs", "start", *FOUND}
"""What lies in a folder in which no stage is done."""


@contextmanager
def lock_run(recipe: Recipe, folder: Path, model: str | None = None, to_tune: bool = False) -> Iterator[None]:
    """Make `folder` this recipe's, or check that it is, and keep other processes out of it inside the block.

    `model` must be there to be had before anything is written. A folder in which nothing was measured or trained yet
    takes changed settings, so that a mistake in the first ones costs nothing; prepared data must still be those of the
    recipe. Raises MedituneError where the folder holds something else or another process is at work in it, and
    ModelError where the model can't be had, or can't be tuned though it is `to_tune`.
    """
    from filelock import FileLock, Timeout

    made = not folder.exists()
    _refuse_foreign(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise MedituneError(
            f"Another meditune is at work in {folder}. Wait until it is done, or choose another --output."
        ) from error
    try:
        _claim(recipe, folder, model, to_tune)
        yield
    finally:
        if not (folder / RECIPE).is_file():
            (folder / LOCK).unlink(missing_ok=True)
            if made:
                folder.rmdir()
        lock.release()


def _refuse_foreign(folder: Path) -> None:
    if (folder / RECIPE).is_file() or not folder.exists():
        return
    if not folder.is_dir() or any(item.name != LOCK and not _process_of(item) for item in folder.iterdir()):
        raise MedituneError(f"{folder} is there already and holds no run. Choose another --output.")


def _claim(recipe: Recipe, folder: Path, model: str | None, to_tune: bool) -> None:
    path = folder / RECIPE
    _remove_leftovers(folder)
    if path.is_file():
        earlier = load_recipe(str(path)).recipe
        if what_counts(earlier) == what_counts(recipe):
            return
        begun = {item.name for item in folder.iterdir()} - UNFINISHED
        if not (folder / "api" / "job.json").is_file():
            begun.discard("api")
        if begun - {"data"} or (begun and (earlier.data, earlier.seed) != (recipe.data, recipe.seed)):
            raise MedituneError(
                f"{folder} holds a run with other settings: {_differing(earlier, recipe)}. Give the same recipe and "
                "--set options to go on with it; otherwise choose another --output, or remove that folder."
            )
        for name in FOUND:
            (folder / name).unlink(missing_ok=True)
    if model is not None:
        _check_model(recipe, model, to_tune)
    save(recipe, path, versions(recipe))


def _differing(earlier: Recipe, recipe: Recipe) -> str:
    """The first settings that differ, with the folder's value."""
    before, now = ({dotted(key): value for key, value in leaves(each)} for each in (earlier, recipe))
    differing = [f"{key} is {before.get(key)} there" for key in before | now if before.get(key) != now.get(key)]
    more = len(differing) - SHOWN
    return ", ".join(differing[:SHOWN]) + (f", and {more} more" if more > 0 else "")


def note_data(recipe: Recipe, folder: Path, sha256: str) -> None:
    """Say in the recipe's file which data it was run on, beside the versions."""
    save(recipe, folder / RECIPE, versions(recipe) | {"data sha256": sha256})


def _check_model(recipe: Recipe, name: str, to_tune: bool) -> None:
    from meditune.models.api_client import find_api_model

    remote = find_api_model(name, recipe.model.api)
    if remote:
        if to_tune and recipe.train.objective != "sft":
            raise ModelError(
                f"{remote.title} takes train.objective sft only. Take a model whose weights are here for "
                f"{recipe.train.objective}."
            )
        refuse_restricted_sources_for_api(recipe.data.sources, remote.title)
        if recipe.model.prune.method != "none":
            raise ModelError(f"model.prune: {remote.title} is behind an API, so there are no weights here to prune.")
        remote.key()
        return
    from meditune.models.load import device, locate
    from meditune.models.quantization import require
    from meditune.train.finetune import check_compile
    from meditune.train.optimizer import check_optimizer

    if recipe.model.quantize != "none":
        require()
    locate(name)
    if to_tune:
        from meditune.train.trackers import check_tracker
        from meditune.train.training_plan import check_start

        check_tracker(recipe.train.tracker)
        check_optimizer(recipe.train.optimizer, device())
        check_compile(recipe)
        check_start(recipe)


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of runs that were killed (names as in files.py).

    What was moved aside for something new that never came goes back to its place.
    """
    import psutil

    for item in list(folder.rglob(".*")):
        process = _process_of(item)
        if process is None or psutil.pid_exists(process):
            continue
        place = item.with_name(item.stem.rpartition(".")[0].removeprefix("."))
        if item.suffix == ".old" and not place.exists():
            item.rename(place)
        elif item.is_dir():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)


def _process_of(item: Path) -> int | None:
    """The process that a temporary file or folder belongs to; None of anything else."""
    number = Path(item.stem).suffix.removeprefix(".")
    temporary = item.name.startswith(".") and item.suffix in {".partial", ".old"} and number.isdigit()
    return int(number) if temporary else None


def refuse_unfinished(folder: Path) -> None:
    """Raise DataError, with the command to go on, where the folder's run isn't finished."""
    from meditune.evaluate.answer_grading import BY_PASSAGES, GRADERS
    from meditune.evaluate.predictions import KINDS

    if (folder / EVALUATION).is_file():
        raise DataError(
            f"{folder} holds the evaluation of one model, which has no report. Compare it with another: "
            f"{shlex.join(['meditune', 'compare', str(folder), 'OTHER'])}"
        )
    if not (folder / RECIPE).is_file():
        raise DataError(f"{folder} holds no run: {RECIPE} is missing. Give the --output folder of `meditune run`.")
    predicted = {path.name.partition("-")[::2] for path in (folder / "predictions").glob("*-*.jsonl")}
    # What is found in predictions, and ratings, may come later, and of one model alone.
    made = {f"{kind}.jsonl" for kind in KINDS if kind not in GRADERS | BY_PASSAGES and kind != "rating"}
    base, tuned = ({kind for name, kind in predicted if name == model and kind in made} for model in ("base", "tuned"))
    if not (folder / "model" / "training.json").is_file() or not tuned or base != tuned:
        raise DataError(
            f"{folder} holds a run that isn't finished. Go on with: "
            f"{shlex.join(['meditune', 'run', str(folder / RECIPE), '--output', str(folder)])}"
        )


@contextmanager
def stage(folder: Path, name: str) -> Iterator[None]:
    """Announce a stage and add its seconds to the run's account."""
    announce(name)
    started = time.monotonic()

    def note() -> None:
        account = read_json(folder / STAGES) if (folder / STAGES).is_file() else {}
        account[name] = round(account.get(name, 0) + time.monotonic() - started, 1)
        write_json(folder / STAGES, account)

    try:
        yield
    except BaseException:
        # What stopped the stage is said, not that a full disk has no room for the account either.
        with suppress(MedituneError):
            note()
        raise
    note()


def run_behind(model: Path) -> Path:
    """The folder of the run that the model in that folder came out of, if any; merging and pruning are traced back."""
    for mark, source in ((MERGED, "adapter"), (PRUNING, "model")):
        if (model / mark).is_file():
            return run_behind(Path(read_json(model / mark)["made_from"][source]))
    return model.parent if model.name == "model" else model


def shown_to(model: str) -> tuple[list[Record], list[Example]]:
    """What is known of a model's training: its own and its run's record, and its run's examples if they are here."""
    place = Path(model).expanduser()
    if not place.is_dir():
        return [], []
    behind = run_behind(place)
    places = {each.resolve() for each in (place, place / "model", behind / "model")}
    records = [record for each in places if (record := read_record(each))]
    trained = stored_data(behind / "data").splits.train if (behind / "data" / "quality.json").is_file() else []
    return records, trained


def announce(name: str) -> None:
    """Say which stage begins."""
    print(f"── {name}", file=sys.stderr, flush=True)


def versions(recipe: Recipe) -> dict[str, str]:
    """Of everything that can change a figure."""
    from importlib.metadata import version

    packages = ["torch", "transformers", "peft", "tokenizers", "sacrebleu", "rouge_score", "numpy"]
    eight_bit = recipe.model.quantize != "none" or recipe.train.optimizer == "adamw8bit"
    packages += ["bitsandbytes"] if eight_bit else []
    return {"meditune": meditune.__version__, "python": platform.python_version()} | {
        package: version(package) for package in packages
    }


def machine() -> dict[str, Any]:
    """What it ran on."""
    from meditune.hardware import cores, gpu, memory_gb

    card = gpu()
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_gb": round(memory_gb()[0], 1),
        "gpu": card[0] if card else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
