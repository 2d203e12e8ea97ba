"""One retraining: gather and split data, train from the current version, judge, add and promote the new version.

The recipe is derived from the current version's recipe. Unfinished work stays in the registry's folder `work/` until
the new version is promoted, tried or stored, so the same command resumes the work. The gathered data stays in `rows/`.
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from meditune import model_registry, pipeline
from meditune.config.load_recipe import load_recipe, save
from meditune.config.recipe import Recipe
from meditune.config.training_options import MixSpec
from meditune.data import leakage
from meditune.data.balance import mark_plain_style
from meditune.data.deidentify import Findings, cleaner, deidentify
from meditune.data.example import Example
from meditune.data.prepare import DataCheck, stored_data, write_prepared
from meditune.data.quality.audit import Audit
from meditune.data.readers.tables import Rejects
from meditune.data.readers.user_files import read
from meditune.data.splits import Splits
from meditune.engines.exported_model import EXPORT, EXPORTS, read_exported_model
from meditune.errors import DataError, GateError, MedituneError
from meditune.evaluate import quality_gate
from meditune.files import exclusive_lock, read_json, sha256, write_json
from meditune.model_registry import Registry, Version, check_percent
from meditune.operate.retraining import new_training_data, release_gate
from meditune.operate.retraining.new_training_data import NewTrainingData, Shares, TooFewError, TrainingDataSources
from meditune.run_folder import RECIPE, announce, note_data, versions
from meditune.store import named

LEARNING_RATE_FACTOR = 0.5
DEV_SHARE = 0.1  # value of data.dev_share if the parent had no dev split; the actual share comes from the command
OWN, SAMPLE = "own", "sample"


def derive_recipe(parent: Path, old: Splits, new: Splits, files: Sequence[Path], synthetic: bool) -> Recipe:
    """Return a recipe for training from the version in the folder `parent` with the new rows in `files`.

    Long answers are measured on the same share of test items as before.
    """
    before = load_recipe(str(parent / RECIPE)).recipe
    keys = before.model_dump(mode="json")
    keys["model"] |= {"base": str((parent / "model").resolve()), "prune": {"method": "none"}}
    sources = [source for source in keys["data"]["sources"] if source["name"] != OWN]
    # New rows use the plain style only if all old rows do.
    style = "plain" if all(source.style == "plain" for source in before.data.sources) else "expert"
    sources = [{"name": SAMPLE, "style": style}] if synthetic else sources
    keys["data"] |= {
        "sources": [*sources, *({"name": OWN, "path": str(path), "style": style} for path in files)],
        "decisions": None,
        "fold": None,
        "balance": {},
        "fallback_to_sample": False,
    }
    # The parent was trained on the replayed rows, so only the new dev rows are unseen.
    keys["evaluate"]["calibration_folds"] = 0
    keys["data"]["dev_share"] = before.data.dev_share or DEV_SHARE
    keys["train"]["learning_rate"] *= LEARNING_RATE_FACTOR
    if before.train.mix.weights:
        # The weights of the old mix are for the old sources, which have changed.
        keys["train"]["mix"] = MixSpec().model_dump(mode="json")
    if before.evaluate.answers is not None and old.test:
        keys["evaluate"]["answers"] = math.ceil(before.evaluate.answers * len(new.test) / len(old.test))
    return Recipe.model_validate(keys)


FILE = "retrain.json"


class UnfinishedRetraining(BaseModel, extra="forbid"):
    """The content of retrain.json."""

    id: str
    started: str
    parent: str
    options: dict[str, Any]


class GatheredRows(BaseModel, extra="forbid"):
    """The number of rows from one kind of source, and the SHA-256 of the file with these rows."""

    rows: int
    sha256: str


class GatheredData(BaseModel, extra="forbid"):
    """The content of gathered.json."""

    new: list[str]
    """Ids of the test items that are new in this retraining"""
    fed: dict[str, GatheredRows]
    index: str


Content = TypeVar("Content", bound=BaseModel)


class Work:
    """The work folder of a registry, used by one process at a time."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.folder = registry.folder / "work"
        self.facts = self.folder / "gathered.json"
        """The file that describes the gathered data; written when the run's data is prepared"""

    def read(self) -> UnfinishedRetraining | None:
        """Return the unfinished retraining, or None if there is none. Raises DataError if its file is invalid."""
        return self._read(UnfinishedRetraining, self.folder / FILE)

    def gathered(self) -> GatheredData | None:
        """Return the gathered data, or None before it is prepared. Raises DataError if its file is invalid."""
        return self._read(GatheredData, self.facts)

    def _read(self, kind: type[Content], path: Path) -> Content | None:
        if not path.is_file():
            return None
        try:
            return kind.model_validate(read_json(path))
        except (DataError, ValidationError) as error:
            raise DataError(
                f"{path} is damaged, or another version of Meditune wrote it. Delete {self.folder} to drop the "
                "unfinished retraining; the next retraining then starts from the beginning."
            ) from error

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / self._id

    @property
    def rows(self) -> Path:
        """The folder with the gathered rows; the version's recipe refers to it."""
        return (self.registry.folder / "rows" / self._id).resolve()

    def made(self) -> Version | None:
        """Return the version that the unfinished work already produced, or None if there is none yet."""
        begun = self.read()
        known = map(self.registry.get, self.registry.state().versions) if begun else ()
        return next((each for each in known if begun and Path(each.came_from).name == begun.id), None)

    def claim(self, parent: str, options: Mapping[str, Any], restart_if_changed: bool = False) -> None:
        """Resume the unfinished retraining, or start a new one.

        If the options differ, drop the unfinished retraining if `restart_if_changed`, otherwise raise MedituneError.
        """
        before = self.read()
        if before and self.facts.is_file() and _can_resume(before, parent, options, restart_if_changed):
            return
        self.drop()
        begun = model_registry.utc_now()
        id = f"{begun.partition('+')[0].replace(':', '')}-{secrets.token_hex(3)}"
        unfinished = {"id": id, "started": begun, "parent": parent, "options": dict(options)}
        write_json(self.folder / FILE, unfinished)

    def drop(self) -> None:
        """Delete the work and its gathered rows, which no version uses yet."""
        if self.read():
            shutil.rmtree(self.rows, ignore_errors=True)
        self.end()

    def end(self) -> None:
        """Delete the work; the gathered rows stay."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    @property
    def _id(self) -> str:
        """The retraining's unique id. It is also the name of the run's folder, by which `made` finds the version."""
        begun = self.read()
        assert begun is not None, "the caller has claimed the work"
        return begun.id


def _can_resume(
    before: UnfinishedRetraining, parent: str, options: Mapping[str, Any], restart_if_changed: bool
) -> bool:
    started = f"The retraining that started at {before.started}"
    differing = [name for name in options if name != "sources" and before.options.get(name) != options[name]]
    if before.parent != parent:
        _say(
            f"{started} continues from {before.parent}, but {parent} is served now. That retraining is "
            "dropped, and a new one starts."
        )
        return False
    if differing and not restart_if_changed:
        raise MedituneError(
            f"{started} with other options ({', '.join(differing)}) is unfinished. Use the same options to resume "
            "it, or --restart to drop it."
        )
    if differing:
        _say(f"{started} had other options ({', '.join(differing)}). It is dropped, and a new one starts.")
        return False
    _say(f"Resuming the retraining that started at {before.started}.")
    if before.options.get("sources") != options.get("sources"):
        _say("It uses the data that was gathered then; the next retraining will use the new sources.")
    return True


def _say(text: str) -> None:
    print(text, file=sys.stderr)


LOCK = ".retrain.lock"
OnPass = Literal["promote", "canary", "keep"]
ON_PASS: tuple[OnPass, ...] = get_args(OnPass)
_LATER = {"on_pass", "percent", "restart", "restart_if_changed"}
"""Options that don't affect the resulting version"""


@dataclass(frozen=True)
class Options:
    """The options of a retraining."""

    sources: TrainingDataSources
    shares: Shares = field(default_factory=Shares)
    settings: tuple[str, ...] = ()
    decisions: Path | None = None
    gate: Path | None = None
    gate_new: Path | None = None
    min_rows: int = 20
    exports: tuple[str, ...] | None = None
    """Export formats; None means the formats of the current version"""
    on_pass: OnPass = "promote"
    percent: float = 10.0
    restart: bool = False
    restart_if_changed: bool = False

    def result_options(self) -> dict[str, Any]:
        """Return the options that affect the resulting version, for JSON, without a database password."""
        values = {name: value for name, value in asdict(self).items() if name not in _LATER}
        values["sources"]["store"] = None if self.sources.store is None else named(self.sources.store)
        return dict(json.loads(json.dumps(values, default=str)))


@dataclass(frozen=True)
class Outcome:
    """The result of a retraining."""

    version: Version | None
    """None if there was too little new data"""
    messages: list[str]
    promoted: bool = False


def retrain(folder: Path, options: Options, command: str) -> Outcome:
    """Make or finish the next version. Raises MedituneError if a retraining with other options is unfinished."""
    registry = Registry(folder)
    work = Work(registry)
    policies = (quality_gate.policy(options.gate), quality_gate.policy(options.gate_new))
    _check_release(options, registry.place(_current(registry)))
    busy = MedituneError(
        f"Another retraining is running in {folder}. Wait until it ends; the next retraining continues from its result."
    )
    with exclusive_lock(folder / LOCK, busy):
        if (version := work.made()) and not options.restart:
            history = registry.state().history
            after = [each for each in history if each.version == version.id and each.what != "added"]
            if not after:
                return _finish(registry, work, version, [], options)
            done = f"{after[-1].what} at {after[-1].when}"
            _say(f"{version.id} was finished earlier and {done}. Starting the next retraining.")
        if version:
            work.end()
        elif options.restart:
            work.drop()
        current = registry.checked(_current(registry))
        work.claim(current.id, options.result_options(), options.restart_if_changed)
        try:
            recipe, new, fed = _prepare_run(registry, current.id, work, options)
        except TooFewError as error:
            work.drop()
            return Outcome(None, [f"{error} Nothing was trained; {current.id} stays in use."])
        run = work.run
        pipeline.run(recipe, run, command)
        _export(run, registry.place(current.id), options.exports)
        announce("judge")
        judged = release_gate.judge(run, new, policies, recipe.evaluate.resamples, recipe.seed)
        gathered = work.gathered()
        index = gathered.index if gathered else ""
        version = registry.add(run, (current.id,), fed, {"against": current.id, **judged}, index)
        report = [*release_gate.lines(judged), f"{version.id}: {registry.place(version.id).resolve()}"]
        return _finish(registry, work, version, report, options)


def next_step(name: str) -> OnPass:
    """Return `name` if it is a value of --on-pass. Raises DataError otherwise."""
    if name not in ON_PASS:
        raise DataError(f"Unknown --on-pass {name}. Choose from {', '.join(ON_PASS)}.")
    return name


def _check_release(options: Options, parent: Path) -> None:
    """Raise MedituneError if the new version couldn't be exported, or couldn't become a canary."""
    from meditune.export.export import format_named

    for kind, _ in _wanted_exports(parent, options.exports):
        format_named(kind)
    if options.on_pass == "canary":
        check_percent(options.percent)


def _current(registry: Registry) -> str:
    current = registry.state().current
    if current is None:
        raise MedituneError(
            f"No version in {registry.folder} is served yet, so a retraining has nothing to continue from."
        )
    return current


def _prepare_run(
    registry: Registry, current: str, work: Work, options: Options
) -> tuple[Recipe, set[str], dict[str, Any]]:
    """Prepare the run's data; return the recipe, the ids of new test items, and facts about each kind of new data."""
    run = work.run
    if stored := work.gathered():
        counts = [f"{row.rows:,} rows of {kind}" for kind, row in stored.fed.items()]
        _say(f"Data gathered at that time: {', '.join(counts)}.")
        return load_recipe(str(run / RECIPE)).recipe, set(stored.new), stored.model_dump()["fed"]
    announce("gather")
    gathered = new_training_data.gather(options.sources, work.rows)
    for why, count in gathered.left_out.items():
        _say(f"Left out: {count:,} {why}.")
    parent = registry.place(current)
    before = stored_data(parent / "data")
    known = load_recipe(str(parent / RECIPE)).recipe
    rows, checks = _check_rows(gathered, known)
    pool = new_training_data.known_rows(registry, current)
    dealt = new_training_data.deal(
        rows,
        before.splits,
        pool,
        options.shares,
        known.seed,
        options.decisions,
        options.min_rows,
    )
    for why, count in dealt.left_out.items():
        _say(f"Left out: {count:,} {why}.")
    files = [path.resolve() for path in gathered.files.values()]
    derived = derive_recipe(parent, before.splits, dealt.splits, files, before.synthetic)
    save(derived, work.folder / RECIPE, versions(derived))
    recipe = load_recipe(str(work.folder / RECIPE), list(options.settings)).recipe
    fed = gathered.facts() | {"replay": {"rows": dealt.replayed, "sha256": before.sha256}}
    dealt.splits = mark_plain_style(dealt.splits, recipe.data)
    if options.decisions:
        fed["decisions"] = {"rows": len(dealt.decided.get("actions", {})), "sha256": sha256(options.decisions)}
    measured = dealt.splits.measured(recipe.evaluate.split)
    new = [example.id for example in measured if example.id in dealt.new]
    leaks = leakage.check(dealt.splits, recipe.evaluate.split, recipe.model.base)
    save(recipe, run / RECIPE)
    done = {"decisions": dealt.decided} if dealt.decided else {}
    data = write_prepared(recipe, run / "data", dealt.splits, checks, leaks, done, before.synthetic)
    note_data(recipe, run, data.sha256)
    write_json(work.facts, {"new": new, "fed": fed, "index": gathered.index})
    _say(
        f"{dealt.trained:,} new rows to train on, {dealt.replayed:,} old rows replayed; held out: "
        f"{len(dealt.splits.test):,} for evaluation and {len(dealt.splits.dev):,} for development, of which "
        f"{len(dealt.new):,} are new."
    )
    return recipe, set(new), fed


def _check_rows(new_data: NewTrainingData, recipe: Recipe) -> tuple[list[Example], DataCheck]:
    """Return the gathered rows that pass the checks for all training data, and the results of the checks."""
    spec = recipe.data
    rejects, phi = Rejects(cleaner(spec.phi)), Findings(spec.phi)
    by_kind = {
        kind: deidentify(list(read(path, rejects)), spec.phi, phi, path=path) for kind, path in new_data.files.items()
    }
    audit = Audit(spec.quality, (), hidden=phi.left_in)
    audit.rows(by_kind)
    counts = {kind: {"read": len(rows), "licence": "yours", "rejected": {}} for kind, rows in by_kind.items()}
    rows = [example for examples in audit.remaining.values() for example in examples]
    return rows, DataCheck(counts, audit, rejects, phi)


def _wanted_exports(parent: Path, exports: tuple[str, ...] | None) -> list[tuple[str, str | None]]:
    """Return the format and the quantization of each export: those in `exports`, by default those of the parent."""
    if exports is not None:
        return [(each, None) for each in exports]
    existing = [read_exported_model(path.parent) for path in sorted((parent / EXPORTS).glob(f"*/{EXPORT}"))]
    return [(each.kind, each.weights) for each in existing]


def _export(run: Path, parent: Path, exports: tuple[str, ...] | None) -> None:
    from meditune.export.export import export

    for kind, weights in _wanted_exports(parent, exports):
        announce(f"export to {kind}")
        export(str(run), kind, quantization=weights)


def _finish(registry: Registry, work: Work, version: Version, report: list[str], options: Options) -> Outcome:
    """Release the new version, delete the work, and return the outcome.

    If the release fails with DataError or GateError, the work is deleted, too. After other errors, it stays, because
    another call could succeed.
    """
    try:
        report = [*report, *_release(registry, version, version.parents[0], options)]
    except (DataError, GateError):
        work.end()
        raise
    work.end()
    return Outcome(version, report, registry.state().current == version.id)


def _release(registry: Registry, version: Version, before: str, options: Options) -> list[str]:
    """Apply `on_pass` to the new version; return sentences about what was done."""
    id, current = version.id, registry.state().current
    if current == id:
        return [f"{id} is already served."]
    if not version.passed:
        judged = version.gate["on"].values() if version.gate else ()
        if all(each["passed"] for row in judged for each in row["checks"]):
            by_hand = f"meditune registry promote {registry.folder} {id} --force --reason TEXT"
            return [f"The gate cannot judge {id}: {before} stays in use. If reviewers find {id} better: {by_hand}"]
        return [f"{id} did not pass its gate: {before} stays in use."]
    why = f"passed its gate against {before}"
    if current != before:
        return [f"{id} {why}, but {current} is served now, so {id} is only stored."]
    if options.on_pass == "keep":
        return [f"{id} {why}. Serve it with: meditune registry promote {registry.folder} {id}"]
    if options.on_pass == "promote":
        registry.promote(id, why)
        return [f"{id} {why} and is now served."]
    registry.start_canary(id, options.percent, why)
    return [f"{id} {why} and is a canary in {options.percent:g}% of the conversations."]
