"""A run's folder: its lock, its recipe, its progress, and the versions and machine of the run."""

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
from meditune.config.recipe import NEUTRAL, Recipe, what_counts
from meditune.config.recipe_keys import dotted, leaves
from meditune.data import leakage, retrieved_passages
from meditune.data.example import Example
from meditune.data.leakage import Record, read_record
from meditune.data.prepare import stored_data
from meditune.data.read_sources import refuse_restricted_sources_for_api
from meditune.engines.exported_model import EXPORT
from meditune.errors import DataError, MedituneError, ModelError
from meditune.files import exclusive_lock, read_json, write_json
from meditune.models.catalogue import MERGED, PRUNING, START

RECIPE = "recipe.yaml"
LOCK = ".lock"
MAX_LISTED_SETTINGS = 10  # maximum number of differing settings that an error names
STAGES = "stages.json"
EVALUATION = "evaluation.json"
RETRIEVED_FILES = (retrieved_passages.RETRIEVED_FILE, retrieved_passages.RETRIEVED_FACTS, retrieved_passages.TRAINING)
SUITES = "suites"
UNFINISHED = {RECIPE, LOCK, STAGES, EVALUATION, leakage.LEAKAGE_FILE_NAME, "rejected.jsonl", "pairs", START, SUITES}
"""Files and folders that can exist before any stage is finished, in addition to RETRIEVED_FILES"""


@contextmanager
def lock_run(recipe: Recipe, folder: Path, model: str | None = None, to_tune: bool = False) -> Iterator[None]:
    """Claim `folder` for this recipe, or check that it belongs to this recipe, and lock it during the block.

    The settings can change until something is measured or trained. Raises MedituneError if the folder contains
    something else or another process uses it. Raises ModelError if `model` is unavailable, or if `to_tune` is set and
    `model` can't be tuned.
    """
    is_new = not folder.exists()
    own = folder.iterdir() if folder.is_dir() else [folder] if folder.exists() else []
    if not (folder / RECIPE).is_file() and any(item.name != LOCK and not _process_of(item) for item in own):
        raise MedituneError(f"{folder} already exists and contains no run. Choose another --output.")
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"Another meditune process is using {folder}. Wait until it finishes, or choose another --output."
    with exclusive_lock(folder / LOCK, MedituneError(busy)):
        try:
            _claim(recipe, folder, model, to_tune)
            yield
        finally:
            if not (folder / RECIPE).is_file():
                (folder / LOCK).unlink(missing_ok=True)
                if is_new:
                    folder.rmdir()


def _claim(recipe: Recipe, folder: Path, model: str | None, to_tune: bool) -> None:
    path = folder / RECIPE
    _remove_leftovers(folder)
    begun = {item.name for item in folder.iterdir()} - UNFINISHED - {*RETRIEVED_FILES}
    if not (folder / "api" / "job.json").is_file():
        begun.discard("api")
    is_evaluation = (folder / EVALUATION).is_file()
    found = "the evaluation of one model" if is_evaluation else "a run" if begun - {"data"} else ""
    if model is not None and found not in ("", "a run" if to_tune else "the evaluation of one model"):
        raise MedituneError(f"{folder} contains {found}. Choose another --output.")
    if path.is_file():
        earlier = load_recipe(str(path)).recipe
        if what_counts(earlier) == what_counts(recipe):
            return
        if begun - {"data"} or (begun and (earlier.data, earlier.seed) != (recipe.data, recipe.seed)):
            what, use = ("a run", "resume it") if begun - {"data"} else ("prepared data", "use these data")
            raise MedituneError(
                f"{folder} contains {what} with other settings: {_differing(earlier, recipe)}. To {use}, use "
                "the same recipe and --set options. Otherwise, choose another --output or remove that folder."
            )
        for name in RETRIEVED_FILES:
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / START, ignore_errors=True)  # it can belong to another base
        shutil.rmtree(folder / SUITES, ignore_errors=True)
    if model is not None:
        _check_model(recipe, model, to_tune)
    save(recipe, path, versions(recipe))


def _differing(stored: Recipe, recipe: Recipe) -> str:
    """Return the first settings that differ, beginning with those of the data, with the folder's values."""
    before, now = (
        {dotted(key): value for key, value in leaves(each) if key not in NEUTRAL} for each in (stored, recipe)
    )
    keys = [key for key in before | now if before.get(key) != now.get(key)]
    keys.sort(key=lambda key: key.partition(".")[0] not in ("data", "seed"))
    differing = [f"{key} is {before.get(key)} there" for key in keys]
    more = len(differing) - MAX_LISTED_SETTINGS
    return ", ".join(differing[:MAX_LISTED_SETTINGS]) + (f", and {more} more" if more > 0 else "")


def note_data(recipe: Recipe, folder: Path, sha256: str) -> None:
    """Record the hash of the data in the run's recipe file, next to the versions."""
    save(recipe, folder / RECIPE, versions(recipe) | {"data sha256": sha256})


def _check_model(recipe: Recipe, name: str, to_tune: bool) -> None:
    from meditune.models.api_client import find_api_model

    remote = find_api_model(name, recipe.model.api)
    if remote:
        if to_tune and recipe.train.objective != "sft":
            raise ModelError(
                f"{remote.title} supports only train.objective sft. For other objectives, choose a local model."
            )
        refuse_restricted_sources_for_api(recipe.data.sources, remote.title)
        if recipe.model.prune.method != "none":
            raise ModelError(f"model.prune: {remote.title} is behind an API, so its weights can't be pruned.")
        if to_tune and recipe.evaluate.calibration_folds:
            raise ModelError(
                f"evaluate.calibration_folds: {remote.title} is behind an API, which Meditune tunes only once. Fit on "
                "the dev split instead: set evaluate.calibration_folds to 0 and data.dev_share above 0."
            )
        remote.key()
        return
    from meditune.models.load import device, locate
    from meditune.models.quantization import require

    if recipe.model.quantize != "none":
        require()
    locate(name)
    if to_tune:
        import torch

        from meditune.train.finetune import check_compile
        from meditune.train.optimizer import check_optimizer
        from meditune.train.resource_plan import config_of, on_meta
        from meditune.train.trackers import check_tracker
        from meditune.train.training_plan import check_start

        check_tracker(recipe.train.tracker)
        check_optimizer(recipe.train.optimizer, device())
        check_compile(recipe)
        check_start(recipe)
        on_meta(config_of(recipe.model), recipe.model, torch.float32, "eager")  # raises an error for unknown layers


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files (see files.py) of killed runs, and restore files and folders that the runs renamed."""
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
    """Return the id of the process that a temporary file or folder belongs to; None for anything else."""
    number = Path(item.stem).suffix.removeprefix(".")
    temporary = item.name.startswith(".") and item.suffix in {".partial", ".old"} and number.isdigit()
    return int(number) if temporary else None


def refuse_unfinished(folder: Path) -> None:
    """Raise DataError if the folder's run isn't finished; the message contains the command to resume the run."""
    from meditune.evaluate.faithfulness_and_similarity import GRADED
    from meditune.evaluate.predictions import GRADES_OF, KINDS

    if (folder / EVALUATION).is_file():
        raise DataError(
            f"{folder} contains the evaluation of one model, which has no report. Compare it with another evaluation: "
            f"{shlex.join(['meditune', 'compare', str(folder), 'OTHER'])}"
        )
    if not (folder / RECIPE).is_file():
        raise DataError(f"{folder} contains no run: {RECIPE} is missing. Use the --output folder of `meditune run`.")
    predicted = {path.name.partition("-")[::2] for path in (folder / "predictions").glob("*-*.jsonl")}
    # Grades and ratings may be added later, and for one model only; only the tuned model has dev claims.
    later = {*GRADED, *GRADES_OF.values(), "rating", "dev_claim"}
    required = {f"{kind}.jsonl" for kind in KINDS if kind not in later}
    base, tuned = (
        {kind for name, kind in predicted if name == model and kind in required} for model in ("base", "tuned")
    )
    if not (folder / "model" / "training.json").is_file() or not tuned or base != tuned:
        raise DataError(
            f"{folder} contains a run that isn't finished. Resume it with: "
            f"{shlex.join(['meditune', 'run', str(folder / RECIPE), '--output', str(folder)])}"
        )


@contextmanager
def stage(folder: Path, name: str) -> Iterator[None]:
    """Announce a stage and add its duration in seconds to stages.json."""
    announce(name)
    started = time.monotonic()

    def note() -> None:
        account = read_json(folder / STAGES) if (folder / STAGES).is_file() else {}
        account[name] = round(account.get(name, 0) + time.monotonic() - started, 1)
        write_json(folder / STAGES, account)

    try:
        yield
    except BaseException:
        # Raise the error that stopped the stage, even if stages.json can't be written either, as on a full disk.
        with suppress(MedituneError):
            note()
        raise
    note()


def run_behind(model: Path) -> Path:
    """Return the folder of the run that trained this model, even if the model was merged, pruned or exported later."""
    for mark, source in ((MERGED, "adapter"), (PRUNING, "model"), (EXPORT, "model")):
        if (model / mark).is_file():
            return run_behind(Path(read_json(model / mark)["made_from"][source]))
    return model.parent if model.name == "model" else model


def training_data_of(model: str) -> tuple[list[Record], list[Example]]:
    """Return the training records of a model and its run, and the run's training examples if they are available."""
    place = Path(model).expanduser()
    if not place.is_dir():
        return [], []
    behind = run_behind(place)
    places = {each.resolve() for each in (place, place / "model", behind / "model")}
    records = [record for each in places if (record := read_record(each))]
    trained = stored_data(behind / "data").splits.train if (behind / "data" / "quality.json").is_file() else []
    return records, trained


def announce(name: str) -> None:
    """Print the name of the stage that begins."""
    print(f"── {name}", file=sys.stderr, flush=True)


def versions(recipe: Recipe) -> dict[str, str]:
    """Return the versions of everything that can change a result."""
    from importlib.metadata import version

    packages = ["torch", "transformers", "peft", "tokenizers", "sacrebleu", "rouge_score", "numpy"]
    eight_bit = recipe.model.quantize != "none" or recipe.train.optimizer == "adamw8bit"
    packages += ["bitsandbytes"] if eight_bit else []
    return {"meditune": meditune.__version__, "python": platform.python_version()} | {
        package: version(package) for package in packages
    }


def machine() -> dict[str, Any]:
    """Return the hardware of this machine."""
    from meditune.hardware import cores, gpu, memory_gb, processor

    card = gpu()
    return {
        "processor": processor(),
        "cores": cores(),
        "memory_gb": round(memory_gb()[0], 1),
        "gpu": card[0] if card else None,
    }
