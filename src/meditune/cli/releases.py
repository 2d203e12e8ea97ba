"""`meditune registry`, `retrain` and `loop`: parsing and printing. Heavy libraries are imported by what they call.

A registry in the terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meditune.cli.options import Overrides

if TYPE_CHECKING:
    from meditune.model_registry import Registry, State, Version

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meditune.errors import DataError, DriftError, GateError, MedituneError

registry_app = typer.Typer(
    help="Versions of a model: added, tried, promoted, rolled back.", no_args_is_help=True, rich_markup_mode=None
)

Where = Annotated[Path, typer.Argument(metavar="REGISTRY", help="The registry's folder.")]
Id = Annotated[str, typer.Argument(metavar="VERSION", help="A version's id, as `meditune registry list` shows it.")]
Why = Annotated[str, typer.Option("--why", metavar="REASON", help="Kept in the registry's history.")]
Force = Annotated[bool, typer.Option("--force", help="Against the gate, or without one; needs --why.")]


@registry_app.command("list")
def show_all(registry: Where) -> None:
    """All versions: what each is at the moment, whether it passed its gate, figures on its own test items."""

    for line in overview(_registry(registry)):
        typer.echo(line)


@registry_app.command()
def show(registry: Where, version: Id) -> None:
    """Lineage, figures, gate and history of a version; its files are checked."""

    for line in details(_registry(registry), version):
        typer.echo(line)


@registry_app.command()
def add(
    registry: Where,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run's folder. It is copied.")],
    parent: Annotated[
        list[str] | None, typer.Option("--parent", metavar="VERSION", help="What it was trained from. Repeatable.")
    ] = None,
    note: Annotated[str, typer.Option(help="Kept with the version.")] = "",
) -> None:
    """Keep a finished run as a version. The registry is made where there is none, and its first version promoted."""
    found = _registry(registry)
    made = found.add(run, tuple(parent or ()), note=note)
    typer.echo(f"{made.id}: {(found.place(made.id)).resolve()}")
    if found.state().current is None:
        found.promote(made.id, "the first version")
        typer.echo(f"{made.id} is served from now on, as the first version.")


@registry_app.command()
def promote(registry: Where, version: Id, why: Why = "", force: Force = False) -> None:
    """Serve a version from now on. One that didn't pass its gate is refused, unless it is forced with a reason."""
    _registry(registry).promote(version, why, force)
    typer.echo(f"{version} is served from now on.")


@registry_app.command("try")
def try_out(
    registry: Where,
    version: Id,
    percent: Annotated[float, typer.Option(help="Share of the conversations, in percent.")] = 10.0,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Its answers are kept beside the others' and shown to nobody.")
    ] = False,
    why: Why = "",
    force: Force = False,
) -> None:
    """Try a version beside the one that is served: as a canary for a share of the conversations, or unseen."""
    _registry(registry).try_out(version, "shadow" if shadow else "canary", percent, why, force)
    typer.echo(f"{version} is tried in {percent:g} % of the conversations{', unseen' if shadow else ''}.")


@registry_app.command()
def stop(registry: Where, why: Why = "") -> None:
    """End the trial that is on."""
    _registry(registry).end_trial(why)
    typer.echo("The trial is over.")


@registry_app.command()
def rollback(registry: Where, why: Why = "by hand") -> None:
    """Serve the version before the current one. Nothing promotes the one rolled back by itself any more."""
    found = _registry(registry).rollback(why)
    typer.echo(f"{found} is served from now on.")


@registry_app.command()
def guard(
    registry: Where,
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="DIR|URL", envvar="MEDITUNE_STORE", help="A server's, with its answers."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="REFERENCE", help="Of `meditune drift check`; with --store its alerts count.")
    ] = None,
    canary: Annotated[Path | None, typer.Option(metavar="RESULTS", help="Of `meditune drift canary`.")] = None,
) -> None:
    """Roll back, or end the trial, where answers got worse. Ends with code 6 where it did."""
    from meditune.operate.retraining import rollback as guarding

    found = guarding.guard(registry, store, reference, None, canary)
    for line in found.why:
        typer.echo(line)
    if found.taken_back:
        raise DriftError(f"{found.taken_back} was taken back; {found.served} is served.")


def retrain(
    registry: Where,
    store: Annotated[
        str | None,
        typer.Option(
            "--store", metavar="DIR|URL", envvar="MEDITUNE_STORE", help="A server's: corrections are learnt from."
        ),
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY|all", help="A key's id whose corrections count beside experts'; all: anybody's."),
    ] = None,
    labels: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Questions with experts' answers or decisions, as any own file. Repeatable."),
    ] = None,
    queue: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="A queue that experts judged (meditune learn queue).")
    ] = None,
    literature: Annotated[
        list[Path] | None, typer.Option(metavar="LIBRARY|FILE", help="Pairs that `meditune update` made. Repeatable.")
    ] = None,
    decisions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What people decided about old rows (meditune annotate import).")
    ] = None,
    index: Annotated[
        str | None, typer.Option(metavar="INDEX", help="Corrections get the passages that their answers rested on.")
    ] = None,
    overrides: Overrides = None,
    replay: Annotated[float, typer.Option(min=0, help="Old training rows rehearsed for each new one.")] = 1.0,
    held_out: Annotated[float, typer.Option(min=0.05, max=0.9, help="Share of the new rows to measure on.")] = 0.3,
    dev_share: Annotated[float, typer.Option(min=0.0, max=0.5, help="... and for development.")] = 0.1,
    least: Annotated[int, typer.Option(min=1, help="With fewer new rows nothing is trained.")] = 20,
    gate_old: Annotated[
        Path | None, typer.Option("--gate", metavar="FILE", help="A policy for the old items, as for compare --gate.")
    ] = None,
    gate_new: Annotated[Path | None, typer.Option(metavar="FILE", help="... and one for the new items.")] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="Export it, too: openvino, gguf. By default as the current version is."),
    ] = None,
    then: Annotated[
        str, typer.Option(metavar="promote|canary|shadow|keep", help="What becomes of a version that passes.")
    ] = "promote",
    percent: Annotated[float, typer.Option(help="Of the conversations, for a canary or shadow.")] = 10.0,
    afresh: Annotated[bool, typer.Option("--afresh", help="Drop what an earlier retraining left unfinished.")] = False,
) -> None:
    """Train the next version on what was learnt since, from the current one, and hold it against that.

    It is measured beside the current version on the old test items and on new ones that are held out, and kept; only
    one that passes its gate is promoted. Ends with code 5 where it doesn't pass. The same command goes on where it was
    stopped.
    """
    from meditune.operate.retraining import retrain as retraining
    from meditune.operate.retraining.new_training_data import Shares, Wanted

    # An empty name would be that of callers without a key.
    trusted = tuple(key for key in trust or () if key)
    wanted = Wanted(store, trusted, tuple(labels or ()), tuple(queue or ()), tuple(literature or ()), index)
    if wanted.is_empty:
        raise DataError("There is nothing to learn from. Give --store, --labels, --queue or --literature.")
    options = retraining.Options(
        wanted,
        Shares(held_out, dev_share, replay),
        tuple(overrides or ()),
        decisions,
        gate_old,
        gate_new,
        least,
        tuple(export) if export is not None else None,
        retraining.next_step(then),
        percent,
        afresh,
    )
    outcome = retraining.retrain(registry, options, f"meditune retrain {registry}")
    for line in outcome.said:
        typer.echo(line)
    if outcome.version is not None and not outcome.version.passed:
        raise GateError(f"{outcome.version.id} is not surely better, or worse somewhere, so it isn't served.")


def loop(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML file: docs/how-to/retrain-and-release.md#the-loop.")
    ],
    once: Annotated[bool, typer.Option("--once", help="Do what is due and end; code 1 where a stage failed.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Say how far it got, and end.")] = False,
) -> None:
    """Run the cycle in one process: new research, drift, canaries, taking back, retraining; until ctrl-C."""
    from meditune.operate import loop as running
    from meditune.operate import loop as states
    from meditune.operate.loop import load

    found = load(config)
    if status:
        for line in states.lines(states.load_state(found.registry / running.FILE)):
            typer.echo(line)
        return
    if failed := running.loop(found, typer.echo, once):
        raise MedituneError(f"{failed} of the stages failed; they are tried again by the next call.")


def _registry(folder: Path) -> Registry:
    from meditune.model_registry import Registry

    return Registry(folder)


TOLD = ("accuracy", "macro_f1", "perplexity", "rougeL", "faithfulness", "general_perplexity")
"""Figures that a list has room for"""


def role(state: State, id: str) -> str:
    """What a version is at the moment: served, tried, earlier, rolled back, or nothing yet."""
    if state.current == id:
        return "served"
    if state.trial and state.trial.version == id:
        return f"{state.trial.mode} {state.trial.percent:g} %"
    if id in state.withdrawn:
        return "rolled back"
    return "earlier" if id in state.standing else "-"


def overview(registry: Registry) -> Iterator[str]:
    """One line for each version, the newest last."""
    from meditune.evaluate.metrics import METRICS

    state = registry.state()
    for id in state.versions:
        found = registry.get(id)
        gate = "no gate" if found.gate is None else "passed" if found.passed else "refused"
        figures = ", ".join(
            f"{name} {found.figures[name]:.{METRICS[name].digits}f}" for name in TOLD if name in found.figures
        )
        parents = f"from {', '.join(found.parents)}" if found.parents else f"on {found.base_model}"
        yield f"{id}  {role(state, id):12}  {gate:8}  {found.made[:16]}  {parents:12}  {figures}"
    if not state.versions:
        yield f"No versions yet. Add one: meditune registry add {registry.folder} RUN"


def details(registry: Registry, id: str) -> Iterator[str]:
    """All that is known of a version, with what is wrong with its files."""
    from meditune.model_registry import damaged_files

    state, found = registry.state(), registry.get(id)
    yield f"{id}: {role(state, id)}; made {found.made} by Meditune {found.meditune} from {found.came_from}"
    yield f"Parents: {', '.join(found.parents) or f'none (base model {found.base_model})'}; recipe {found.recipe}"
    data = found.data
    yield f"Data: {data['train']:,} train, {data['dev']:,} dev, {data['test']:,} test; SHA-256 {data['sha256']}"
    for source, row in found.fed.items():
        yield f"  new: {row['rows']:,} rows of {source}, SHA-256 {row['sha256']}"
    if found.index:
        yield f"Index content when it was made: {found.index}"
    if found.note:
        yield f"Note: {found.note}"
    yield from _judged(found)
    wrong = damaged_files(registry.place(id), found)
    total = sum(row["bytes"] for row in found.files.values()) / 1e6
    whole = f"DAMAGED: {wrong}" if wrong else "whole"
    yield f"Files: {len(found.files)}, {total:.1f} MB, {whole}; weights {found.weights}"
    for event in state.history:
        if event.version == id:
            why = f": {event.why}" if event.why else ""
            yield f"  {event.when}  {event.what}{' (forced)' if event.forced else ''}{why}"


def _judged(found: Version) -> Iterator[str]:
    if found.gate is None:
        yield "Gate: none; it was held against no other version."
        return
    yield f"Gate, against {found.gate['against']}: {'passed' if found.passed else 'NOT passed'}"
    for items, judged in found.gate["on"].items():
        if judged.get("unjudged"):
            yield f"  {judged['unjudged']}"
        for check in judged["checks"]:
            mark = "ok    " if check["passed"] else "FAILED"
            yield f"  {mark} {items}: {check['metric']} {check['rule'].replace('_', ' ')} ({check['why']})"
