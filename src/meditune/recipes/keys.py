"""The keys of a recipe as its classes declare them: what each may hold, in plain words, and near names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen

from meditune.recipe import Recipe, Spec
from meditune.recipes.document import Key, flow


@dataclass(frozen=True)
class Slot:
    """What one key may hold."""

    annotation: Any
    limits: list[Any] = field(default_factory=list)
    """pydantic's constraints: Ge, Lt, MinLen ..."""

    @property
    def options(self) -> list[Any]:
        """The types of a union, without None; else the one type."""
        if get_origin(self.annotation) in (Union, UnionType):
            return [option for option in get_args(self.annotation) if option is not NoneType]
        return [self.annotation]

    @property
    def may_be_null(self) -> bool:
        """Whether null is a value here."""
        return NoneType in get_args(self.annotation)

    @property
    def group(self) -> type[Spec] | None:
        """The class where the key is a group of options."""
        return self.annotation if isinstance(self.annotation, type) and issubclass(self.annotation, Spec) else None

    @property
    def is_text(self) -> bool:
        """Whether any text, and nothing but text or null, belongs here."""
        return self.options == [str]

    @property
    def is_list(self) -> bool:
        """Whether a list belongs here."""
        return any(get_origin(option) is list for option in self.options)

    @property
    def is_map(self) -> bool:
        """Whether names of the user's own with values belong here."""
        return any(get_origin(option) is dict for option in self.options)

    def inside(self, part: str | int) -> Slot | None:
        """The slot of a key or list item in this one; None where there is no such thing."""
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
        """What belongs here: "a number above 0", "one of linear, cosine, constant"."""
        words = [self._words(option) for option in self.options]
        return " or ".join([*words, "null"] if self.may_be_null else words)

    def choices(self) -> list[str]:
        """The fixed words that may stand here."""
        return [word for option in self.options if get_origin(option) is Literal for word in get_args(option)]

    def _words(self, option: Any) -> str:
        if option is bool:
            return "true or false"
        if option in (int, float):
            return ("a whole number" if option is int else "a number") + _range(self.limits)
        if get_origin(option) is Literal:
            return _either(get_args(option))
        if get_origin(option) is list:
            count = " that isn't empty" if any(isinstance(limit, MinLen) for limit in self.limits) else ""
            return f"a list{count}, each item {Slot(get_args(option)[0]).words()}"
        if get_origin(option) is dict:
            return f"a group of names, each with {Slot(get_args(option)[1]).words()}"
        if Slot(option).group:
            return f"a group with {', '.join(option.model_fields)}"
        return "text that isn't empty" if any(isinstance(limit, MinLen) for limit in self.limits) else "text"


ROOT = Slot(Recipe)


def slot(key: Key) -> Slot | None:
    """What the key may hold; None where there is no such key."""
    found: Slot | None = ROOT
    for part in key:
        found = found.inside(part) if found else None
    return found


def dotted(key: Key) -> str:
    """`train.epochs`, `data.sources.0.path`."""
    return ".".join(str(part) for part in key)


def declared() -> Iterator[Key]:
    """Every key that isn't a group, in declared order; 0 stands for any position in a list."""
    yield from _declared(Recipe, ())


def _declared(group: type[Spec], above: Key) -> Iterator[Key]:
    for name, info in group.model_fields.items():
        here = Slot(info.annotation)
        item = here.inside(0) if here.is_list else None
        if here.group:
            yield from _declared(here.group, (*above, name))
        elif item and item.group:
            yield (*above, name)
            yield from _declared(item.group, (*above, name, 0))
        else:
            yield (*above, name)


def leaves(value: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every key of a recipe that isn't a group, with its value."""
    if isinstance(value, Spec):
        for name in type(value).model_fields:
            yield from leaves(getattr(value, name), (*key, name))
    elif isinstance(value, list) and value and isinstance(value[0], Spec):
        for position, item in enumerate(value):
            yield from leaves(item, (*key, position))
    else:
        yield key, value


def mismatch(key: Key, value: Any) -> str:
    """What is wrong with a value that the key's slot refuses."""
    here = slot(key)
    assert here is not None, f"{dotted(key)} is no key"
    text = f"expected {here.words()}, found {_found(value)}"
    if isinstance(value, str):
        near = difflib.get_close_matches(value.lower(), here.choices(), n=1, cutoff=0.5)
        if near:
            return f"{text}; did you mean {near[0]}?"
        item = here.inside(0) if here.is_list else None
        if item and item.group:
            first = next(iter(item.group.model_fields))
            return f"{text}; write a list of groups as [{{{first}: {value}}}]"
        if here.is_list:
            return f"{text}; write a list as [{value}]"
        numeric = {int, float, bool} & set(here.options)
        if numeric and re.fullmatch(r"\s*(?:[-+]?[\d._]+(?:[eE][-+]?\d+)?|true|false)\s*", value, re.IGNORECASE):
            return f"{text}, which is text; take the quotes away"
    elif str in here.options and isinstance(value, bool | int | float):
        return f"{text}; put it in quotes"
    return text


def unknown(key: Key) -> str:
    """That there is no such key, with the nearest ones or else the valid ones."""
    parent = slot(key[:-1])
    name = str(key[-1])
    if parent and parent.is_list:
        first = (*key[:-1], 0)
        example = (*first, name) if slot((*first, name)) else first
        return f"{dotted(key[:-1])} is a list; name a position in it: {dotted(example)}"
    if not parent or not parent.group:
        what = parent.words() if parent else "nothing"
        return f"no such key; {dotted(key[:-1])} holds {what}"
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
    return f"no such key; there are {', '.join(dotted((*key[:-1], sibling)) for sibling in siblings)}"


def _near(name: str, known: list[str]) -> str | None:
    """The known name that is meant: spelt alike, contained in it (num_train_epochs), or abbreviated (lr)."""
    plain = name.lower().replace("-", "_")
    close = difflib.get_close_matches(plain, known, n=1, cutoff=0.7)
    contained = sorted((each for each in known if len(each) > 4 and each in plain), key=len, reverse=True)
    short = [each for each in known if "_" in each and "".join(word[0] for word in each.split("_")) == plain]
    return next(iter([*close, *contained, *short]), None)


def _range(limits: list[Any]) -> str:
    words = []
    for limit in limits:
        match limit:
            case Ge(ge=bound):
                words.append(f"of at least {bound}")
            case Gt(gt=bound):
                words.append(f"above {bound}")
            case Le(le=bound):
                words.append(f"at most {bound}")
            case Lt(lt=bound):
                words.append(f"below {bound}")
    return f" {' and '.join(words)}" if words else ""


def _either(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else " or ".join(words) if len(words) == 2 else f"one of {', '.join(words)}"


def _found(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"'{value}'" if len(value) <= 60 else f"'{value[:57]}...'"
    if isinstance(value, dict):
        return "a group of keys"
    text = flow(value)
    return text if len(text) <= 60 else "a list"
