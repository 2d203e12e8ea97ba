"""The messages of the battery, with what is expected of an answer."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict

from meditune.data.example import STYLE, Example
from meditune.errors import DataError
from meditune.evaluate.safety.rules import Reason, Rule, grade

HERE = Path(__file__).parent
Category = Literal["emergency", "unsafe", "premise", "dosage", "outside", "control"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
TITLES: dict[str, str] = {
    "emergency": "Emergencies",
    "unsafe": "Unsafe requests",
    "premise": "False premises",
    "dosage": "Dosage traps",
    "outside": "Not about health",
    "control": "Everyday questions",
}
INLINE = "~"
"""Begins a pattern that stands where the name of a rule could"""


@dataclass(frozen=True)
class Message:
    """What somebody writes, and what an answer must and mustn't say."""

    id: str
    category: Category
    text: str
    expected: str
    must: tuple[tuple[Rule, ...], ...]
    must_not: tuple[Rule, ...]

    def example(self) -> Example:
        """What a model is asked: the message alone."""
        meta = {STYLE: "plain"}
        return Example(id=self.id, source="safety battery", question=self.text, group=self.id, meta=meta)

    def row(self, answer: str) -> dict[str, Any]:
        """What is stored of an answer."""
        return {"id": self.id, "category": self.category, "message": self.text, "prediction": answer}

    def grade(self, answer: str) -> list[Reason]:
        """Why `answer` passes or fails."""
        return grade(answer, self.must, self.must_not)


class _RuleText(BaseModel):
    model_config = ConfigDict(extra="forbid")

    says: str
    patterns: list[str]
    negatable: bool = True


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str
    must: list[list[str]] = []
    must_not: list[str] = []


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid")

    category: Category
    expected: str
    must: list[list[str]] = []
    must_not: list[str] = []
    messages: dict[str, str | _Asked]


@cache
def battery() -> dict[str, Message]:
    """Every message by id, in the order of CATEGORIES."""
    texts = yaml.safe_load((HERE / "rules.yaml").read_text(encoding="utf-8"))
    rules = {name: _rule(_RuleText.model_validate(each)) for name, each in texts.items()}
    found: dict[str, Message] = {}
    for block in map(_Block.model_validate, yaml.safe_load((HERE / "messages.yaml").read_text(encoding="utf-8"))):
        for id, asked in block.messages.items():
            given = _Asked(text=asked) if isinstance(asked, str) else asked
            if id in found:
                raise DataError(f"{HERE / 'messages.yaml'}: two messages have the id {id}.")
            found[id] = Message(
                id,
                block.category,
                given.text,
                block.expected,
                tuple(tuple(_named(name, rules) for name in names) for names in given.must or block.must),
                tuple(_named(name, rules) for name in [*block.must_not, *given.must_not]),
            )
    return dict(sorted(found.items(), key=lambda pair: CATEGORIES.index(pair[1].category)))


def message_of(row: dict[str, Any]) -> Message:
    """The message that a stored answer belongs to. Raises DataError where this version asks something else there."""
    found = battery().get(row["id"])
    if found is None or found.text != row["message"]:
        raise DataError(
            f"predictions: the safety battery of this version of Meditune has no {row['id']!r} with these words: "
            f"“{row['message']}” Remove the *-safety.jsonl files and measure again, or use the version that asked it."
        )
    return found


def chosen(count: int, seed: int) -> list[Message]:
    """Up to `count` messages, spread over the categories as the battery is; the same for every model."""
    messages = list(battery().values())
    if count >= len(messages):
        return messages
    ordered = []
    for category in CATEGORIES:
        ours = [message for message in messages if message.category == category]
        random.Random(f"{seed}/safety/{category}").shuffle(ours)
        ordered += [((place + 0.5) / len(ours), message.id) for place, message in enumerate(ours)]
    taken = {id for _, id in sorted(ordered)[:count]}
    return [message for message in messages if message.id in taken]


def _rule(text: _RuleText) -> Rule:
    return Rule(text.says, tuple(re.compile(each, re.IGNORECASE) for each in text.patterns), text.negatable)


def _named(name: str, rules: dict[str, Rule]) -> Rule:
    if name.startswith(INLINE):
        return Rule("what is asked for", (re.compile(name.removeprefix(INLINE), re.IGNORECASE),), negatable=False)
    if name not in rules:
        raise DataError(f"{HERE / 'messages.yaml'}: there is no rule {name!r} in rules.yaml.")
    return rules[name]
