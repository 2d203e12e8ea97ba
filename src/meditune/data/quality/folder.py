"""An audit on its own: what quality control finds in a recipe's data or in a file, as a folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meditune.data.deidentify import Findings, cleaner
from meditune.data.own import SOURCE
from meditune.data.prepare import checked_rows, split_rows
from meditune.data.quality.engines import Name
from meditune.data.quality.facts import facts
from meditune.data.quality.ledger import FILE_NAME as LEDGER
from meditune.data.quality.stream import stream_folder
from meditune.data.reading import available, read_sources
from meditune.data.rejects import Rejects
from meditune.data.splits import Splits
from meditune.data.tables import FORMATS, text_bytes
from meditune.errors import DataError, MedituneError
from meditune.files import replacing_folder, write_json
from meditune.recipe import Recipe
from meditune.recipes.loading import load_recipe

PAGE = "audit.html"
STREAM_BYTES = 100_000_000
"""From this size of its text on, a file is read as a stream: in memory it would take some twenty times as much."""


def recipe_for(what: str, overrides: Sequence[str]) -> Recipe:
    """The recipe of that name or file; for a table of the user's own, one that reads it and splits by group."""
    if Path(what).suffix.lower() not in FORMATS:
        return load_recipe(what, overrides).recipe
    source = {"name": "own", "path": what}
    own = [f"name={Path(what).stem}", f"data.sources={json.dumps([source])}", "data.quality.rules.layout=mend"]
    fixed = ["data.split=group", "data.fallback_to_sample=false"]
    return load_recipe("quickstart", [*own, *fixed, *overrides]).recipe


def audit_folder(
    recipe: Recipe, folder: Path, stream: bool | None = None, engine: Name = "local", workers: int = 1
) -> dict[str, Any]:
    """Leave quality.json, ledger.parquet and rejected.jsonl in `folder`, whole or not at all; returns the first.

    Where the rows are too few to be split, it says why and has no splits. With `stream`, or an engine, the rows needn't
    fit into memory (stream.py); None leaves the choice to the file's size. Raises MedituneError where the folder holds
    something else, and DataError where nothing can be read.
    """
    if folder.exists() and any(folder.iterdir()) and not _is_audit(folder):
        raise MedituneError(
            f"{folder} is there already and holds something else. Choose another --output, or remove it."
        )
    if stream is None:
        stream = engine != "local" or _is_large(recipe)
    if stream:
        return stream_folder(recipe, folder, engine, workers)
    if engine != "local":
        raise MedituneError("--engine ray reads its rows as a stream: leave --no-stream out.")
    spec, synthetic = available(recipe.data)
    rejects, phi = Rejects(cleaner(spec.phi)), Findings(spec.phi)
    by_source, read = read_sources(spec, recipe.seed, rejects, phi)
    audit = checked_rows(spec, by_source, phi.left_in)
    problem = ""
    try:
        splits = audit.between(split_rows(spec, recipe.seed, audit.left, by_source))
    except DataError as error:
        problem = str(error)
        splits = Splits([example for examples in audit.left.values() for example in examples], [], [], "none")
    quality = {
        "synthetic": synthetic,
        "recipe": recipe.name,
        **facts(splits, read, audit.dropped()),
        "audit": audit.facts(),
        "phi": phi.facts(),
        "not_split": problem,
    }
    with replacing_folder(folder) as partial:
        write_json(partial / "quality.json", quality)
        audit.ledger.write(partial / LEDGER)
        rejects.write(partial / "rejected.jsonl")
    return quality


def _is_audit(folder: Path) -> bool:
    """Whether an audit left this, even if its page couldn't be drawn."""
    return (folder / PAGE).is_file() or ((folder / LEDGER).is_file() and not (folder / "train.jsonl").is_file())


def _is_large(recipe: Recipe) -> bool:
    """Whether the recipe's one source is a file of the user's own that had better be read as a stream; says so."""
    sources = recipe.data.sources
    path = Path(sources[0].path or "")
    if len(sources) != 1 or sources[0].name != SOURCE or sources[0].limit is not None or not path.is_file():
        return False
    size = text_bytes(path)
    if size >= STREAM_BYTES:
        print(
            f"{path}: {size / 1e6:,.0f} MB of text, so it is read as a stream: rows are looked at and compared, and "
            "what is left is written, but no splits are made. To read it into memory all the same: --no-stream.",
            file=sys.stderr,
        )
    return size >= STREAM_BYTES
