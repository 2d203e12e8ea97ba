"""The Example record that all stages use, checks for unusable texts, and the groups of an example.

Groups come from the source's metadata and from the word lists in word_groups.yaml. The lists are Meditune's own and
coarse: they find mentions, not the topic of a study.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from meditune.errors import DataError
from meditune.files import numbered_jsonl, write_jsonl

Decision = Literal["yes", "no", "maybe"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)
Label = Literal["supported", "refuted", "not_enough_information"]
LABELS: tuple[Label, ...] = get_args(Label)
"""The labels of claims: whether the evidence supports the claim, refutes it, or leaves it open"""
LABEL, CLAIM_LABELS = "meditune_label", "meditune_labels"
"""Keys in a claim's meta: its label, and the labels that its source uses, if it doesn't use all of LABELS"""
ANSWERED_QUESTION = "answered_question"
"""Key in a claim's meta: the question that the claim answers; the leakage checks compare it with other questions"""
CHOICES, EXAM_SUBJECT = "choices", "exam_subject"
"""Keys in the meta of a multiple-choice question: the texts of its choices, and its subject"""
STYLE = "meditune_style"
"""Key in an example's meta; columns of users are unlikely to have this name"""


class Passage(BaseModel):
    """A piece of source text that an answer can be based on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    label: str = ""
    """The name of its section in the source ("RESULTS"), or empty"""


Role = Literal["system", "user", "assistant"]


class Turn(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    text: str


class Example(BaseModel):
    """A question with its context, answer, decision and metadata; or a claim (`question`) with its evidence
    (`context`).

    Of a conversation, `question` is the user's last message, `answer` the reply to it, and `turns` are all messages
    before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    """Unique over all sources: `source:publisher's id`"""
    source: str = Field(min_length=1)
    question: str = Field(min_length=1)
    context: tuple[Passage, ...] = ()
    answer: str = ""
    """The explanation in free text; empty if only the decision is known"""
    decision: Decision | None = None
    group: str = Field(min_length=1)
    """Examples of a group stay in one split: a PubMed id, a MedQuAD focus, a MIMIC SUBJECT_ID"""
    meta: dict[str, Any] = Field(default_factory=dict)
    """URL, licence, question type, focus, year, further reference answers (`references`) and the like."""
    turns: tuple[Turn, ...] | None = None
    """Earlier messages of a conversation: a system message if there is one, then user and assistant in turns; None if
    the example isn't a conversation"""

    @model_serializer(mode="wrap")
    def _without_empty_turns(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `turns` out of the records of examples that aren't conversations."""
        row: dict[str, Any] = handler(self)
        if self.turns is None:
            row.pop("turns", None)
        return row

    @property
    def user_text(self) -> str:
        """Return everything that the user writes: the question, after the user's earlier messages if there are any."""
        return "\n".join([*(turn.text for turn in self.turns or () if turn.role == "user"), self.question])

    @property
    def style(self) -> str | None:
        """Return the style of the answer, `plain` or `expert`; None if the source has only one style."""
        found: str | None = self.meta.get(STYLE)
        return found

    @property
    def context_text(self) -> str:
        """Return the texts of the context's passages, joined by spaces."""
        return " ".join(passage.text for passage in self.context)

    @property
    def label(self) -> Label | None:
        """Return whether the context supports the claim that is in `question`; None if the row isn't a claim."""
        found: Label | None = self.meta.get(LABEL)
        return found

    @property
    def labels(self) -> tuple[Label, ...]:
        """Return the labels that the source of this claim uses, in the order of LABELS."""
        found = self.meta.get(CLAIM_LABELS)
        return tuple(label for label in LABELS if label in found) if found else LABELS

    def references(self) -> list[str]:
        """Return all reference answers in order, without repetitions."""
        others = [each if isinstance(each, str) else each["answer"] for each in self.meta.get("references") or []]
        return list(dict.fromkeys(text for text in (self.answer, *others) if text))


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write examples as JSON Lines and return their number."""
    return write_jsonl(path, (example.model_dump(mode="json") for example in examples))


def read_examples(path: Path) -> list[Example]:
    """Return the examples written by `write_examples`. Raises DataError with the line of an invalid record."""
    examples = []
    for number, row in numbered_jsonl(path):
        try:
            examples.append(Example.model_validate(row))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not an Example record: {error}") from error
    return examples


CHARACTERS = 1_000_000
"""A row with more characters is not a question and answer; a long novel has about this many"""
DEPTH = 50

SURROGATES = "half a character (a lone surrogate), which can't be encoded as UTF-8"
NUL_CHARACTER = "a NUL character, as in damaged files"
TOO_DEEP = f"lists and objects nested more than {DEPTH} deep"
TOO_LONG = f"over {CHARACTERS:,} characters (an unclosed quote?)"


def problem_in_text(row: object) -> str:
    """Return why the texts in a row (a text, or lists and objects of texts) can't be used; empty if they can."""
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
            if not is_valid_text(value):
                return SURROGATES
        elif isinstance(value, Mapping | list | tuple):
            if depth == DEPTH:
                return TOO_DEEP
            if isinstance(value, Mapping):
                waiting += [(key, depth + 1) for key in value]
                waiting += [(each, depth + 1) for each in value.values()]
            else:
                waiting += [(each, depth + 1) for each in value]
    return ""


def is_valid_text(text: str) -> bool:
    """Return True if the text can be encoded as UTF-8; a lone surrogate can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain_text(value: Any) -> Any:
    """Return the value in a form that JSON supports: NaN and Infinity become None, bytes their UTF-8 text or length."""
    if isinstance(value, Mapping):
        return {str(key): plain_text(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_text(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return f"({len(value):,} bytes)"
    return value


_SUBJECTS = {
    "cancer": "neoplasm carcinoma lymphoma leuk[ae]mia melanoma sarcoma cancer metasta antineoplastic mastectomy",
    "heart and vessels": "cardi heart coronary hypertens stroke vascular aort arter thromb myocard embolism venous",
    "brain and nerves": "brain nerv neur epilep parkinson alzheimer dement cogniti headache migraine sclerosis",
    "mental health": "depress mental anxi schizo psych suicid substance alcohol smoking autis bipolar",
    "infections": "infect virus viral bacteri hiv sepsis hepatitis tubercul malaria vaccin antibiotic pneumonia",
    "bones, joints and muscles": "bone fractur arthr joint knee hip spine spinal muscul muscle orthop osteo tendon",
    "digestion": "gastr intestin colo[nr] colitis rectal liver hepat pancrea bowel esophag append hernia cholecyst",
    "lungs and airways": "lung pulmon respirat asthma bronch airway apnea",
    "kidneys and urinary tract": "kidney renal urin prostat bladder dialysis nephr ureter",
    "hormones and metabolism": "diabet insulin thyroid obes metaboli glucose hormon cholesterol lipid vitamin",
    "pregnancy, birth and reproduction": "pregnan obstet birth labor cesarean fetal fertil gyn[ae]c uter ovar",
    "eyes, ears, nose and teeth": "eye ocular retin vision visual ophthal hearing cochle otitis nasal dental oral",
    "skin": "skin dermat psoria burns wound",
    "surgery and procedures": "surg operative transplant laparoscop anesthe implant resection",
    "care and services": "health.services quality.of.health hospital nurs delivery.of.health education attitude",
}
"""Beginnings of words in headings"""
_AGES = {
    "babies": "infants? neonat\\w* newborns? bab(?:y|ies) toddlers?",
    "children": "child child(?:ren|hood) p[ae]+diatrics? kids? sons? daughters? school-?age",
    "teenagers": "adolescen\\w* teen\\w*",
    "older people": "elderly older.(?:people|adults|patients|persons|men|women) geriatric\\w* seniors? "
    "aged.(?:6[5-9]|[7-9]\\d) octogenarians? nursing.homes?",
}
_MENTIONS = {
    "women or girls": "wom[ae]n females? girls? mothers? maternal",
    "men or boys": "m[ae]n males? boys? fathers? paternal",
    "children": " ".join(_AGES[age] for age in ("babies", "children", "teenagers")),
    "older people": _AGES["older people"],
    "pregnancy": "pregnan\\w* prenatal antenatal obstetric\\w* gestation\\w* postpartum trimesters?",
    "race or ethnicity": "rac(?:e|es|ial) ethnic\\w* african.americans? black.(?:people|patients|women|men|children) "
    "blacks whites caucasians? hispanics? latin[oa]s? asians? native.americans? indigenous aboriginal minorit(?:y|ies)",
}
"""Whole words in a question or its context"""
_CHECK_TAGS = {
    "women or girls": {"Female"},
    "men or boys": {"Male"},
    "babies": {"Infant", "Infant, Newborn", "Infant, Premature"},
    "children": {"Child", "Child, Preschool"},
    "teenagers": {"Adolescent"},
    "older people": {"Aged", "Aged, 80 and over", "Frail Elderly"},
    "pregnancy": {"Pregnancy"},
    "race or ethnicity": {"Ethnicity", "Racial Groups", "Minority Groups"},
}
"""MeSH headings that indexers assign to every study of such people"""
PEOPLE = tuple(_CHECK_TAGS)
_YEARS = ((2000, "before 2000"), (2005, "2000 to 2004"), (2010, "2005 to 2009"), (2015, "2010 to 2014"))
_LENGTHS = ((9, "up to 8 words"), (16, "9 to 15 words"), (31, "16 to 30 words"))


def _any_of(words: str, suffix: str = "") -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(words.split())}){suffix}", re.IGNORECASE)


_SUBJECT_WORDS = {name: _any_of(listed) for name, listed in _SUBJECTS.items()}
_MENTION_WORDS = {name: _any_of(listed, r"\b") for name, listed in _MENTIONS.items()}
_PEOPLE_WORDS = {name: _any_of((_MENTIONS | _AGES)[name], r"\b") for name in PEOPLE}


def people_mentioned(example: Example) -> set[str]:
    """Return the groups of PEOPLE that the texts mention or MeSH headings name; finer in age than `mention`."""
    text = f"{example.question} {example.context_text} {example.answer}"
    headings = set(texts(example.meta.get("mesh")))
    return {name for name, words in _PEOPLE_WORDS.items() if headings & _CHECK_TAGS[name] or words.search(text)}


def texts(value: Any) -> list[str]:
    """Return the texts in a value of `Example.meta`: the value itself, or the items of a list."""
    if isinstance(value, str):
        return [value] if value else []
    return [text for text in value if isinstance(text, str) and text] if isinstance(value, list | tuple) else []


def _question_type(example: Example) -> set[str]:
    return set(texts(example.meta.get("question_type")))


def _subject(example: Example) -> set[str]:
    headings = [*texts(example.meta.get("mesh")), *texts(example.meta.get("semantic_group"))]
    return {name for name, found in _SUBJECT_WORDS.items() if any(map(found.search, headings))}


def _year(example: Example) -> set[str]:
    year = example.meta.get("year")
    if not isinstance(year, int):
        return set()
    return {next((name for end, name in _YEARS if year < end), "2015 and later")}


def _mention(example: Example) -> set[str]:
    text = f"{example.question} {example.context_text}"
    found = {name for name, words in _MENTION_WORDS.items() if words.search(text)}
    return found or {"none of these"}


def _length(example: Example) -> set[str]:
    count = len(example.question.split())
    return {next((name for end, name in _LENGTHS if count < end), "more than 30 words")}


TRAITS: dict[str, Callable[[Example], set[str]]] = {
    "source": lambda example: {example.source},
    "question type": _question_type,
    "subject": _subject,
    "exam subject": lambda example: set(texts(example.meta.get(EXAM_SUBJECT))),
    "year": _year,
    "reference decision": lambda example: {example.decision} if example.decision else set(),
    "mention": _mention,
    "question length": _length,
}
"""Trait -> function that returns an item's groups: none if nothing is known, several if several apply"""
