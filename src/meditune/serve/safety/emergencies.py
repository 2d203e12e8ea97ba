"""Which emergency a message tells of, and the answer to it: whom to call, and what to do until they come."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from meditune.errors import DataError
from meditune.serve.safety import signs

HERE = Path(__file__).parent
Help = Literal["emergency", "poison", "crisis"]


class Numbers(BaseModel):
    """Whom to call in one country."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    emergency: str
    poison: str
    crisis: str


@dataclass(frozen=True)
class Rule:
    """Signs that make an emergency together."""

    needs: frozenset[str]
    excludes: frozenset[str]

    def met(self, seen: frozenset[str]) -> bool:
        """Whether the signs are there, and none that speaks against them."""
        return self.needs <= seen and not self.excludes & seen


@dataclass(frozen=True)
class Kind:
    """A kind of emergency."""

    name: str
    title: str
    help: Help
    rules: tuple[Rule, ...]
    opening: str
    then: tuple[str, ...]

    def answer(self, numbers: Numbers) -> str:
        """What is said to whoever writes of it."""
        call = f"Call {numbers.emergency} now, or have someone call, or go to the nearest emergency department."
        if self.help == "crisis":
            call = (
                f"Call {numbers.crisis} now. If there is danger right now, call {numbers.emergency} or go to the "
                "nearest emergency department."
            )
        if self.help == "poison":
            call = (
                f"Call {numbers.emergency} now if anyone is drowsy, has trouble breathing or has collapsed. Otherwise "
                f"call {numbers.poison} right now, or go to the nearest emergency department; do so even without "
                "symptoms."
            )
        first = (self.opening, call) if self.help == "crisis" else (call, self.opening)
        then = (f"- {line.format(**numbers.model_dump())}" for line in self.then)
        return "\n".join((*first, *then))


class _KindText(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: str
    title: str
    help: Help
    rules: list[str]
    opening: str
    then: list[str]


def emergency(message: str) -> Kind | None:
    """The first kind of emergency of which the message tells; None where it tells of none."""
    stretches = signs.seen(message)
    for kind in kinds():
        if any(rule.met(seen) for seen in stretches for rule in kind.rules):
            return kind
    return None


def touches(message: str) -> bool:
    """Whether a message speaks of what would be an emergency, though nobody in it seems to have one."""
    seen = signs.mentioned(message)
    return any(rule.met(seen) for kind in kinds() for rule in kind.rules)


def named(name: str) -> Kind:
    """Return the kind of emergency of that name."""
    return next(kind for kind in kinds() if kind.name == name)


@functools.cache
def kinds() -> tuple[Kind, ...]:
    """All of them, the most urgent first. Raises DataError where a rule names a sign that isn't there."""
    texts = yaml.safe_load((HERE / "emergencies.yaml").read_text(encoding="utf-8"))
    return tuple(_kind(_KindText.model_validate(each)) for each in texts)


def numbers(country: str = "", own: Mapping[str, str] | None = None) -> Numbers:
    """Whom to call in a country (ISO 3166: GB, US ...; none: words that hold everywhere), `own` numbers put over them.

    Raises DataError where the country isn't known and `own` doesn't name all.
    """
    known = yaml.safe_load((HERE / "numbers.yaml").read_text(encoding="utf-8"))
    name = country.upper()
    if name not in known and not set(Numbers.model_fields) <= set(own or {}):
        raise DataError(
            f"There are no numbers for country {country!r}. Known: {', '.join(filter(None, known))}. Give "
            f"{', '.join(Numbers.model_fields)} yourself for another one."
        )
    return Numbers.model_validate({**known.get(name, {}), **(own or {})})


def _kind(text: _KindText) -> Kind:
    rules = tuple(_rule(text.kind, each) for each in text.rules)
    return Kind(text.kind, text.title, text.help, rules, text.opening, tuple(text.then))


def _rule(kind: str, text: str) -> Rule:
    parts = text.split()
    unknown = {part.removeprefix("-") for part in parts} - signs.names()
    if unknown:
        raise DataError(f"emergencies.yaml: {kind}: {text!r} names what signs.yaml doesn't have: {', '.join(unknown)}.")
    needs = frozenset(part for part in parts if not part.startswith("-"))
    return Rule(needs, frozenset(part.removeprefix("-") for part in parts if part.startswith("-")))
