"""Imports inside the package run one way: down the list of layers."""

import ast
from collections.abc import Iterator
from pathlib import Path

import meditune

SOURCE = Path(meditune.__file__).parent
LAYERS = (
    *(
        "cli",
        "commands",
        "doctor",
        "terminal",
        "comparing",
        "operate",
        "serve",
        "answering",
        "ask",
        "merge",
        "crossval",
        "run",
        "remote",
        "prune",
        "planning",
        "review",
        "export",
        "registry",
        "folder",
        "grounding",
    ),
    *("evaluate", "retrieve", "train", "engines", "models", "prompts", "data", "store"),
    *("phi", "faithfulness", "readability"),
    *("recipes", "recipe", "identifiers", "limits", "shares", "text", "machine", "progress", "ranks", "files"),
    "errors",
)
"""From top to bottom. A module imports only what stands below it, or its own package."""
STRANGERS = {("evaluate", "train"), ("evaluate", "retrieve"), ("retrieve", "train"), ("operate", "serve")}
"""Neighbours of which neither imports the other, though one stands higher in the list."""


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and layer of every import of the package in a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write it from the package on"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "meditune" else [module]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "meditune" and rest and not rest.startswith("__"):
                yield node.lineno, rest.split(".")[0]


def test_imports_run_down_the_layers():
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        here = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if here.startswith("__"):
            continue
        assert here in LAYERS, f"{path} is in no layer: put {here} into LAYERS where it belongs"
        for line, there in imported(path):
            assert there in LAYERS, f"{path}:{line} imports {there}, which is in no layer"
            climbs = LAYERS.index(there) < LAYERS.index(here)
            if climbs or (here, there) in STRANGERS or (there, here) in STRANGERS:
                wrong.append(f"{path.relative_to(SOURCE.parent)}:{line}: {here} imports {there}")
    assert not wrong, "These imports don't run down the layers:\n" + "\n".join(wrong)


def test_every_layer_exists():
    there = {path.name.removesuffix(".py") for path in SOURCE.iterdir() if not path.name.startswith("__")}
    assert set(LAYERS) <= there, f"LAYERS names what isn't there: {set(LAYERS) - there}"
