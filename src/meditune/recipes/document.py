"""YAML in and out, with the line of every key.

Plain scalars follow YAML 1.2's core rules, not the YAML 1.1 of PyYAML: `5e-5` is a number, and `yes`, `no` and `on`
are words (they are medical answers here, not switches).
"""

from __future__ import annotations

import re
from typing import Any

import yaml

Key = tuple[str | int, ...]
"""Where a value stands: names of groups and positions in lists, from the outside in."""

_PREFIX = "tag:yaml.org,2002:"
_FIRST = list("-+.0123456789")
_RULES: tuple[tuple[str, str, list[str]], ...] = (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9][0-9_]*$", _FIRST),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?$", _FIRST),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", _FIRST),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's way; annotated in its base class)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Write equal values out in full."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = '"' if any(character < " " or character in "\x85\u2028\u2029" for character in value) else None
    return dumper.represent_scalar(f"{_PREFIX}str", value, style=style)


for _tag, _pattern, _starts in _RULES:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_PREFIX}{_tag}", re.compile(_pattern), _starts)
_Dumper.add_representer(str, _text)


class UnreadableError(ValueError):
    """Text that isn't YAML: the first line it breaks on (from 1) and why."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line, self.why = line, why


class Document:
    """The values of a YAML text, the line (from 1) of every key and list item, and what is wrong with them."""

    def __init__(self, text: str) -> None:
        """Raises UnreadableError where the text as a whole can't be read."""
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

    def _value(self, node: yaml.Node, key: Key, around: tuple[yaml.Node, ...]) -> Any:
        line = node.start_mark.line + 1
        if node in around:
            self.problems.append((key, line, "a value that contains itself"))
            return None
        around = (*around, node)
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_PREFIX}map":
            return self._group(node, key, around)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_PREFIX}seq":
            items = []
            for position, item in enumerate(node.value):
                self.lines[(*key, position)] = item.start_mark.line + 1
                items.append(self._value(item, (*key, position), around))
            return items
        try:
            return _scalar(node)
        except ValueError:
            shown = node.value if isinstance(node, yaml.ScalarNode) else "its value"
            self.problems.append((key, line, f"{shown} can't be read as {node.tag.removeprefix(_PREFIX)}"))
            return None

    def _group(self, node: yaml.MappingNode, key: Key, around: tuple[yaml.Node, ...]) -> dict[str, Any]:
        group: dict[str, Any] = {}
        for name, value in node.value:
            line = name.start_mark.line + 1
            if not isinstance(name, yaml.ScalarNode):
                self.problems.append((key, line, "a key must be a word"))
                continue
            inner = (*key, name.value)
            if name.value in group:
                self.problems.append((inner, line, f"given twice, first on line {self.lines[inner]}"))
                continue
            self.lines[inner] = line
            group[name.value] = self._value(value, inner, around)
        return group


def flow(value: Any) -> str:
    """A plain value as YAML on one line."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return text.removesuffix("...\n").strip()


def _scalar(node: yaml.Node) -> Any:
    text = str(node.value)
    match node.tag.removeprefix(_PREFIX) if isinstance(node, yaml.ScalarNode) else "":
        case "str":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text)
        case "float":
            return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    raise ValueError(node.tag)


def _where_and_why(error: yaml.MarkedYAMLError) -> tuple[int, str]:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    why = error.problem or error.context or "not valid YAML"
    if "\\t" in why:
        why = "indented with a tab; use spaces"
    elif "mapping values are not allowed" in why:
        why = "a second ':' on the line, or wrong indentation; put text with ': ' in quotes"
    return line, f"not valid YAML: {why}"
