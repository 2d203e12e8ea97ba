"""The journey: which stage comes after which, and what is already done.

    prepare -> measure the base -> train -> measure the tuned -> compare and report

Every stage leaves its result in the run's folder, whole or not at all, so the same command goes on where an earlier
one stopped.
"""

from __future__ import annotations

import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import meditune
from meditune.data.prepare import Prepared, prepare, stored
from meditune.errors import DataError, MedituneError, ModelError
from meditune.files import read_json, write_json
from meditune.recipe import Recipe, plain
from meditune.recipes.loading import load_recipe
from meditune.recipes.writing import save

RECIPE = "recipe.yaml"
STAGES = "stages.json"
EVALUATION = "evaluation.json"
UNFINISHED = {RECIPE, STAGES, EVALUATION, "rejected.jsonl"}
"""What lies in a folder in which no stage is done."""


def run(recipe: Recipe, folder: Path, command: str) -> dict[str, Any]:
    """Do, or finish, the whole journey in `folder`; returns report.json's content.

    Raises MedituneError where the folder holds another run.
    """
    from meditune.evaluate.stage import Measuring
    from meditune.train.encode import check_teaches
    from meditune.train.stage import fine_tune

    claim(recipe, folder, recipe.model.base, to_tune=True)
    with stage(folder, "prepare"):
        data = prepared(recipe, folder)
    check_teaches(data.splits.train, recipe.train.tasks)
    measuring = Measuring(recipe, data.splits.measured(recipe.evaluate.split), folder / "predictions")
    trained = (folder / "model" / "training.json").is_file()
    loaded: Any = None
    if not (trained and measuring.is_done("base")):
        loaded = _load(recipe, recipe.model.base)
        with stage(folder, "measure base"):
            measuring.measure(loaded, "base")
    if not trained:
        with stage(folder, "train"):
            fine_tune(loaded, data.splits.train, recipe, folder)
    if not measuring.is_done("tuned"):
        if loaded is None or trained:
            loaded = _load(recipe, str(folder / "model"))
        with stage(folder, "measure tuned"):
            measuring.measure(loaded, "tuned")
    announce("compare and report")
    return report(folder, command)


def train(recipe: Recipe, folder: Path) -> None:
    """Prepare the data and train, without measuring anything; a finished model is left as it is."""
    from meditune.train.encode import check_teaches
    from meditune.train.stage import fine_tune

    claim(recipe, folder, recipe.model.base, to_tune=True)
    with stage(folder, "prepare"):
        data = prepared(recipe, folder)
    check_teaches(data.splits.train, recipe.train.tasks)
    if not (folder / "model" / "training.json").is_file():
        with stage(folder, "train"):
            fine_tune(_load(recipe, recipe.model.base), data.splits.train, recipe, folder)


def evaluate(model: str, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Measure any model on the recipe's test items; returns evaluation.json's content.

    A model that carries its own prompt format is shown that one.
    """
    from meditune.evaluate.metrics import summarise
    from meditune.evaluate.predictions import read
    from meditune.evaluate.stage import Measuring

    claim(recipe, folder, model)
    state = {"model": model}
    measured = (folder / "predictions").exists()
    if measured and (folder / EVALUATION).is_file() and read_json(folder / EVALUATION)["model"] != model:
        raise MedituneError(f"{folder} holds an evaluation of another model. Choose another --output.")
    write_json(folder / EVALUATION, state)
    with stage(folder, "prepare"):
        data = prepared(recipe, folder)
    measuring = Measuring(recipe, data.splits.measured(recipe.evaluate.split), folder / "predictions")
    if not measuring.is_done("model"):
        loaded = _load(recipe, model)
        measuring.form = loaded.form or recipe.prompt
        with stage(folder, "measure"):
            measuring.measure(loaded, "model")
    figures = summarise(read(folder / "predictions", "model"))
    test_set = data.splits.measured_name(recipe.evaluate.split)
    result = state | {"data": {"test_set": test_set, "sha256": data.sha256}, "figures": figures}
    write_json(folder / EVALUATION, result)
    return result


def compare_folders(first: Path, second: Path, resamples: int, seed: int) -> dict[str, Any]:
    """Figures of both and their comparison, from stored predictions.

    Of a run's folder the tuned model is taken. Raises DataError where the two were measured on different items, or
    by different measures.
    """
    from meditune.evaluate.compare import compare, got_worse
    from meditune.evaluate.metrics import summarise
    from meditune.evaluate.predictions import KINDS, path_of, read

    both = []
    for folder in (first, second):
        place = folder / "predictions"
        if not place.is_dir():
            raise DataError(f"{folder} holds no predictions. Give the folder of `meditune evaluate` or of a run.")
        name = "model" if any(path_of(place, "model", kind).is_file() for kind in KINDS) else "tuned"
        both.append(read(place, name))
    comparison = compare(both[0], both[1], resamples, seed)
    if not comparison:
        raise DataError(f"{first} and {second} have no metric in common, so there is nothing to compare.")
    return {
        "base": summarise(both[0]),
        "tuned": summarise(both[1]),
        "comparison": comparison,
        "worse": got_worse(comparison),
    }


def report(folder: Path, command: str | None = None) -> dict[str, Any]:
    """Compute report.json from the stored predictions, refresh the model card, and draw report.html.

    Raises DataError where the folder holds no finished run.
    """
    from meditune.evaluate.report import render
    from meditune.evaluate.summary import summary
    from meditune.train.card import model_card

    _refuse_unfinished(folder)
    recipe = load_recipe(str(folder / RECIPE)).recipe
    training = read_json(folder / "model" / "training.json")
    result = summary(recipe, stored(folder / "data"), training, folder / "predictions")
    earlier = read_json(folder / "report.json") if (folder / "report.json").is_file() else {}
    result["stages"] = read_json(folder / STAGES) if (folder / STAGES).is_file() else {}
    result["versions"] = versions()
    result["machine"] = machine()
    result["command"] = command or earlier.get("command") or f"meditune report {folder}"
    write_json(folder / "report.json", result)
    (folder / "model" / "README.md").write_text(model_card(recipe, training, result), encoding="utf-8")
    render(folder)
    return result


def claim(recipe: Recipe, folder: Path, model: str | None = None, to_tune: bool = False) -> None:
    """Make `folder` this recipe's, or check that it is; `model` must be there to be had before anything is written.

    A folder in which nothing was measured or trained yet takes changed settings, so that a mistake in the first ones
    costs nothing; prepared data must still be those of the recipe. Raises MedituneError where the folder holds
    something else, and ModelError where the model can't be had, or can't be tuned though it is `to_tune`.
    """
    path = folder / RECIPE
    if path.is_file():
        _remove_leftovers(folder)
        earlier = load_recipe(str(path)).recipe
        if plain(earlier) == plain(recipe):
            return
        begun = {item.name for item in folder.iterdir()} - UNFINISHED
        if begun - {"data"} or (begun and (earlier.data, earlier.seed) != (recipe.data, recipe.seed)):
            raise MedituneError(
                f"{folder} holds a run of another recipe or other settings ({path} says which). Choose another "
                "--output, or remove that folder."
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MedituneError(f"{folder} is there already and holds no run. Choose another --output.")
    if model is not None:
        _check_model(model, to_tune)
    save(recipe, path)


def _check_model(name: str, to_tune: bool) -> None:
    from meditune.models.load import ADAPTER_FILE, locate

    place = Path(locate(name))
    if to_tune and (place / ADAPTER_FILE).is_file():
        raise ModelError(
            f"model.base: {name} is an adapter, and a second adapter on it would be saved as if it belonged on the "
            f"base model ({place / ADAPTER_FILE} names it). Tune that base model, or merge the adapter first (peft's "
            "merge_and_unload, then save_pretrained) and name the merged folder."
        )


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of runs that were killed (names as in files.py)."""
    import psutil

    for item in folder.glob(".*"):
        parts = item.name.rsplit(".", 2)
        if len(parts) == 3 and parts[2] in {"partial", "old"} and parts[1].isdigit():
            if psutil.pid_exists(int(parts[1])):
                continue
            if item.is_dir():
                shutil.rmtree(item, ignore_errors=True)
            else:
                item.unlink(missing_ok=True)


def _refuse_unfinished(folder: Path) -> None:
    if not (folder / RECIPE).is_file():
        raise DataError(f"{folder} holds no run: {RECIPE} is missing. Give the --output folder of `meditune run`.")
    predicted = {path.name.partition("-")[::2] for path in (folder / "predictions").glob("*-*.jsonl")}
    base, tuned = ({kind for name, kind in predicted if name == model} for model in ("base", "tuned"))
    if not (folder / "model" / "training.json").is_file() or not tuned or base != tuned:
        raise DataError(
            f"{folder} holds a run that isn't finished. Go on with: "
            f"{shlex.join(['meditune', 'run', str(folder / RECIPE), '--output', str(folder)])}"
        )


def prepared(recipe: Recipe, folder: Path) -> Prepared:
    """The run's data, prepared now or before."""
    if (folder / "data" / "quality.json").is_file():
        return stored(folder / "data")
    return prepare(recipe, folder / "data")


@contextmanager
def stage(folder: Path, name: str) -> Iterator[None]:
    """Announce a stage and add its seconds to the run's account."""
    announce(name)
    started = time.monotonic()
    try:
        yield
    finally:
        account = read_json(folder / STAGES) if (folder / STAGES).is_file() else {}
        account[name] = round(account.get(name, 0) + time.monotonic() - started, 1)
        write_json(folder / STAGES, account)


def announce(name: str) -> None:
    """Say which stage begins."""
    print(f"── {name}", file=sys.stderr, flush=True)


def versions() -> dict[str, str]:
    """Of everything that can change a figure."""
    from importlib.metadata import version

    packages = ("torch", "transformers", "peft", "tokenizers", "sacrebleu", "rouge_score", "numpy")
    return {"meditune": meditune.__version__, "python": platform.python_version()} | {
        package: version(package) for package in packages
    }


def machine() -> dict[str, Any]:
    """What it ran on."""
    import psutil
    import torch

    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=True),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _load(recipe: Recipe, name: str) -> Any:
    from meditune.models.load import load

    return load(name, recipe.model)
