"""What users and their scripts rely on stays as it was: commands, recipe keys, the HTTP API, a run's files.

A deliberate change is written down by `python -m tests.test_contracts`, and its difference is reviewed in the commit.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from meditune.assistant.emergencies import emergency_numbers
from meditune.assistant.triage import triage
from meditune.cli import main
from meditune.config.recipe import Recipe
from meditune.config.recipe_keys import declared, dotted, slot
from meditune.phi.detector import find
from meditune.serve.settings import Settings
from tests import commands
from tests.loopback_server import served

CONTRACTS = Path(__file__).parent / "contracts"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def options_of(command: Any, path: str = "meditune") -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield every command's path with its arguments and options: names, type, default."""
    yield (
        path,
        [
            {
                "name": parameter.name,
                "options": sorted([*parameter.opts, *parameter.secondary_opts]),
                "type": getattr(annotation := parameter.type_descriptor.annotation, "__name__", str(annotation)),
                "required": parameter.required,
                "repeated": parameter.multiple or parameter.nargs != 1,
                "default": _plain(parameter.default),
            }
            for parameter in command.params
        ],
    )
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from options_of(inner, f"{path} {name}")


def _plain(default):
    """Return a default as JSON can hold it."""
    if callable(default):
        return None
    return str(default) if isinstance(default, Path) else default


def command_line() -> dict[str, Any]:
    """Return every command with its options."""
    return dict(options_of(typer.main.get_command(main.cli_app)))


def recipe_keys() -> dict[str, Any]:
    """Return every key of a recipe with what it may hold, and its default where it stands outside a list."""
    defaults = Recipe(name="contract").model_dump(mode="json")
    found: dict[str, Any] = {}
    for key in declared():
        here = slot(key)
        assert here
        found[dotted(key)] = [here.words()]
        value: Any = defaults
        for part in key:
            value = value.get(part) if isinstance(value, dict) else None
        if 0 not in key:
            found[dotted(key)].append(value)
    return found


def without_prose(value: Any) -> Any:
    """Return an OpenAPI document without titles, summaries and descriptions."""
    if isinstance(value, dict):
        prose = {"description", "summary", "operationId", "title", "example", "examples"}
        return {key: without_prose(inner) for key, inner in value.items() if key not in prose or key == "properties"}
    return [without_prose(inner) for inner in value] if isinstance(value, list) else value


def http_api(folder: Path) -> Any:
    """Return paths and schemas of the HTTP API."""
    with served(folder, Settings()) as running:
        return without_prose(running.ask("/openapi.json").json)


def shape(value: Any) -> Any:
    """Return the keys of a JSON value, to any depth; a list counts as its first item."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in sorted(value.items())}
    return [shape(value[0])] if isinstance(value, list) and value else type(value).__name__


def run_of_a_tiny_model(folder: Path) -> dict[str, Any]:
    """Return which files a run leaves, which keys its report has, and what the tiny models decided and wrote."""
    with commands.bench(folder) as bench:
        bench.run("run").ok()
        run = bench.folder / "run"
        files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
        rows = commands.read_rows(run / "predictions" / "base-decision.jsonl")
        decisions = [
            {"id": row["id"], "prediction": row["prediction"], "logits": sorted(row["logits"])} for row in rows
        ]
        return {"files": files, "report": shape(bench.report("run")), "decisions": decisions}


def decisions_of_rules() -> dict[str, Any]:
    """Return what the rules of triage, and of identifiers, make of the sets that they were measured on."""
    anywhere = emergency_numbers()
    found: dict[str, Any] = {}
    for path in sorted(BENCHMARKS.glob("triage_*.yaml")):
        kinds = yaml.safe_load(path.read_text(encoding="utf-8"))
        for kind, texts in kinds.items():
            actions = [triage(text, anywhere) for text in texts]
            found[f"{path.stem} {kind}"] = " ".join(f"{each.action}:{each.kind}" for each in actions)
    for path in sorted(BENCHMARKS.glob("phi_*.txt")):
        spans = [f"{span.start}-{span.end} {span.kind}" for span in find(path.read_text(encoding="utf-8"))]
        found[path.stem] = [len(spans), hashlib.sha256("\n".join(spans).encode()).hexdigest()]
    return found


CHECKED = {"command_line": command_line, "recipe_keys": recipe_keys, "rules": decisions_of_rules}


def as_text(value: Any) -> str:
    """Return a contract as it is stored."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def stored(name: str) -> str:
    """Return the contract of that name."""
    return (CONTRACTS / f"{name}.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CHECKED)
def test_contract_holds(name):
    assert as_text(CHECKED[name]()) == stored(name)


def test_http_api_holds(tmp_path):
    assert as_text(http_api(tmp_path)) == stored("http_api")


def test_run_leaves_the_same_files_and_report(tmp_path):
    assert as_text(run_of_a_tiny_model(tmp_path)) == stored("run")


def write() -> None:
    """Write down the contracts as they are now."""
    CONTRACTS.mkdir(exist_ok=True)
    for name, current in CHECKED.items():
        (CONTRACTS / f"{name}.json").write_text(as_text(current()), encoding="utf-8")
    for name, measured in {"run": run_of_a_tiny_model, "http_api": http_api}.items():
        with tempfile.TemporaryDirectory() as folder:
            (CONTRACTS / f"{name}.json").write_text(as_text(measured(Path(folder))), encoding="utf-8")


if __name__ == "__main__":
    write()
