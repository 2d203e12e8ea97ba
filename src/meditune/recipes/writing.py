"""A recipe as text: shown on the screen, saved with a run, and the reference of every option."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from meditune.files import replacing
from meditune.recipe import Recipe, Spec
from meditune.recipes import keys, shipped
from meditune.recipes.document import Key, flow
from meditune.recipes.keys import dotted
from meditune.recipes.loading import Resolved, load_recipe

COMMENT_COLUMN = 44


def show(resolved: Resolved) -> str:
    """Every option as YAML, with where its value came from as a comment. Loads back to the same recipe."""
    return "\n".join(_lines(resolved.recipe, (), "", resolved.origin))


def save(resolved: Resolved | Recipe, path: Path, made_with: Mapping[str, str] | None = None) -> None:
    """Write every option to a YAML file, whole or not at all; it loads back to an equal recipe.

    What it was made with (versions, hashes) stands above as comments.
    """
    recipe, origin = (resolved, {}) if isinstance(resolved, Recipe) else (resolved.recipe, resolved.origin)
    with replacing(path) as stream:
        stream.write("# Every option of this run. `meditune run` with this file repeats it.\n")
        stream.writelines(f"# {name}: {value}\n" for name, value in (made_with or {}).items())
        stream.writelines(f"{line}\n" for line in _lines(recipe, (), "", origin))


def reference() -> str:
    """docs/recipes.md: every shipped recipe and every option, generated from the recipe's classes."""
    return "\n".join([*_introduction(), *_tables(Recipe, ())])


def _lines(value: Spec, key: Key, indent: str, origin: Mapping[str, str]) -> Iterator[str]:
    for name in type(value).model_fields:
        inner, here = getattr(value, name), (*key, name)
        if isinstance(inner, Spec):
            yield f"{indent}{name}:"
            yield from _lines(inner, here, f"{indent}  ", origin)
        elif isinstance(inner, list) and inner and isinstance(inner[0], Spec):
            yield f"{indent}{name}:"
            for position, item in enumerate(inner):
                lines = _lines(item, (*here, position), f"{indent}    ", origin)
                yield f"{indent}  - {next(lines).strip()}"
                yield from lines
        else:
            source = origin.get(dotted(here))
            text = f"{indent}{name}: {flow(inner)}"
            yield f"{text:<{COMMENT_COLUMN}}  # {source}" if source else text


def _introduction() -> Iterator[str]:
    yield from (
        "# Recipes",
        "",
        "A recipe is a YAML file that describes a whole run. Every option has a default except the names, so a recipe",
        "only says what it changes:",
        "",
        "```yaml",
        "name: my-first",
        "data:",
        "  sources:",
        "    - name: own",
        "      path: pairs.csv",
        "train:",
        "  epochs: 2",
        "```",
        "",
        "`--set KEY=VALUE` on the command line changes one option for one run; lists and groups are written on one",
        "line: `--set train.epochs=1`, `--set data.sources.0.path=/data/pubmedqa`, `--set 'train.tasks=[decision]'`,",
        "`--set train.decision_share=null`. An unknown key, a value of another type or a number out of range is an",
        "error before anything is computed. `meditune recipe show RECIPE` prints every value and where it came from.",
        "",
        "## Recipes that come with Meditune",
        "",
        "| Name | Base model | What for |",
        "|---|---|---|",
    )
    for name in shipped():
        recipe = load_recipe(name).recipe
        yield f"| `{name}` | `{recipe.model.base}` | {recipe.description} |"
    yield ""


def _tables(group: type[Spec], key: Key) -> Iterator[str]:
    """The group's own options as a table, then its inner groups."""
    inner: list[tuple[type[Spec], Key]] = []
    rows = []
    for name, info in group.model_fields.items():
        slot, here = keys.Slot(info.annotation, info.metadata), (*key, name)
        item = slot.inside(0) if slot.is_list else None
        if slot.group:
            inner.append((slot.group, here))
            continue
        if item and item.group:
            inner.append((item.group, (*here, "N")))
        default = "" if info.is_required() else f"`{flow(_plain(info.get_default(call_default_factory=True)))}`"
        rows.append(f"| `{dotted(here)}` | {slot.words()} | {default or 'must be given'} | {info.description} |")
    yield from (f"## `{dotted(key)}`" if key else "## At the top", "", str(inspect.getdoc(group)), "")
    yield from ("| Key | Type | Default | Meaning |", "|---|---|---|---|", *rows, "")
    for each, here in inner:
        yield from _tables(each, here)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.model_dump(exclude_unset=True) if isinstance(value, Spec) else value
