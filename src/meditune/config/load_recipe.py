"""Load a recipe from a name, file or mapping, and report all of its problems at once; print and save recipes."""

from __future__ import annotations

import codecs
import difflib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from meditune.config import recipe_keys, shipped
from meditune.config.data_options import Spec
from meditune.config.recipe import Recipe
from meditune.config.recipe_keys import Document, Key, UnreadableError, dotted, flow
from meditune.errors import RecipeError
from meditune.files import replace_file

SET = "--set"
GIVEN = "given"  # replaces --set if the values come from Python
DEFAULT = "default"


@dataclass(frozen=True)
class Resolved:
    """A recipe with all of its values, and the origin of each value."""

    recipe: Recipe
    origin: dict[str, str]
    """Dotted key -> "default", "quickstart.yaml, line 12", "--set" or "given", for each key that isn't a group."""


def load_recipe(source: str | Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any] = ()) -> Resolved:
    """Return a recipe with the overrides applied. `source` is its name, the path of its file, or its values.

    `overrides` are `KEY=VALUE` options, or dotted key -> value. Raises RecipeError, which lists every problem.
    """
    draft = _Draft(_find(source) if isinstance(source, str) else source)
    if isinstance(overrides, Mapping):
        draft.origin = GIVEN
        for name, value in overrides.items():
            draft.change(name, value)
    else:
        for option in overrides:
            draft.override(option)
    return draft.resolve()


class _Draft:
    """The values of a recipe before validation."""

    def __init__(self, source: Path | Mapping[str, Any]) -> None:
        self.origin = SET  # origin of keys that have no line
        self.values: dict[str, Any] = {}
        self.lines: dict[Key, int | None] = {}
        """Key -> its line in the file; None for keys from --set or from Python"""
        self.problems: dict[tuple[Key, str], int | None] = {}
        if isinstance(source, Path):
            self._read(source)
        else:
            self.path, self.origin, self.values = Path("the recipe"), GIVEN, _as_yaml(source)
            self._mark((), self.values)

    def _read(self, path: Path) -> None:
        self.path = path
        try:
            document = Document(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise RecipeError(f"{path}: can't be read ({error.strerror}).") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path}: not UTF-8 text at byte {error.start}. Convert it to UTF-8.") from error
        except UnreadableError as error:
            raise RecipeError(f"{path}, line {error.line}: {error.why}.") from error
        if document.value is None and not document.problems:
            raise RecipeError(
                f"{path}: the file is empty. A recipe needs at least a name; `meditune recipe show quickstart` prints "
                "an example."
            )
        if not isinstance(document.value, dict):
            raise RecipeError(f"{path}: expected keys with values (name: my-recipe), found a list or a single value.")
        self.values = document.value
        self.lines = dict(document.lines)
        self.problems = {(key, text): line for key, line, text in document.problems}

    def override(self, option: str) -> None:
        """Apply a `KEY=VALUE` option to the file's values."""
        name, equals, text = option.partition("=")
        if not equals or not name.strip():
            self._refuse((option,), f"write it as {SET} KEY=VALUE, for example {SET} train.epochs=2")
            return
        key = self._key(name.strip())
        if key is None:
            return
        slot = recipe_keys.slot(key)
        if slot and slot.is_text and not text.lstrip().startswith(("'", '"')):
            # The shell has removed quotes, without which YAML doesn't read "Question:" or "2024" as text.
            value: Any = None if slot.may_be_null and text.strip() in {"", "~", "null"} else text
        else:
            try:
                document = Document(text)
            except UnreadableError as error:
                self._refuse(key, f"{error.why}; put the value in quotes")
                return
            if document.problems:
                for inner, _, problem in document.problems:
                    self._refuse((*key, *inner), problem)
                return
            value = document.value
        self._assign(key, value)

    def change(self, name: str, value: Any) -> None:
        """Set the dotted key `name` to a value."""
        if (key := self._key(name)) is not None:
            self._assign(key, _as_yaml(value))

    def resolve(self) -> Resolved:
        """Return the validated recipe. Raises RecipeError, which lists every problem."""
        _fill_empty_groups(self.values, recipe_keys.ROOT)
        recipe = self._validated()
        if recipe is None:
            raise RecipeError(self._report())
        origin = {dotted(key): self._origin(key) for key, _ in recipe_keys.leaves(recipe)}
        return Resolved(recipe, origin)

    def _key(self, name: str) -> Key | None:
        """Return the key for a dotted name; if there is no such key, record the problem and return None."""
        key: Key = ()
        slot = recipe_keys.ROOT
        for part in name.split("."):
            step = int(part) if slot.is_list and re.fullmatch(r"[0-9]{1,6}", part) else part
            key = (*key, step)
            inside = slot.inside(step)
            if inside is None:
                self._refuse(key, recipe_keys.unknown(key))
                return None
            slot = inside
        return key

    def _assign(self, key: Key, value: Any) -> None:
        slot = recipe_keys.slot(key)
        if slot and slot.group and isinstance(value, dict) and not isinstance(key[-1], int):
            # The group's other keys keep their values; an item of a list is replaced as a whole.
            for name, inner_value in value.items():
                inner = (*key, name)
                if slot.inside(inner[-1]) is None:
                    self._refuse(inner, recipe_keys.unknown(inner))
                else:
                    self._assign(inner, inner_value)
            return
        if slot and slot.group and not isinstance(key[-1], int):
            self._refuse(key, recipe_keys.mismatch(key, value))
            return
        container: Any = self.values
        for position, part in enumerate(key[:-1]):
            container = self._inside(container, key[: position + 1], part)
        last = key[-1]
        if isinstance(container, list) and isinstance(last, int):
            if last > len(container):
                self._refuse(key, _next_free(key, len(container)))
                return
            container[last : last + 1] = [value]
        elif isinstance(container, dict):
            container[str(last)] = value
        elif isinstance(last, int) and container is not None:
            parent = dotted(key[:-1])
            self._refuse(key, f"{parent} is {flow(container)}, not a list; set {parent} to a list instead")
            return
        else:
            return  # validation reports the value that isn't a group
        self.lines = {known: line for known, line in self.lines.items() if known[: len(key)] != key}
        self._mark(key, value)

    def _inside(self, container: Any, key: Key, part: str | int) -> Any:
        """Return the group or list at `key`; if the file doesn't contain it, create it from its default."""
        if isinstance(container, list) and isinstance(part, int):
            if part == len(container):
                container.append({})
                self.lines[key] = None
            if part > len(container):
                self._refuse(key, _next_free(key, len(container)))
                return None
            slot = recipe_keys.slot(key)
            if slot and slot.group and isinstance(container[part], str):
                with suppress(ValidationError):  # medqa is short for {name: medqa}
                    container[part] = slot.group.model_validate(container[part]).model_dump(exclude_unset=True)
            return container[part]
        if not isinstance(container, dict):
            return None
        if container.get(str(part)) is None:
            container[str(part)] = _beginning(key)
        return container[str(part)]

    def _mark(self, key: Key, value: Any) -> None:
        self.lines[key] = None
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for part, each in inner:
            self._mark((*key, part), each)

    def _validated(self) -> Recipe | None:
        try:
            recipe = Recipe.model_validate(self.values)
            return None if self.problems else recipe
        except ValidationError as error:
            refused = self._note(error)
        # Rules between keys are checked only if each key alone is valid, so validate again without the invalid keys.
        remaining = _without(self.values, {_above_lists(key) for key in refused})
        try:
            Recipe.model_validate({"name": "unnamed", **remaining})
        except ValidationError as error:
            self._note(error, rules_only=True)
        return None

    def _note(self, error: ValidationError, rules_only: bool = False) -> set[Key]:
        """Record the problems and return their keys."""
        concerned = set()
        for each in error.errors():
            key = _real_key(each["loc"])
            if each["type"] == "value_error":
                for rule in each["msg"].removeprefix("Value error, ").splitlines():
                    self._note_rule(key, rule)
                continue
            if rules_only:
                continue
            concerned.add(key)
            if each["loc"][-1] == "[key]":
                self._problem(key, f"no such name; the names are {each['ctx']['expected']}")
            elif each["type"] == "extra_forbidden":
                self._problem(key, recipe_keys.unknown(key))
            elif each["type"] == "missing" and (slot := recipe_keys.slot(key)):
                self._problem(key, f"missing; expected {slot.words()}")
            else:
                self._problem(key, recipe_keys.mismatch(key, _at(self.values, key)))
        return concerned

    def _note_rule(self, key: Key, text: str) -> None:
        """Record a violated rule between keys, under the first key that the rule's text names and the user has set."""
        named = [name for name in re.findall(r"[a-z_]+(?:\.\w+)+", text) if recipe_keys.slot(_split(name))]
        places = [_split(name) for name in named if _split(name) in self.lines]
        # Command-line options come first, because they are more likely to be the mistake.
        places.sort(key=lambda place: self.lines[place] is not None)
        place = places[0] if places else key
        self._problem(place, text.removeprefix(f"{dotted(place)}: "))

    def _problem(self, key: Key, text: str) -> None:
        self.problems.setdefault((key, text), self._line(key))

    def _refuse(self, key: Key, text: str) -> None:
        """Record a problem with a --set option."""
        self.problems.setdefault((key, text), None)

    def _line(self, key: Key) -> int | None:
        """Return the line of the key, or of the innermost group around it that has a line; 0 if there is no line."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.lines:
                return self.lines[key[:length]]
        return 0

    def _origin(self, key: Key) -> str:
        inside = {line for known, line in self.lines.items() if known[: len(key)] == key}
        if None in inside:
            return self.origin
        line = self.lines.get(key)
        return f"{self.path.name}, line {line}" if line else DEFAULT

    def _report(self) -> str:
        ordered = sorted(self.problems.items(), key=lambda item: (item[1] is None, item[1] or 0))
        lines = []
        for (key, text), line in ordered:
            place = self.origin if line is None else f"{self.path}, line {line}:" if line else f"{self.path}:"
            lines.append(f"{place} {dotted(key)}{': ' if key else ''}{text}{'' if text.endswith('?') else '.'}")
        if len(lines) == 1:
            return lines[0]
        return "\n  ".join([f"The recipe has {len(lines)} problems:", *lines])


def _as_yaml(value: Any) -> Any:
    """Return a Python value as the YAML loader would return it: paths as text, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): _as_yaml(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_yaml(item) for item in value]
    if hasattr(value, "item"):  # a NumPy or torch number
        return value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def is_data_file(path: Path) -> bool:
    """Return True if a file contains rows, and isn't a recipe."""
    suffix = path.suffix.lower()
    if suffix == ".json" and path.is_file():
        with path.open("rb") as stream:
            return stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    return suffix in {".csv", ".tsv", ".jsonl", ".parquet"} and path.is_file()


def _find(name_or_path: str) -> Path:
    recipes = shipped()
    if name_or_path in recipes:
        return recipes[name_or_path]
    path = Path(name_or_path).expanduser()
    if is_data_file(path):
        make = shlex.join(["meditune", "init", str(path), "--output", "mine.yaml"])
        raise RecipeError(f"{path} is a data file, not a recipe. Make a recipe from it: {make}")
    if path.is_file():
        return path
    if path.is_dir():
        raise RecipeError(f"{path} is a folder. Specify the recipe's YAML file.")
    near = difflib.get_close_matches(path.stem.lower(), recipes, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    looks_like_a_file = path.suffix in {".yaml", ".yml"} or len(path.parts) > 1
    what = f"There is no file {path}" if looks_like_a_file else f"There is no recipe {name_or_path!r}"
    raise RecipeError(f"{what}. Shipped recipes: {', '.join(recipes)}.{hint}")


def _fill_empty_groups(value: Any, slot: recipe_keys.Slot) -> None:
    """Replace null with an empty group, because an empty `train:` in a file means a group without keys."""
    items = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for part, inner in items:
        inside = slot.inside(part)
        if inside and inner is None and isinstance(value, dict) and (inside.group or inside.is_map):
            value[part] = {}
        elif inside:
            _fill_empty_groups(inner, inside)


def _beginning(key: Key) -> Any:
    """Return the initial content of a missing group or list, to which an option will be added."""
    slot = recipe_keys.slot(key)
    if slot is None or not slot.is_list:
        return {}
    parent = recipe_keys.slot(key[:-1])
    if parent is None or parent.group is None:
        return []
    default = parent.group.model_fields[str(key[-1])].get_default(call_default_factory=True)
    items = default if isinstance(default, list) else []
    return [item.model_dump(exclude_unset=True) if isinstance(item, Spec) else item for item in items]


def _real_key(location: tuple[str | int, ...]) -> Key:
    """Return the key at pydantic's error location, which also contains markers for the members of a union."""
    key: Key = ()
    slot: recipe_keys.Slot | None = recipe_keys.ROOT
    for part in location:
        inside = slot.inside(part) if slot else None
        if inside is None and not (slot and slot.group):
            break
        key = (*key, part)
        slot = inside
    return key


def _without(value: Any, refused: set[Key], key: Key = ()) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        name: _without(inner, refused, (*key, name)) for name, inner in value.items() if (*key, name) not in refused
    }


def _above_lists(key: Key) -> Key:
    """Return the part of a key before its first list index, or the whole key if it contains no index."""
    return tuple(takewhile(lambda part: isinstance(part, str), key))


def _next_free(key: Key, length: int) -> str:
    return f"no such position; the next free position is {dotted((*key[:-1], length))}"


def _at(value: Any, key: Key) -> Any:
    for part in key:
        value = value[part]
    return value


def _split(name: str) -> Key:
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))


COMMENT_COLUMN = 44


def show(resolved: Resolved) -> str:
    """Return all options as YAML, each with its origin as a comment. The text loads as the same recipe."""
    return "\n".join(_lines(resolved.recipe, (), "", resolved.origin))


def save(resolved: Resolved | Recipe, path: Path, provenance: Mapping[str, str] | None = None) -> None:
    """Write all options to a YAML file that loads as this recipe, with `provenance` (versions, hashes) in comments."""
    recipe, origin = (resolved, {}) if isinstance(resolved, Recipe) else (resolved.recipe, resolved.origin)
    with replace_file(path) as stream:
        stream.write("# Every option of this run. `meditune run` with this file repeats the run.\n")
        stream.writelines(f"# {name}: {value}\n" for name, value in (provenance or {}).items())
        stream.writelines(f"{line}\n" for line in _lines(recipe, (), "", origin))


def _lines(value: Spec, key: Key, indent: str, origin: Mapping[str, str]) -> Iterator[str]:
    for name in type(value).model_fields:
        inner, inner_key = getattr(value, name), (*key, name)
        if isinstance(inner, Spec):
            yield f"{indent}{name}:"
            yield from _lines(inner, inner_key, f"{indent}  ", origin)
        elif isinstance(inner, list) and inner and isinstance(inner[0], Spec):
            yield f"{indent}{name}:"
            for position, item in enumerate(inner):
                lines = _lines(item, (*inner_key, position), f"{indent}    ", origin)
                yield f"{indent}  - {next(lines).strip()}"
                yield from lines
        else:
            source = origin.get(dotted(inner_key))
            text = f"{indent}{name}: {flow(inner)}"
            yield f"{text:<{COMMENT_COLUMN}}  # {source}" if source else text
