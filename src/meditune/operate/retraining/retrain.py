"""One retraining: gather, deal, train from the current version, judge against it, keep, promote.

What isn't finished lies in the registry's `work/`, so the same command goes on where it was stopped. What was gathered
is kept in `rows/`.

The recipe of a retraining: that of the version it goes on from, more gently, on the new data.

A retraining that isn't finished: what it was asked for, and whether another call goes on with it.

It lies in the registry's `work/` until its version was promoted, tried or kept, whatever stops it before.
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from meditune import model_registry, pipeline
from meditune.config.load_recipe import load_recipe, save
from meditune.config.recipe import Recipe, plain
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
from meditune.engines.exported_model import EXPORT, EXPORTS
from meditune.errors import DataError, GateError, MedituneError
from meditune.evaluate.gate import load_policy
from meditune.files import read_json, sha256, write_json
from meditune.model_registry import Registry, Version
from meditune.operate.retraining import new_training_data, release_gate
from meditune.operate.retraining.new_training_data import DealtRows, NewTrainingData, Shares, TooFewError, Wanted
from meditune.run_folder import RECIPE, announce, note_data, versions
from meditune.store.open_store import named

GENTLER = 0.5
"""The learning rate beside that of the version before: the weights are near a good place already"""
OWN, SAMPLE = "own", "sample"


def derive_recipe(parent: Path, old: Splits, new: Splits, files: Sequence[Path], synthetic: bool) -> Recipe:
    """The recipe that goes on from the version in the folder `parent`, whose splits were `old`, with `files` of rows.

    As large a share of the measured items is answered as before. `synthetic` is whether the old rows are the sample's.
    """
    before = load_recipe(str(parent / RECIPE)).recipe
    said = plain(before)
    said["model"] |= {"base": str((parent / "model").resolve()), "prune": {"method": "none"}}
    sources = [source for source in said["data"]["sources"] if source["name"] != OWN]
    # New rows are for those whom all of the old ones were for.
    style = "plain" if all(source.style == "plain" for source in before.data.sources) else "expert"
    sources = [{"name": SAMPLE, "style": style}] if synthetic else sources
    said["data"] |= {
        "sources": [*sources, *({"name": OWN, "path": str(path), "style": style} for path in files)],
        "decisions": None,
        "fold": None,
        "balance": {},
        "fallback_to_sample": False,
    }
    said["train"]["learning_rate"] *= GENTLER
    if before.train.mix.weights or before.train.mix.quota:
        # They name sources, of which there are others now.
        said["train"]["mix"] = MixSpec().model_dump(mode="json")
    if before.evaluate.answers is not None and old.test:
        said["evaluate"]["answers"] = math.ceil(before.evaluate.answers * len(new.test) / len(old.test))
    return Recipe.model_validate(said)


def with_settings(recipe: Recipe, place: Path, settings: Sequence[str]) -> Recipe:
    """The recipe with `--set` options, kept at `place`. Raises RecipeError that lists all that is wrong."""
    save(recipe, place, versions(recipe))
    changed: Any = load_recipe(str(place), list(settings))
    made: Recipe = changed.recipe
    save(made, place, versions(made))
    return made


WORK, ROWS = "work", "rows"
FILE = "retrain.json"


@dataclass(frozen=True)
class UnfinishedRetraining:
    """What `work/retrain.json` holds."""

    id: str
    """No other retraining's; its run's folder is named so, and thereby where its version came from"""
    begun: str
    """UTC, ISO 8601"""
    parent: str
    """The version that it goes on from"""
    asked: dict[str, Any]
    """Its options, as far as they decide how the version turns out"""


class Work:
    """The work in a registry's folder; one program at a time."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.folder = registry.folder / WORK

    def read(self) -> UnfinishedRetraining | None:
        """What isn't finished, if anything."""
        path = self.folder / FILE
        return UnfinishedRetraining(**read_json(path)) if path.is_file() else None

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / self._begun.id

    @property
    def rows(self) -> Path:
        """Where what is gathered is kept for good: the version's recipe names it."""
        return (self.registry.folder / ROWS / self._begun.id).resolve()

    @property
    def facts(self) -> Path:
        """Says what was gathered, once it is laid out as the run's data."""
        return self.folder / "gathered.json"

    def made(self) -> Version | None:
        """The version that was made of what isn't finished, where the command was stopped right after that."""
        begun = self.read()
        known = map(self.registry.get, self.registry.state().versions) if begun else ()
        return next((each for each in known if begun and Path(each.came_from).name == begun.id), None)

    def claim(self, parent: str, asked: Mapping[str, Any], or_anew: bool = False) -> None:
        """Go on with what was begun, or begin.

        Sources that were named since then wait for the next retraining. Raises MedituneError where other options were
        asked for, unless it is to begin `or_anew`.
        """
        before = self.read()
        if before and self.facts.is_file() and self._goes_on(before, parent, asked, or_anew):
            return
        self.drop()
        begun = model_registry.utc_now()
        id = f"{begun.partition('+')[0].replace(':', '')}-{secrets.token_hex(3)}"
        write_json(self.folder / FILE, asdict(UnfinishedRetraining(id, begun, parent, dict(asked))))

    def drop(self) -> None:
        """Remove it with what was gathered for it, which no version was made of."""
        if self.read():
            shutil.rmtree(self.rows, ignore_errors=True)
        self.end()

    def end(self) -> None:
        """Remove it; what was gathered stays."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    @property
    def _begun(self) -> UnfinishedRetraining:
        begun = self.read()
        assert begun is not None, "the caller has claimed it"
        return begun

    def _goes_on(self, before: UnfinishedRetraining, parent: str, asked: Mapping[str, Any], or_anew: bool) -> bool:
        if before.parent != parent:
            _say(
                f"The retraining that was begun at {before.begun} isn't finished and goes on from {before.parent}. "
                f"{parent} is served by now, so it is dropped, and another begun."
            )
            return False
        differing = [name for name in asked if name != "wanted" and before.asked.get(name) != asked[name]]
        if differing and not or_anew:
            raise MedituneError(
                f"A retraining that was begun at {before.begun} isn't finished, and was asked for something else "
                f"({', '.join(differing)}). Give its options again to go on with it, or --afresh to drop it."
            )
        if differing:
            _say(
                f"The retraining that was begun at {before.begun} was asked for something else "
                f"({', '.join(differing)}), so it is dropped, and another begun."
            )
            return False
        _say(f"Going on with the retraining that was begun at {before.begun}.")
        if before.asked.get("wanted") != asked.get("wanted"):
            _say("It learns what was gathered then; other sources wait for the next one.")
        return True


def _say(text: str) -> None:
    print(text, file=sys.stderr)


LOCK = ".retrain.lock"
Then = Literal["promote", "canary", "shadow", "keep"]
THENS: tuple[Then, ...] = get_args(Then)
_LATER = {"then", "percent", "afresh", "or_anew"}
"""Options that change nothing of the version"""


@dataclass(frozen=True)
class Options:
    """What is asked for."""

    wanted: Wanted
    shares: Shares = field(default_factory=Shares)
    settings: tuple[str, ...] = ()
    """`--set` options over the derived recipe"""
    decisions: Path | None = None
    """What people decided about old rows"""
    gate_old: Path | None = None
    gate_new: Path | None = None
    least: int = 20
    """Fewer new rows aren't worth a training"""
    exports: tuple[str, ...] | None = None
    """Forms to export to; None: those that the current version has"""
    then: Then = "promote"
    """What becomes of a version that passed"""
    percent: float = 10.0
    """Of the conversations, for a canary or shadow"""
    afresh: bool = False
    """Drop what an earlier retraining left unfinished"""
    or_anew: bool = False
    """Drop it only where that one was asked for something else, as there is nobody to say so"""

    def asked(self) -> dict[str, Any]:
        """What decides how the version turns out, for JSON, without a database's password."""
        kept = {name: value for name, value in asdict(self).items() if name not in _LATER}
        kept["wanted"]["store"] = None if self.wanted.store is None else named(self.wanted.store)
        found: dict[str, Any] = json.loads(json.dumps(kept, default=str))
        return found


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    version: Version | None
    """None where there was too little to learn from"""
    said: list[str]
    """In words"""
    promoted: bool = False


def retrain(folder: Path, options: Options, command: str) -> Outcome:
    """Make the next version, or finish making it.

    Raises MedituneError where another retraining is at work in the registry, or one with other options isn't finished;
    DataError, ModelError and RecipeError as a run does.
    """
    registry = Registry(folder)
    work = Work(registry)
    _current(registry)
    with _alone(folder):
        if (made := work.made()) and not options.afresh:
            if not (since := _since(registry, made)):
                return _ended(registry, work, made, [], options)
            print(f"{made.id} was made before and {since}. The next one is begun.", file=sys.stderr)
        if made:
            work.end()
        elif options.afresh:
            work.drop()
        current = registry.checked(_current(registry))
        work.claim(current.id, options.asked(), options.or_anew)
        try:
            recipe, new, fed = _laid_out(registry, current.id, work, options)
        except TooFewError as error:
            work.drop()
            return Outcome(None, [f"{error} Nothing was trained; {current.id} stays."])
        run = work.run
        pipeline.run(recipe, run, command)
        _export(run, registry.place(current.id), options.exports)
        announce("judge")
        gates = release_gate.Gates(
            *(load_policy(path) if path else None for path in (options.gate_old, options.gate_new))
        )
        judged = release_gate.judge(run, new, gates, recipe.evaluate.resamples, recipe.seed)
        index = str(read_json(work.facts)["index"])
        made = registry.add(run, (current.id,), fed, {"against": current.id, **judged}, index)
        said = [*release_gate.lines(judged), f"{made.id}: {registry.place(made.id).resolve()}"]
        return _ended(registry, work, made, said, options)


def next_step(name: str) -> Then:
    """What is to become of a version, by its name. Raises DataError for another."""
    for each in THENS:
        if each == name:
            return each
    raise DataError(f"--then {name}: one of {', '.join(THENS)}.")


def _current(registry: Registry) -> str:
    current = registry.state().current
    if current is None:
        raise MedituneError(f"Nothing in {registry.folder} is served yet, so there is nothing to go on from.")
    return current


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise MedituneError(
            f"Another retraining is at work in {folder}. Wait until it is done; the next one then goes on from what it "
            "made."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _laid_out(
    registry: Registry, current: str, work: Work, options: Options
) -> tuple[Recipe, set[str], dict[str, Any]]:
    """The run's recipe, its data laid out, the ids of new items that it measures, and what is new by kind."""
    run, facts = work.run, work.facts
    if facts.is_file():
        said = read_json(facts)
        print(f"What was gathered then: {', '.join(_counted(said['fed']))}.", file=sys.stderr)
        return load_recipe(str(run / RECIPE)).recipe, set(said["new"]), said["fed"]
    announce("gather")
    gathered = new_training_data.gather(options.wanted, work.rows)
    for why, count in gathered.left_out.items():
        print(f"Left out: {count:,} {why}.", file=sys.stderr)
    parent = registry.place(current)
    before = stored_data(parent / "data")
    known = load_recipe(str(parent / RECIPE)).recipe
    rows, looked = _rows(gathered, known)
    pool = new_training_data.known_rows(registry, current)
    dealt = new_training_data.deal(
        rows, before.splits, pool, options.shares, known.seed, options.decisions, known.data.incomplete, options.least
    )
    for why, count in dealt.left_out.items():
        print(f"Left out: {count:,} {why}.", file=sys.stderr)
    files = [path.resolve() for path in gathered.files.values()]
    recipe = derive_recipe(parent, before.splits, dealt.splits, files, before.synthetic)
    recipe = with_settings(recipe, work.folder / RECIPE, options.settings)
    fed = gathered.facts() | {"replay": {"rows": dealt.replayed, "sha256": before.sha256}}
    dealt.splits = mark_plain_style(dealt.splits, recipe.data)
    if options.decisions:
        fed["decisions"] = {"rows": len(dealt.decided.get("actions", {})), "sha256": sha256(options.decisions)}
    measured = dealt.splits.measured(recipe.evaluate.split)
    new = [example.id for example in measured if example.id in dealt.new]
    checked = leakage.check(dealt.splits, recipe.evaluate.split, recipe.model.base)
    save(recipe, run / RECIPE)
    done = {"decisions": dealt.decided} if dealt.decided else {}
    data = write_prepared(recipe, run / "data", dealt.splits, looked, checked, done, before.synthetic)
    note_data(recipe, run, data.sha256)
    write_json(facts, {"new": new, "fed": fed, "index": gathered.index})
    print(_dealt(dealt), file=sys.stderr)
    return recipe, set(new), fed


def _rows(gathered: NewTrainingData, recipe: Recipe) -> tuple[list[Example], DataCheck]:
    """The gathered rows after the checks that any training data go through."""
    spec = recipe.data
    rejects, phi = Rejects(cleaner(spec.phi)), Findings(spec.phi)
    by_kind = {
        kind: list(deidentify(list(read(path, rejects)), spec.phi, phi)) for kind, path in gathered.files.items()
    }
    audit = Audit(spec.quality, (), hidden=phi.left_in)
    audit.rows(by_kind)
    said = {kind: {"read": len(rows), "licence": "yours", "rejected": {}} for kind, rows in by_kind.items()}
    rows = [example for examples in audit.left.values() for example in examples]
    return rows, DataCheck(said, audit, rejects, phi)


def _export(run: Path, parent: Path, exports: tuple[str, ...] | None) -> None:
    """In the forms asked for, or those that the version before is served in."""
    from meditune.export.export import export

    there = sorted(path.parent.name for path in (parent / EXPORTS).glob(f"*/{EXPORT}"))
    for kind in there if exports is None else exports:
        announce(f"export to {kind}")
        export(str(run), kind)


def _since(registry: Registry, made: Version) -> str:
    """What became of a version after it was added, in words; empty where nothing did yet."""
    after = [each for each in registry.state().history if each.version == made.id and each.what != "added"]
    return f"{after[-1].what} at {after[-1].when}" if after else ""


def _ended(registry: Registry, work: Work, made: Version, said: list[str], options: Options) -> Outcome:
    """The outcome of a retraining whose version was made. What can't be done by another call isn't left to one."""
    try:
        said = [*said, *_followed(registry, made, made.parents[0], options)]
    except (DataError, GateError):
        work.end()
        raise
    work.end()
    return Outcome(made, said, registry.state().current == made.id)


def _followed(registry: Registry, made: Version, before: str, options: Options) -> list[str]:
    """What becomes of the new version, and that in words."""
    if registry.state().current == made.id:
        return [f"{made.id} is served already."]
    if not made.passed:
        judged = made.gate["on"].values() if made.gate else ()
        if all(each["passed"] for row in judged for each in row["checks"]):
            by_hand = f"meditune registry promote {registry.folder} {made.id} --force --why REASON"
            return [f"{made.id} can't be judged by its gate: {before} stays. Where people find it better: {by_hand}"]
        return [f"{made.id} did not pass its gate: {before} stays."]
    why = f"passed its gate against {before}"
    if registry.state().current != before:
        return [f"{made.id} {why}, but {registry.state().current} is served by now, so {made.id} is only kept."]
    if options.then == "keep":
        return [f"{made.id} {why}. Serve it with: meditune registry promote {registry.folder} {made.id}"]
    if options.then == "promote":
        registry.promote(made.id, why)
        return [f"{made.id} {why} and is served from now on."]
    registry.try_out(made.id, options.then, options.percent, why)
    return [f"{made.id} {why} and is tried as a {options.then} in {options.percent:g} % of the conversations."]


def _counted(fed: dict[str, Any]) -> list[str]:
    return [f"{row['rows']:,} rows of {kind}" for kind, row in fed.items()]


def _dealt(dealt: DealtRows) -> str:
    splits = dealt.splits
    return (
        f"{dealt.learnt:,} new rows to learn, {dealt.replayed:,} old ones rehearsed; held out: {len(splits.test):,} "
        f"to measure and {len(splits.dev):,} for development, {len(dealt.new):,} of them new."
    )
