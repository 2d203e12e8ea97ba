"""The package stays easy to find one's way in: one idea in a file, telling names, imports that run one way."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import meditune

SOURCE = Path(meditune.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
LAYERS = (
    *("__main__", "cli", "python_api"),
    *("operate", "serve", "assistant", "cross_validation", "pipeline", "out_of_fold", "hosted_pipeline", "review"),
    *("export", "model_registry", "retrieval_augmentation", "run_folder", "evaluate", "retrieve", "train", "engines"),
    "models",
    *("prompts", "chat_template", "data", "store", "phi", "evidence", "readability", "config"),
    *("observability", "statistics"),
    *("progress", "http_client", "files", "distributed", "hardware", "text", "errors"),
)
"""From top to bottom. A module imports only what stands below it, or its own package."""
SEPARATE = {("evaluate", "train"), ("evaluate", "retrieve"), ("retrieve", "train"), ("operate", "serve")}
"""Neighbours of which neither imports the other, although one stands higher in the list."""
MOST_LINES, SMALL, MOST_SMALL, MOST_OF_A_NAME = 700, 60, 20, 2


def lines(path: Path) -> int:
    """Return how many lines a file has."""
    return len(path.read_text(encoding="utf-8").splitlines())


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of every module of the package that a file imports, for type checkers too.

    The package itself isn't counted: modules read its version, and it imports the Python API only when that is used.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write it from the package on"
            module = str(node.module)
            names = [
                f"{module}.{alias.name}" if is_module(f"{module}.{alias.name}") else module for alias in node.names
            ]
        yield from ((node.lineno, name) for name in names if name.startswith("meditune."))


def is_module(name: str) -> bool:
    """Return whether a dotted name is a module or package of ours."""
    place = SOURCE.parent.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def dotted(path: Path) -> str:
    """Return the dotted name of a file."""
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


def test_imports_run_down_the_layers():
    wrong = []
    for path in FILES:
        here = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        assert here in LAYERS, f"{path} is in no layer: put {here} into LAYERS where it belongs"
        for line, name in imported(path):
            there = name.split(".")[1]
            assert there in LAYERS, f"{path}:{line} imports {there}, which is in no layer"
            climbs = LAYERS.index(there) < LAYERS.index(here)
            if climbs or (here, there) in SEPARATE or (there, here) in SEPARATE:
                wrong.append(f"{path.relative_to(SOURCE.parent)}:{line}: {here} imports {there}")
    assert not wrong, "These imports don't run down the layers:\n" + "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle():
    needs = {dotted(path): {name for _, name in imported(path)} - {dotted(path)} for path in FILES}
    while free := [name for name, others in needs.items() if not others & needs.keys()]:
        for name in free:
            del needs[name]
    assert not needs, f"Among these modules some import each other in a circle: {sorted(needs)}"


def test_every_layer_exists():
    there = {path.name.removesuffix(".py") for path in SOURCE.iterdir()}
    assert set(LAYERS) <= there, f"LAYERS names what isn't there: {set(LAYERS) - there}"


def test_a_file_is_one_whole_idea():
    large = {str(path.relative_to(SOURCE)): count for path in FILES if (count := lines(path)) > MOST_LINES}
    small = [str(path.relative_to(SOURCE)) for path in FILES if path.name != "__init__.py" and lines(path) < SMALL]
    assert not large, f"These files have more than {MOST_LINES} lines; are they one idea? {large}"
    assert len(small) < MOST_SMALL, f"A file under {SMALL} lines usually belongs to its only caller: {small}"


def test_a_file_name_says_what_is_in_the_file():
    count = Counter(path.name for path in FILES if path.name != "__init__.py")
    repeated = [name for name, times in count.items() if times > MOST_OF_A_NAME]
    assert not repeated, f"These names stand more than {MOST_OF_A_NAME} times; say what each file is: {repeated}"
