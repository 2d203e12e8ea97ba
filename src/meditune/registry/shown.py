"""A registry in the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from meditune.evaluate.metrics import METRICS
from meditune.registry.registry import Registry
from meditune.registry.state import State
from meditune.registry.version import Version, damage

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
    wrong = damage(registry.place(id), found)
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
