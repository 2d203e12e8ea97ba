"""What `meditune loop CONFIG` reads: which stages there are, and how often each is due."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field, ValidationError

from meditune.errors import RecipeError
from meditune.files import read_text
from meditune.operate.drift.alerts import SEVERITIES, Severity
from meditune.operate.release.retrain import Then
from meditune.recipe import Spec
from meditune.recipes.document import Document, UnreadableError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(given: Any) -> float:
    """Seconds of "90s", "10m", "6h" or "7d"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", str(given).strip())
    if not found or float(found[1]) <= 0:
        raise ValueError(f"{given!r} is no time: write 10m, 6h or 7d")
    return float(found[1]) * _SECONDS[found[2]]


def _path(given: Any) -> Any:
    return Path(given) if isinstance(given, str) else given


def _key(given: Any) -> Any:
    if isinstance(given, str) and not given.strip():
        raise ValueError("an empty name would trust callers without a key: name a key's id (meditune keys list)")
    return given


Seconds = Annotated[float, BeforeValidator(seconds)]
Place = Annotated[Path, BeforeValidator(_path)]
Key = Annotated[str, BeforeValidator(_key)]


class UpdateStage(Spec):
    """New research."""

    library: Place = Field(description="The library's folder.")
    queries: list[str] = Field(default_factory=list, description="PubMed queries.")
    files: str | None = Field(None, description="MEDLINE's update files: a folder or an address.")
    email: str | None = Field(None, description="Where NCBI can write to you.")
    tests: list[Place] = Field(default_factory=list, description="Items to keep out of the training pairs.")
    every: Seconds = Field("1d", validate_default=True, description="10m, 6h, 7d.")


class DriftStage(Spec):
    """Requests held against a reference."""

    reference: Place = Field(description="What `meditune drift fit` wrote.")
    least: Severity = Field("small", description=f"{', '.join(SEVERITIES)}: smaller changes are no alert.")
    notify: bool = Field(
        False, description="Send alerts, the canaries' too, to the channels that the environment names."
    )
    every: Seconds = Field("1h", validate_default=True, description="10m, 6h, 7d.")


class CanaryStage(Spec):
    """Questions with known answers."""

    questions: Place = Field(description="Their file.")
    results: Place = Field(description="Runs are added to this file.")
    url: str = Field("http://127.0.0.1:8000", description="The server. Its key is taken from MEDITUNE_KEY.")
    every: Seconds = Field("6h", validate_default=True, description="10m, 6h, 7d.")


class GuardStage(Spec):
    """Taking back what made answers worse."""

    every: Seconds = Field("10m", validate_default=True, description="10m, 6h, 7d.")


class QueueStage(Spec):
    """What experts are asked next."""

    folder: Place = Field(description="Each queue becomes a folder in it, for `meditune annotate serve`.")
    budget: int = Field(50, ge=1, description="So many are asked at most.")
    strategy: str = Field("mix", description="mix, random, uncertainty, disagreement, diversity, feedback or novelty.")
    embedding: str | None = Field(None, description="The embedding model.")
    every: Seconds = Field("7d", validate_default=True, description="10m, 6h, 7d.")
    on_alert: bool = Field(True, description="Also as soon as a drift alert opens.")


class RetrainStage(Spec):
    """The next version."""

    trust: list[Key] = Field(default_factory=list, description="Keys whose corrections count; all: anybody's.")
    labels: list[Place] = Field(
        default_factory=list, description="Files of experts' rows; those that aren't there yet are passed over."
    )
    literature: list[Place] = Field(default_factory=list, description="Libraries or files of pairs.")
    settings: list[str] = Field(default_factory=list, description="Recipe keys to change: train.epochs=1.")
    replay: float = Field(1.0, ge=0, description="Old rows for each new one.")
    held_out: float = Field(0.3, gt=0, lt=0.9, description="Share of the new rows to measure on.")
    least: int = Field(50, ge=1, description="With fewer new rows nothing is trained.")
    gate: Place | None = Field(None, description="A policy for the old items.")
    gate_new: Place | None = Field(None, description="... and one for the new ones.")
    then: Then = Field("promote", description=f"{', '.join(get_args(Then))}: what becomes of a version that passes.")
    percent: float = Field(10.0, gt=0, le=100, description="Of the conversations, for a canary or shadow.")
    every: Seconds = Field("7d", validate_default=True, description="10m, 6h, 7d.")
    on_alert: bool = Field(True, description="Also as soon as a drift alert opens.")


class PromoteStage(Spec):
    """A canary that stood its time becomes the version that is served."""

    after: Seconds = Field("2d", validate_default=True, description="So long it must have stood: 10m, 6h, 7d.")
    answers: int = Field(100, ge=0, description="... and given so many answers.")
    every: Seconds = Field("10m", validate_default=True, description="10m, 6h, 7d.")


class Config(Spec):
    """The whole cycle. A stage that isn't named isn't run."""

    registry: Place = Field(description="The registry's folder.")
    store: str | None = Field(None, description="Where the server keeps its answers.")
    index: str | None = Field(None, description="The index that is served.")
    update: UpdateStage | None = None
    drift: DriftStage | None = None
    canary: CanaryStage | None = None
    guard: GuardStage | None = None
    queue: QueueStage | None = None
    retrain: RetrainStage | None = None
    promote: PromoteStage | None = None


STAGES = ("update", "drift", "canary", "guard", "queue", "retrain", "promote")
"""In the order in which they run where several are due"""
PLACES = {
    "": ("registry", "store"),
    "update": ("library", "tests"),
    "drift": ("reference",),
    "canary": ("questions", "results"),
    "queue": ("folder",),
    "retrain": ("labels", "literature", "gate", "gate_new"),
}
"""Keys whose values are places beside the configuration's file"""


def load(path: Path) -> Config:
    """The configuration in a YAML file; places in it are beside that file.

    Raises RecipeError that lists every problem with its line.
    """
    try:
        document = Document(read_text(path))
    except UnreadableError as error:
        raise RecipeError(f"{path}, line {error.line}: {error.why}.") from error
    problems = [(line, ".".join(map(str, key)), text) for key, line, text in document.problems]
    said = document.value if isinstance(document.value, dict) else {}
    try:
        made = Config.model_validate(_beside(said, path.resolve().parent))
        problems += [] if any(getattr(made, name) for name in STAGES) else [(1, "stages", _NONE)]
    except ValidationError as error:
        problems += [_problem(document, each["loc"], each["msg"]) for each in error.errors()]
    if problems:
        lines = (f"{path}, line {line}: {name}: {text}" for line, name, text in sorted(problems))
        raise RecipeError("\n".join(dict.fromkeys(lines)))
    return made


_NONE = f"none is named, so there is nothing to do; there are {', '.join(STAGES)}"


def _beside(said: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same with places that don't depend on where the command was called."""

    def placed(value: Any) -> Any:
        if isinstance(value, list):
            return [placed(each) for each in value]
        is_place = isinstance(value, str) and "://" not in value
        return str(folder / Path(value).expanduser()) if is_place else value

    found = dict(said)
    for group, keys in PLACES.items():
        part = found if not group else dict(found[group]) if isinstance(found.get(group), dict) else None
        if part is None:
            continue
        part |= {key: placed(part[key]) for key in keys if key in part}
        if group:
            found[group] = part
    return found


def _problem(document: Document, location: tuple[Any, ...], text: str) -> tuple[int, str, str]:
    """Line, key and what is wrong."""
    name, key = ".".join(map(str, location)), tuple(location)
    while key and key not in document.lines:
        key = key[:-1]
    said = "no such key" if "Extra inputs" in text else text.removeprefix("Value error, ")
    return document.lines.get(key, 1), name, said[:1].lower() + said[1:]
