"""`meditune registry`, `meditune retrain` and `meditune loop`: manage, train and release versions of a model."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from meditune.cli.options import Group, Overrides, Paths, Store, Text, Texts, documented
from meditune.cli.tables import print_lines
from meditune.errors import DataError, DriftError, GateError, MedituneError

if TYPE_CHECKING:
    from meditune.model_registry import Registry, State

registry_app = Group(
    "registry", "Add, try, promote and roll back versions of a model.", "how-to/retrain-and-release.md"
)

RegistryFolder = Annotated[Path, Argument(metavar="REGISTRY", help="Folder of the registry.")]
Id = Annotated[str, Argument(metavar="VERSION", help="A version's id, such as v0002 or v2 for short.")]
Reason = Annotated[str, Option("--reason", metavar="TEXT", help="Reason to store in the registry's history.")]
Force = Annotated[bool, Option("--force", help="Accept a version that didn't pass its gate; needs --reason.")]


@registry_app.command("list", example="clinic")
def show_all(registry: RegistryFolder) -> None:
    """List all versions with their role, gate, parents and metrics."""
    print_lines(_overview(_registry(registry)))


@registry_app.command(example="clinic v2")
def show(registry: RegistryFolder, version: Id) -> None:
    """Show a version's lineage, data, gate and history, and check its files."""
    print_lines(_details(_registry(registry), _version(version)))


@registry_app.command(example="clinic runs/quickstart")
def add(
    registry: RegistryFolder,
    run: Annotated[Path, Argument(metavar="RUN", help="Folder of a finished run. It is copied into the registry.")],
    parent: Annotated[
        Texts, Option("--parent", metavar="VERSION", help="Version that the run was trained from. Repeatable.")
    ] = None,
    note: Annotated[str, Option(help="Note to store with the version.")] = "",
    gate: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Gate policy (YAML) for a comparison with the served version on the same test items, so that the "
            "version can be promoted. Exit code 5 means that it didn't pass.",
        ),
    ] = None,
) -> None:
    """Add a finished run as a version. A missing registry is created, and its first version is promoted."""
    from meditune.operate.retraining import release_gate

    found = _registry(registry)
    judged = _compared_with_served(found, run, gate) if gate else None
    version = found.add(run, tuple(map(_version, parent or ())), gate=judged, note=note)
    if judged:
        print_lines(release_gate.lines(judged))
    typer.echo(f"{version.id}: {(found.place(version.id)).resolve()}")
    if judged and not version.passed:
        raise GateError(f"{version.id} didn't pass its gate, so it isn't served.")
    if judged:
        serve = shlex.join(["meditune", "registry", "promote", str(registry), version.id])
        typer.echo(f"{version.id} passed its gate. Serve it: {serve}")
    elif found.state().current is None:
        found.promote(version.id, "the first version")
        typer.echo(f"{version.id} is now served, as the first version.")


@registry_app.command(example="clinic v2")
def promote(registry: RegistryFolder, version: Id, reason: Reason = "", force: Force = False) -> None:
    """Serve a version from now on. A version that didn't pass its gate needs --force and --reason."""
    id = _version(version)
    _registry(registry).promote(id, reason, force)
    typer.echo(f"{id} is now served.")


@registry_app.command("canary", example="clinic v2 --percent 10")
def try_canary(
    registry: RegistryFolder,
    version: Id,
    percent: Annotated[float, Option(help="Percentage of the conversations that the canary answers.")] = 10.0,
    reason: Reason = "",
    force: Force = False,
) -> None:
    """Try a version as a canary, which answers a share of the conversations."""
    id = _version(version)
    _registry(registry).start_canary(id, percent, reason, force)
    typer.echo(f"{id} is a canary in {percent:g}% of the conversations.")


@registry_app.command(example='clinic --reason "slower than the served version"')
def stop(registry: RegistryFolder, reason: Reason = "") -> None:
    """End the trial of the current canary."""
    _registry(registry).end_trial(reason)
    typer.echo("The trial has ended.")


@registry_app.command(example="clinic")
def rollback(registry: RegistryFolder, reason: Reason = "by hand") -> None:
    """Serve the previous version again. The version that is rolled back is never promoted automatically again."""
    found = _registry(registry).rollback(reason)
    typer.echo(f"{found} is now served.")


@registry_app.command(
    example="clinic --store store --reference drift/reference", page="how-to/retrain-and-release.md#automatic-rollback"
)
def guard(
    registry: RegistryFolder,
    store: Store = None,
    reference: Annotated[
        Path | None, Option(metavar="REFERENCE", help="Also consider the alerts of this drift reference.")
    ] = None,
    canary: Annotated[
        Path | None, Option(metavar="RESULTS", help="Also consider these results of `meditune drift canary`.")
    ] = None,
) -> None:
    """Roll back the served version if its answers got worse, or end a canary's trial if the canary's answers got worse.

    In both cases, the exit code is 6.
    """
    from meditune.operate.retraining.rollback import guard as check_versions

    found = check_versions(registry, store, reference, canary)
    print_lines(found.why)
    if found.rolled_back:
        raise DriftError(f"{found.rolled_back} was withdrawn; {found.served} is served.")


@documented("retrain clinic --store store --labels experts.jsonl", "how-to/retrain-and-release.md#retraining")
def retrain(
    registry: RegistryFolder,
    store: Store = None,
    trust: Annotated[
        Texts,
        Option(
            metavar="KEY_ID|all",
            help="Besides experts' corrections, use the corrections made with the API key that has this id; all: use "
            "all corrections. Repeatable.",
        ),
    ] = None,
    labels: Annotated[
        Paths, Option(metavar="FILE", help="File of questions with experts' answers or decisions. Repeatable.")
    ] = None,
    queue: Annotated[
        Paths, Option(metavar="DIR", help="Folder that `meditune learn queue` wrote, judged by experts. Repeatable.")
    ] = None,
    literature: Annotated[
        Paths,
        Option(
            metavar="LITERATURE|FILE",
            help="Literature folder of `meditune update`, or its file pairs.jsonl. Repeatable.",
        ),
    ] = None,
    decisions: Annotated[
        Path | None, Option(metavar="FILE", help="File of decisions that `meditune annotate import` wrote.")
    ] = None,
    index: Annotated[
        Text,
        Option(
            metavar="INDEX",
            help="Add each corrected answer's first 3 passages, read from this index, to its training row.",
        ),
    ] = None,
    overrides: Overrides = None,
    replay: Annotated[float, Option(min=0, help="Number of old training rows to replay for each new row.")] = 1.0,
    held_out: Annotated[float, Option(min=0.05, max=0.9, help="Share of the new rows to hold out for testing.")] = 0.3,
    dev_share: Annotated[float, Option(min=0.0, max=0.5, help="Share of the new rows to use as the dev split.")] = 0.1,
    min_rows: Annotated[
        int, Option(min=1, help="Minimum number of new rows; with fewer rows, nothing is trained.")
    ] = 20,
    gate: Annotated[
        Path | None,
        Option(
            "--gate",
            metavar="FILE",
            help="Gate policy (YAML) for the old test items, instead of the default policy.",
        ),
    ] = None,
    gate_new: Annotated[
        Path | None,
        Option(metavar="FILE", help="Gate policy (YAML) for the new test items, instead of the default policy."),
    ] = None,
    export: Annotated[
        Texts,
        Option(
            metavar="KIND",
            help="Format to export to: openvino or gguf; by default, the current version's formats. Repeatable.",
        ),
    ] = None,
    on_pass: Annotated[
        str, Option(metavar="promote|canary|keep", help="What to do with the new version if it passes its gate.")
    ] = "promote",
    percent: Annotated[
        float, Option(help="With --on-pass canary: percentage of the conversations that the canary answers.")
    ] = 10.0,
    restart: Annotated[bool, Option("--restart", help="Discard an unfinished retraining and start again.")] = False,
    restart_if_changed: Annotated[bool, Option("--restart-if-changed", hidden=True)] = False,
) -> None:
    """Train a version on new data, and compare it with the current one.

    Both versions are evaluated on the old test items and on held-out new items. The registry stores the new version,
    which is promoted only if it passes its gate. Exit code 5 means that the version didn't pass. Repeat an interrupted
    command to resume it.
    """
    from meditune.operate.retraining import retrain as retraining
    from meditune.operate.retraining.new_training_data import Shares, TrainingDataSources

    # An empty id would mean callers without a key, so it is dropped.
    trusted = tuple(key for key in trust or () if key)
    sources = TrainingDataSources(
        store, trusted, tuple(labels or ()), tuple(queue or ()), tuple(literature or ()), index
    )
    if sources.is_empty:
        raise DataError("There are no new data. Specify --store, --labels, --queue or --literature.")
    if trusted and not store:
        raise DataError("--trust selects corrections from a server's store, so it needs --store DIR|URL.")
    options = retraining.Options(
        sources,
        Shares(held_out, dev_share, replay),
        tuple(overrides or ()),
        decisions,
        gate,
        gate_new,
        min_rows,
        tuple(export) if export is not None else None,
        retraining.next_step(on_pass),
        percent,
        restart,
        restart_if_changed,
    )
    outcome = retraining.retrain(registry, options, shlex.join(["meditune", "retrain", str(registry)]))
    print_lines(outcome.messages)
    if outcome.version is not None and not outcome.version.passed:
        raise GateError(f"{outcome.version.id} didn't pass its gate, so it isn't served.")


@documented("loop loop.yaml", "how-to/retrain-and-release.md#the-loop")
def loop(
    context: typer.Context,
    config: Annotated[
        Path, Argument(metavar="CONFIG", help="YAML file with the loop's stages; the guide shows an example.")
    ],
    once: Annotated[
        bool, Option("--once", help="Run the stages that are due, and exit; exit code 1 means that a stage failed.")
    ] = False,
    status: Annotated[bool, Option("--status", help="Print the state of each stage and exit.")] = False,
) -> None:
    """Run updates, drift checks, rollback and retraining on a schedule.

    The loop runs in one process until you press ctrl-C.
    """
    from meditune.cli.loop import Config, load_states, run

    found = Config(config, context.find_root().command)
    if status:
        states = load_states(found.registry)
        print_lines(states[name].line(name) for name in states if name in found.every)
        return
    if failed := run(found, typer.echo, once):
        raise MedituneError(f"{failed} of the stages failed. The next call runs them again.")


def _registry(folder: Path) -> Registry:
    from meditune.model_registry import Registry

    return Registry(folder)


def _compared_with_served(registry: Registry, run: Path, gate: Path) -> dict[str, Any]:
    """Return the result of the gate for a run: the check of the policy against the served version."""
    from meditune.evaluate.quality_gate import load_policy
    from meditune.operate.retraining.release_gate import judge_added

    current = registry.state().current
    if current is None:
        raise DataError(f"{registry.folder} serves no version yet to compare {run} with. Leave out --gate.")
    judged = judge_added(registry.place(current), run, load_policy(gate))
    return {"against": current, **judged}


def _version(name: str) -> str:
    from meditune.model_registry import version_id

    return version_id(name)


LISTED = ("accuracy", "macro_f1", "perplexity", "rougeL", "faithfulness", "general_perplexity")
"""Metrics that the list of versions shows"""


def _role(state: State, id: str) -> str:
    if state.current == id:
        return "served"
    if state.trial and state.trial.version == id:
        return f"canary {state.trial.percent:g}%"
    if id in state.withdrawn:
        return "rolled back"
    return "earlier" if id in state.promoted else "-"


def _overview(registry: Registry) -> Iterator[str]:
    from meditune.evaluate.metrics import METRICS

    state = registry.state()
    for id in state.versions:
        found = registry.get(id)
        gate = "no gate" if found.gate is None else "passed" if found.passed else "refused"
        listed = [name for name in LISTED if name in found.figures]
        figures = ", ".join(f"{name} {found.figures[name]:.{METRICS[name].digits}f}" for name in listed)
        parents = f"from {', '.join(found.parents)}" if found.parents else f"on {found.base_model}"
        yield f"{id}  {_role(state, id):12}  {gate:8}  {found.made[:16]}  {parents:12}  {figures}"
    if not state.versions:
        yield f"No versions yet. Add one: meditune registry add {shlex.quote(str(registry.folder))} RUN"


def _details(registry: Registry, id: str) -> Iterator[str]:
    from meditune.model_registry import damaged_files

    state, found = registry.state(), registry.get(id)
    yield f"{id}: {_role(state, id)}; made {found.made} by Meditune {found.meditune} from {found.came_from}"
    yield f"Parents: {', '.join(found.parents) or f'none (base model {found.base_model})'}; recipe {found.recipe}"
    data = found.data
    yield f"Data: {data['train']:,} train, {data['dev']:,} dev, {data['test']:,} test; SHA-256 {data['sha256']}"
    for source, row in found.fed.items():
        yield f"  new: {row['rows']:,} rows of {source}, SHA-256 {row['sha256']}"
    if found.index:
        yield f"Index content at that time: {found.index}"
    if found.note:
        yield f"Note: {found.note}"
    if found.gate is None:
        yield "Gate: none; the version wasn't compared with another."
    else:
        yield f"Gate, against {found.gate['against']}: {'passed' if found.passed else 'NOT passed'}"
        for items, judged in found.gate["on"].items():
            if judged.get("unjudged"):
                yield f"  {judged['unjudged']}"
            for check in judged["checks"]:
                mark = "ok    " if check["passed"] else "FAILED"
                yield f"  {mark} {items}: {check['metric']} {check['rule'].replace('_', ' ')} ({check['why']})"
    wrong = damaged_files(registry.place(id), found)
    total = sum(row["bytes"] for row in found.files.values()) / 1e6
    condition = f"DAMAGED: {wrong}" if wrong else "undamaged"
    yield f"Files: {len(found.files)}, {total:.1f} MB, {condition}; weights {found.weights}"
    for event in state.history:
        if event.version == id:
            why = f": {event.why}" if event.why else ""
            yield f"  {event.when}  {event.what}{' (forced)' if event.forced else ''}{why}"
