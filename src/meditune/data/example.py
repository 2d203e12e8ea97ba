"""The Example record that all stages use, checks for unusable texts, and the groups that an example belongs to."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from meditune.errors import DataError
from meditune.files import numbered_jsonl, package_table, write_jsonl

Decision = Literal["yes", "no", "maybe"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)
Label = Literal["supported", "refuted", "not_enough_information"]
LABELS: tuple[Label, ...] = get_args(Label)
LABEL, CLAIM_LABELS = "meditune_label", "meditune_labels"
"""Keys in a claim's meta: the claim's label; and the labels that the source uses, if it uses only two of LABELS"""
ANSWERED_QUESTION = "answered_question"
"""Key in a claim's meta: the question that the claim answers; the leakage checks compare it with other questions"""
CHOICES, EXAM_SUBJECT = "choices", "exam_subject"
"""Keys in the meta of a multiple-choice question: the texts of the choices, and the subject of the exam"""
STYLE = "meditune_style"
"""Key of the answer's style in an example's meta; a column in a user's file is unlikely to have this name"""
REWRITES_CONTEXT = "meditune_rewrites_context"
"""Key in an example's meta: True if the answer says in other words what the context says, and may quote the context"""


Record = TypeVar("Record", bound=BaseModel)


class Passage(BaseModel):
    """A piece of source text that an answer can be based on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    label: str = ""
    """Name of the passage's section in the source, such as "RESULTS"; may be empty"""


Role = Literal["system", "user", "assistant"]


class Turn(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    text: str


class Example(BaseModel):
    """A question with its context, answer, decision and metadata; or a claim (`question`) with its evidence
    (`context`).

    In a conversation, `question` is the user's last message, `answer` is the reply to it, and `turns` contains all
    earlier messages.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    """Unique across all sources: `source:publisher's id`"""
    source: str = Field(min_length=1)
    question: str = Field(min_length=1)
    context: tuple[Passage, ...] = ()
    answer: str = ""
    decision: Decision | None = None
    group: str = Field(min_length=1)
    """Examples with the same group, such as a PubMed id or MIMIC's SUBJECT_ID, stay in one split"""
    meta: dict[str, Any] = Field(default_factory=dict)
    """Further facts, such as URL, licence, question type, focus, year and further reference answers (`references`)"""
    turns: tuple[Turn, ...] | None = None
    """Earlier messages of a conversation: an optional system message, then user and assistant in alternation; None if
    the example isn't a conversation"""

    @model_serializer(mode="wrap")
    def _without_empty_turns(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `turns` out of the record if the example isn't a conversation."""
        row: dict[str, Any] = handler(self)
        if self.turns is None:
            row.pop("turns", None)
        return row

    @property
    def user_text(self) -> str:
        """Return all text that the user writes: the user's earlier messages, if any, and the question."""
        return "\n".join([*(turn.text for turn in self.turns or () if turn.role == "user"), self.question])

    @property
    def style(self) -> str | None:
        """Return the style of the answer, `plain` or `expert`; None if the source has only one style."""
        return cast("str | None", self.meta.get(STYLE))

    @property
    def context_text(self) -> str:
        """Return the texts of the context's passages, joined by spaces."""
        return " ".join(passage.text for passage in self.context)

    @property
    def label(self) -> Label | None:
        """Return the label that says whether the context supports the claim; None if the example isn't a claim."""
        return cast("Label | None", self.meta.get(LABEL))

    @property
    def labels(self) -> tuple[Label, ...]:
        """Return the labels that `meta` lists for the claim's source, in the order of LABELS; by default, all."""
        found = self.meta.get(CLAIM_LABELS)
        return tuple(label for label in LABELS if label in found) if found else LABELS

    def references(self) -> list[str]:
        """Return all reference answers in order, without repetitions."""
        others = [each if isinstance(each, str) else each["answer"] for each in self.meta.get("references") or []]
        return list(dict.fromkeys(text for text in (self.answer, *others) if text))


def write_records(path: Path, records: Iterable[BaseModel]) -> int:
    """Write records as JSON Lines and return their number."""
    return write_jsonl(path, (record.model_dump(mode="json") for record in records))


def read_records(path: Path, model: type[Record]) -> list[Record]:
    """Return the records written by `write_records`. Raises DataError with the line number of an invalid record."""
    records = []
    for number, row in numbered_jsonl(path):
        try:
            records.append(model.model_validate(row))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not a valid {model.__name__}: {error}") from error
    return records


def read_examples(path: Path) -> list[Example]:
    """Return the examples in a JSON Lines file. Raises DataError with the line number of an invalid record."""
    return read_records(path, Example)


CHARACTERS = 1_000_000
"""Maximum number of characters in a row: about the length of a long novel, and more than any question and answer"""
DEPTH = 50
SURROGATES = "half a character (a lone surrogate), which can't be encoded as UTF-8"
NUL_CHARACTER = "a NUL character, as in damaged files"
TOO_DEEP = f"lists and objects nested more than {DEPTH} deep"
TOO_LONG = f"over {CHARACTERS:,} characters (an unclosed quote?)"


def problem_in_text(row: object) -> str:
    """Return the reason why texts in a row (a text, or nested lists and objects) are unusable; "" if there is none."""
    characters = 0
    waiting: list[tuple[object, int]] = [(row, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, str):
            characters += len(value)
            if characters > CHARACTERS:
                return TOO_LONG
            if "\0" in value:
                return NUL_CHARACTER
            try:
                value.encode()
            except UnicodeEncodeError:
                return SURROGATES
        elif isinstance(value, Mapping | list | tuple):
            if depth == DEPTH:
                return TOO_DEEP
            inner = [*value, *value.values()] if isinstance(value, Mapping) else value
            waiting += [(each, depth + 1) for each in inner]
    return ""


def plain_text(value: Any, strict: bool = False) -> Any:
    """Return the value in a form that JSON supports: NaN and Infinity become None; bytes become text or "(N bytes)".

    With `strict`, raises UnicodeDecodeError for bytes that aren't text.
    """
    if isinstance(value, Mapping):
        return {str(key): plain_text(each, strict) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_text(each, strict) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            if strict:
                raise
            return f"({len(value):,} bytes)"
    return value


_YEARS = ((2000, "before 2000"), (2005, "2000 to 2004"), (2010, "2005 to 2009"), (2015, "2010 to 2014"))
_LENGTHS = ((9, "up to 8 words"), (16, "9 to 15 words"), (31, "16 to 30 words"))
WORDS: dict[str, Any] = package_table(Path(__file__).with_name("word_groups.yaml"))


def _any_of(words: str, suffix: str = r"\b") -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(words.split())}){suffix}", re.IGNORECASE)


_SUBJECT_WORDS = {name: _any_of(listed, "") for name, listed in WORDS["subjects"].items()}
_PEOPLE_WORDS = {name: _any_of(listed) for name, listed in (WORDS["ages"] | WORDS["mentions"]).items()}
_MENTION_WORDS = {name: _PEOPLE_WORDS[name] for name in (*WORDS["mentions"], "older people")} | {
    "children": _any_of(" ".join(WORDS["ages"][age] for age in ("babies", "children", "teenagers")))
}
_CHECK_TAGS = {name: set(headings) for name, headings in WORDS["check_tags"].items()}
PEOPLE = tuple(_CHECK_TAGS)


def people_mentioned(example: Example) -> set[str]:
    """Return the groups in PEOPLE that the texts mention or the MeSH headings name.

    By contrast, the trait "mention" ignores the headings, and counts babies and teenagers as children.
    """
    text = f"{example.question} {example.context_text} {example.answer}"
    headings = set(texts(example.meta.get("mesh")))
    return {name for name in PEOPLE if headings & _CHECK_TAGS[name] or _PEOPLE_WORDS[name].search(text)}


def texts(value: Any) -> list[str]:
    """Return the non-empty texts in a value of `Example.meta`: the value itself, or the items of a list."""
    if isinstance(value, str):
        return [value] if value else []
    return [text for text in value if isinstance(text, str) and text] if isinstance(value, list | tuple) else []


def _subject(example: Example) -> set[str]:
    headings = [*texts(example.meta.get("mesh")), *texts(example.meta.get("semantic_group"))]
    return {name for name, found in _SUBJECT_WORDS.items() if any(map(found.search, headings))}


def _year(example: Example) -> set[str]:
    year = example.meta.get("year")
    return {next((name for end, name in _YEARS if year < end), "2015 and later")} if isinstance(year, int) else set()


def _mention(example: Example) -> set[str]:
    text = f"{example.question} {example.context_text}"
    found = {name for name, words in _MENTION_WORDS.items() if words.search(text)}
    return found or {"none of these"}


def _length(example: Example) -> set[str]:
    count = len(example.question.split())
    return {next((name for end, name in _LENGTHS if count < end), "more than 30 words")}


TRAITS: dict[str, Callable[[Example], set[str]]] = {
    "source": lambda example: {example.source},
    "question type": lambda example: set(texts(example.meta.get("question_type"))),
    "subject": _subject,
    "exam subject": lambda example: set(texts(example.meta.get(EXAM_SUBJECT))),
    "year": _year,
    "reference decision": lambda example: {example.decision} if example.decision else set(),
    "mention": _mention,
    "question length": _length,
}
"""Trait -> function that returns an example's groups for this trait: none, one or several"""
