"""Recipe keys and their YAML: allowed values, the line of each key, and error messages that suggest similar names.

Plain scalars follow the core rules of YAML 1.2, not PyYAML's YAML 1.1: `5e-5` is a number, and `yes`, `no` and `on` are
text (here they are medical answers, not booleans).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen

from meditune.config.data_options import Spec
from meditune.config.recipe import Recipe

Key = tuple[str | int, ...]  # the path of a value: names of groups and positions in lists, outermost first

_PREFIX = "tag:yaml.org,2002:"
_FIRST = list("-+.0123456789")
_RULES: tuple[tuple[str, str, list[str]], ...] = (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9][0-9_]*$", _FIRST),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?$", _FIRST),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", _FIRST),
)


_READ: dict[str, Callable[[str], Any]] = {
    "str": str,
    "null": lambda _: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 (annotated in PyYAML's base class)


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes text that YAML 1.1 or 1.2 would read as another type."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Return True, so that repeated values are written in full instead of as aliases."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = '"' if any(character < " " or character in "\x85\u2028\u2029" for character in value) else None
    return dumper.represent_scalar(f"{_PREFIX}str", value, style=style)


for _tag, _pattern, _starts in _RULES:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_PREFIX}{_tag}", re.compile(_pattern), _starts)
_Dumper.add_representer(str, _text)


class UnreadableError(ValueError):
    """A text that isn't YAML. `line` is the first faulty line (1-based), and `why` is the reason."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line, self.why = line, reason


class Document:
    """The values of a YAML text, the line (1-based) of every key and list item, and the problems found."""

    def __init__(self, text: str) -> None:
        """Raise UnreadableError if the text can't be parsed."""
        self.lines: dict[Key, int] = {}
        self.problems: list[tuple[Key, int, str]] = []
        try:
            node = yaml.compose(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            raise UnreadableError(*_where_and_why(error)) from error
        except yaml.reader.ReaderError as error:
            line = text[: error.position].count("\n") + 1
            raise UnreadableError(line, f"the character {chr(error.character)!r} isn't allowed in YAML") from error
        self.value: Any = None if node is None else self._value(node, (), ())

    def _value(self, node: yaml.Node, key: Key, ancestors: tuple[yaml.Node, ...]) -> Any:
        line = node.start_mark.line + 1
        if node in ancestors:
            self.problems.append((key, line, "the value contains itself"))
            return None
        ancestors = (*ancestors, node)
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_PREFIX}map":
            return self._group(node, key, ancestors)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_PREFIX}seq":
            items = []
            for position, item in enumerate(node.value):
                self.lines[(*key, position)] = item.start_mark.line + 1
                items.append(self._value(item, (*key, position), ancestors))
            return items
        try:
            return _scalar(node)
        except ValueError:
            text = node.value if isinstance(node, yaml.ScalarNode) else "its value"
            self.problems.append((key, line, f"{text} can't be read as {node.tag.removeprefix(_PREFIX)}"))
            return None

    def _group(self, node: yaml.MappingNode, key: Key, ancestors: tuple[yaml.Node, ...]) -> dict[str, Any]:
        group: dict[str, Any] = {}
        for name, value in node.value:
            line = name.start_mark.line + 1
            if not isinstance(name, yaml.ScalarNode):
                self.problems.append((key, line, "a key must be text"))
                continue
            inner = (*key, name.value)
            if name.value in group:
                self.problems.append((inner, line, f"given twice, first on line {self.lines[inner]}"))
                continue
            self.lines[inner] = line
            group[name.value] = self._value(value, inner, ancestors)
        return group


def flow(value: Any) -> str:
    """Return a plain value as YAML on one line."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return text.removesuffix("...\n").strip("\n")  # text can begin or end with other white space


def _scalar(node: yaml.Node) -> Any:
    text = str(node.value)
    kind = node.tag.removeprefix(_PREFIX) if isinstance(node, yaml.ScalarNode) else ""
    if kind not in _READ:
        raise ValueError(node.tag)
    return _READ[kind](text)


def _where_and_why(error: yaml.MarkedYAMLError) -> tuple[int, str]:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    why = error.problem or error.context or "not valid YAML"
    if "\\t" in why:
        why = "indented with a tab; use spaces"
    elif "mapping values are not allowed" in why:
        why = "a second ':' on the line, or wrong indentation; put text that contains ': ' in quotes"
    return line, f"not valid YAML: {why}"


class Slot:
    """The type and the limits (Ge, Lt, MinLen ...) of a key's value."""

    def __init__(self, annotation: Any, limits: Sequence[Any] = ()) -> None:
        types = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        self.limits = limits
        self.options = [option for option in types if option is not NoneType]
        self.may_be_null = NoneType in types
        is_group = isinstance(annotation, type) and issubclass(annotation, Spec)
        self.group: type[Spec] | None = annotation if is_group else None  # the class of a group of options
        self.is_text = self.options == [str]  # only text, and possibly null, is allowed
        self.is_list = any(get_origin(option) is list for option in self.options)
        self.is_map = any(get_origin(option) is dict for option in self.options)  # the user chooses the names

    def inside(self, part: str | int) -> Slot | None:
        """Return the slot of a key or list item inside this slot; None if there is no such key or item."""
        if self.group:
            info = self.group.model_fields.get(str(part))
            return Slot(info.annotation, info.metadata) if info else None
        for option in self.options:
            if get_origin(option) is list and isinstance(part, int):
                return Slot(get_args(option)[0])
            if get_origin(option) is dict and isinstance(part, str):
                return Slot(get_args(option)[1])
        return None

    def words(self) -> str:
        """Return the allowed values in words: "a number above 0", "one of linear, cosine, constant"."""
        words = [self._words(option) for option in self.options]
        return " or ".join([*words, "null"] if self.may_be_null else words)

    def choices(self) -> list[str]:
        """Return the allowed words; empty unless the value is one of several fixed words."""
        return [word for option in self.options if get_origin(option) is Literal for word in get_args(option)]

    def _words(self, option: Any) -> str:
        if option is bool:
            return "true or false"
        if option in (int, float):
            return ("a whole number" if option is int else "a number") + _range(self.limits)
        if get_origin(option) is Literal:
            words = get_args(option)
            return " or ".join(words) if len(words) < 3 else f"one of {', '.join(words)}"
        if get_origin(option) is list:
            count = " that isn't empty" if any(isinstance(limit, MinLen) for limit in self.limits) else ""
            return f"a list{count}, each item {Slot(get_args(option)[0]).words()}"
        if get_origin(option) is dict:
            return f"key-value pairs, each value {Slot(get_args(option)[1]).words()}"
        if Slot(option).group:
            return f"a group with {', '.join(option.model_fields)}"
        return "text that isn't empty" if any(isinstance(limit, MinLen) for limit in self.limits) else "text"


ROOT = Slot(Recipe)


def slot(key: Key) -> Slot | None:
    """Return the type and limits of a key's value; None if there is no such key."""
    found: Slot | None = ROOT
    for part in key:
        found = found.inside(part) if found else None
    return found


def dotted(key: Key) -> str:
    """Return a key as text with dots: `train.epochs`, `data.sources.0.path`."""
    return ".".join(str(part) for part in key)


def declared(group: type[Spec] = Recipe, prefix: Key = ()) -> Iterator[Key]:
    """Yield every key that isn't a group, in the order of declaration. 0 stands for any position in a list."""
    for name, info in group.model_fields.items():
        option = Slot(info.annotation)
        item = option.inside(0) if option.is_list else None
        if option.group:
            yield from declared(option.group, (*prefix, name))
            continue
        yield (*prefix, name)
        if item and item.group:
            yield from declared(item.group, (*prefix, name, 0))


def leaves(value: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yield (key, value) for every key of a recipe that isn't a group."""
    if isinstance(value, Spec):
        for name in type(value).model_fields:
            yield from leaves(getattr(value, name), (*key, name))
    elif isinstance(value, list) and value and isinstance(value[0], Spec):
        for position, item in enumerate(value):
            yield from leaves(item, (*key, position))
    else:
        yield key, value


def mismatch(key: Key, value: Any) -> str:
    """Return the error message for a value that isn't allowed for a key."""
    expected = slot(key)
    assert expected is not None, f"{dotted(key)} isn't a key"
    text = f"expected {expected.words()}, found {_found(value)}"
    if isinstance(value, str):
        near = difflib.get_close_matches(value.lower(), expected.choices(), n=1, cutoff=0.5)
        if near:
            return f"{text}; did you mean {near[0]}?"
        item = expected.inside(0) if expected.is_list else None
        if item and item.group:
            first = next(iter(item.group.model_fields))
            return f"{text}; write a list of groups as [{{{first}: {value}}}]"
        if expected.is_list:
            return f"{text}; write a list as [{value}]"
        numeric = {int, float, bool} & set(expected.options)
        if numeric and re.fullmatch(r"\s*(?:[-+]?[\d._]+(?:[eE][-+]?\d+)?|true|false)\s*", value, re.IGNORECASE):
            return f"{text}, which is text; remove the quotes"
    elif str in expected.options and isinstance(value, bool | int | float):
        return f"{text}; put it in quotes"
    return text


def unknown(key: Key) -> str:
    """Return the error message for an unknown key. It suggests similar keys, or else lists the valid keys."""
    parent = slot(key[:-1])
    name = str(key[-1])
    if parent and parent.is_list:
        first = (*key[:-1], 0)
        example = (*first, name) if slot((*first, name)) else first
        return f"{dotted(key[:-1])} is a list; give a position in it: {dotted(example)}"
    if not parent or not parent.group:
        what = parent.words() if parent else "nothing"
        return f"no such key; {dotted(key[:-1])} takes {what}"
    siblings = list(parent.group.model_fields)
    near = _near(name, siblings)
    if near:
        suggestions = [dotted((*key[:-1], near))]
    else:
        elsewhere: dict[str, list[Key]] = {}
        for other in declared():
            elsewhere.setdefault(str(other[-1]), []).append(other)
        match = name if name in elsewhere else _near(name, list(elsewhere))
        suggestions = [dotted(other) for other in elsewhere.get(match or "", [])]
    if suggestions:
        return f"no such key; did you mean {' or '.join(suggestions)}?"
    return f"no such key; the keys are {', '.join(dotted((*key[:-1], sibling)) for sibling in siblings)}"


def _near(name: str, known: list[str]) -> str | None:
    """Return the known name that `name` resembles, contains (num_train_epochs) or abbreviates (lr), or None."""
    plain = name.lower().replace("-", "_")
    close = difflib.get_close_matches(plain, known, n=1, cutoff=0.7)
    contained = sorted((each for each in known if len(each) > 4 and each in plain), key=len, reverse=True)
    short = [each for each in known if "_" in each and "".join(word[0] for word in each.split("_")) == plain]
    return next(iter([*close, *contained, *short]), None)


def _range(limits: Sequence[Any]) -> str:
    named = {Ge: "of at least", Gt: "above", Le: "at most", Lt: "below"}
    words = [f"{named[type(limit)]} {astuple(limit)[0]}" for limit in limits if type(limit) in named]
    return f" {' and '.join(words)}" if words else ""


def _found(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"'{value}'" if len(value) <= 60 else f"'{value[:57]}...'"
    if isinstance(value, dict):
        return "a group of keys"
    text = flow(value)
    return text if len(text) <= 60 else "a list"
