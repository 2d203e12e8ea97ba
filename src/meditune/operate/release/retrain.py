"""One retraining: gather, deal, train from the current version, judge against it, keep, promote.

What isn't finished lies in the registry's `work/`, so the same command goes on where it was stopped. What was gathered
is kept in `rows/`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from meditune import run as journey
from meditune.data import leakage
from meditune.data.deidentify import Findings, cleaner, deidentify
from meditune.data.example import Example
from meditune.data.own import read
from meditune.data.prepare import Looked, keep, stored
from meditune.data.quality.audit import Audit
from meditune.data.rejects import Rejects
from meditune.data.styles import styled
from meditune.engines.exported import EXPORT, EXPORTS
from meditune.errors import DataError, GateError, MedituneError
from meditune.evaluate.gate import load_policy
from meditune.files import read_json, sha256, write_json
from meditune.folder import RECIPE, announce, note_data
from meditune.operate.release import deriving, gathering, judging, splitting
from meditune.operate.release.gathering import Gathered, Wanted
from meditune.operate.release.splitting import Dealt, Shares, TooFewError
from meditune.operate.release.unfinished import Work
from meditune.recipe import Recipe
from meditune.recipes.loading import load_recipe
from meditune.recipes.writing import save
from meditune.registry.registry import Registry
from meditune.registry.version import Version
from meditune.store.opening import named

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
        journey.run(recipe, run, command)
        _export(run, registry.place(current.id), options.exports)
        announce("judge")
        gates = judging.Gates(*(load_policy(path) if path else None for path in (options.gate_old, options.gate_new)))
        judged = judging.judge(run, new, gates, recipe.evaluate.resamples, recipe.seed)
        index = str(read_json(work.facts)["index"])
        made = registry.add(run, (current.id,), fed, {"against": current.id, **judged}, index)
        said = [*judging.lines(judged), f"{made.id}: {registry.place(made.id).resolve()}"]
        return _ended(registry, work, made, said, options)


def then_of(name: str) -> Then:
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
    gathered = gathering.gather(options.wanted, work.rows)
    for why, count in gathered.left_out.items():
        print(f"Left out: {count:,} {why}.", file=sys.stderr)
    parent = registry.place(current)
    before = stored(parent / "data")
    known = load_recipe(str(parent / RECIPE)).recipe
    rows, looked = _rows(gathered, known)
    pool = splitting.known_rows(registry, current)
    dealt = splitting.deal(
        rows, before.splits, pool, options.shares, known.seed, options.decisions, known.data.incomplete, options.least
    )
    for why, count in dealt.left_out.items():
        print(f"Left out: {count:,} {why}.", file=sys.stderr)
    files = [path.resolve() for path in gathered.files.values()]
    recipe = deriving.derived(parent, before.splits, dealt.splits, files, before.synthetic)
    recipe = deriving.with_settings(recipe, work.folder / RECIPE, options.settings)
    fed = gathered.facts() | {"replay": {"rows": dealt.replayed, "sha256": before.sha256}}
    dealt.splits = styled(dealt.splits, recipe.data)
    if options.decisions:
        fed["decisions"] = {"rows": len(dealt.decided.get("actions", {})), "sha256": sha256(options.decisions)}
    measured = dealt.splits.measured(recipe.evaluate.split)
    new = [example.id for example in measured if example.id in dealt.new]
    checked = leakage.check(dealt.splits, recipe.evaluate.split, recipe.model.base)
    save(recipe, run / RECIPE)
    done = {"decisions": dealt.decided} if dealt.decided else {}
    data = keep(recipe, run / "data", dealt.splits, looked, checked, done, before.synthetic)
    note_data(recipe, run, data.sha256)
    write_json(facts, {"new": new, "fed": fed, "index": gathered.index})
    print(_dealt(dealt), file=sys.stderr)
    return recipe, set(new), fed


def _rows(gathered: Gathered, recipe: Recipe) -> tuple[list[Example], Looked]:
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
    return rows, Looked(said, audit, rejects, phi)


def _export(run: Path, parent: Path, exports: tuple[str, ...] | None) -> None:
    """In the forms asked for, or those that the version before is served in."""
    from meditune.export.stage import export

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


def _dealt(dealt: Dealt) -> str:
    splits = dealt.splits
    return (
        f"{dealt.learnt:,} new rows to learn, {dealt.replayed:,} old ones rehearsed; held out: {len(splits.test):,} "
        f"to measure and {len(splits.dev):,} for development, {len(dealt.new):,} of them new."
    )
