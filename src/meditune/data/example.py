"""The one record that every source is read into, and that every later stage works on.

What makes a row of others' data unusable, whatever it should become.

Which groups an example belongs to, by what its source says of it and by words in it.

The lists of words are our own, and coarse: they find mentions, not what a study is about. MeSH headings come without
their tree numbers, so `subject` groups them by words in them; it isn't MeSH's own branches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from meditune.errors import DataError
from meditune.files import numbered_jsonl, write_jsonl

Decision = Literal["yes", "no", "maybe"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)
STYLE = "meditune_style"
"""Key of an example's meta, which no column of a user's has by chance"""


class Passage(BaseModel):
    """A piece of source text that an answer may rest on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    label: str = ""
    """The section it came from, as its source names it ("RESULTS"), or empty."""


class Example(BaseModel):
    """One question with what is known about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    """Unique over all sources: `source:publisher's id`."""
    source: str = Field(min_length=1)
    question: str = Field(min_length=1)
    context: tuple[Passage, ...] = ()
    answer: str = ""
    """The explanation in free text; empty where only the decision is known."""
    decision: Decision | None = None
    group: str = Field(min_length=1)
    """What must not straddle a split: a PubMed id, a MedQuAD focus, a MIMIC SUBJECT_ID."""
    meta: dict[str, Any] = Field(default_factory=dict)
    """URL, licence, question type, focus, year, further reference answers (`references`) and the like."""

    @property
    def style(self) -> str | None:
        """`plain` or `expert`, the style in which the answer is written or asked for; None where its source has one."""
        found: str | None = self.meta.get(STYLE)
        return found

    def references(self) -> list[str]:
        """Every reference answer, the first one first, each once."""
        others = [each if isinstance(each, str) else each["answer"] for each in self.meta.get("references") or []]
        return list(dict.fromkeys(text for text in (self.answer, *others) if text))


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Store examples as JSON Lines; returns how many."""
    return write_jsonl(path, (example.model_dump(mode="json") for example in examples))


def read_examples(path: Path) -> list[Example]:
    """Examples stored by `write_examples`. Raises DataError with the line of one that isn't an Example."""
    examples = []
    for number, row in numbered_jsonl(path):
        try:
            examples.append(Example.model_validate(row))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not an Example record: {error}") from error
    return examples


CHARACTERS = 1_000_000
"""A row with more is no question and answer; a long novel has about as many."""
DEPTH = 50

SURROGATES = "half a character (a lone surrogate), which can't be written as UTF-8"
ZEROS = "a NUL character, as damaged files have"
TOO_DEEP = f"lists and objects more than {DEPTH} deep"
TOO_LONG = f"over {CHARACTERS:,} characters (a quote that isn't closed?)"


def problem_in_text(row: object) -> str:
    """Why the texts in a row (a text, or lists and objects of them) can't be used; empty where they can."""
    characters = 0
    waiting: list[tuple[object, int]] = [(row, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, str):
            characters += len(value)
            if characters > CHARACTERS:
                return TOO_LONG
            if "\0" in value:
                return ZEROS
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
    """Whether the text can be written as UTF-8, which half a character (a lone surrogate) can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain_text(value: Any) -> Any:
    """The value as JSON can hold it: NaN and Infinity become None, bytes their UTF-8 text or else their number."""
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
"""The beginnings of words in headings"""
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
"""MeSH headings that indexers give to every study of such people"""
PEOPLE = tuple(_CHECK_TAGS)
_YEARS = ((2000, "before 2000"), (2005, "2000 to 2004"), (2010, "2005 to 2009"), (2015, "2010 to 2014"))
_LENGTHS = ((9, "up to 8 words"), (16, "9 to 15 words"), (31, "16 to 30 words"))


def _any_of(listed: str, ending: str = "") -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(listed.split())}){ending}", re.IGNORECASE)


_SUBJECT_WORDS = {name: _any_of(listed) for name, listed in _SUBJECTS.items()}
_MENTION_WORDS = {name: _any_of(listed, r"\b") for name, listed in _MENTIONS.items()}
_PEOPLE_WORDS = {name: _any_of((_MENTIONS | _AGES)[name], r"\b") for name in PEOPLE}


def people_mentioned(example: Example) -> set[str]:
    """Of PEOPLE, whom question, context or answer mention or MeSH headings name; finer in age than `mention`."""
    text = " ".join([example.question, *(passage.text for passage in example.context), example.answer])
    headings = set(texts(example.meta.get("mesh")))
    return {name for name, words in _PEOPLE_WORDS.items() if headings & _CHECK_TAGS[name] or words.search(text)}


def texts(value: Any) -> list[str]:
    """The texts in a value of `Example.meta`: itself, or the items of a list."""
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
    text = " ".join([example.question, *(passage.text for passage in example.context)])
    found = {name for name, words in _MENTION_WORDS.items() if words.search(text)}
    return found or {"none of these"}


def _length(example: Example) -> set[str]:
    count = len(example.question.split())
    return {next((name for end, name in _LENGTHS if count < end), "more than 30 words")}


TRAITS: dict[str, Callable[[Example], set[str]]] = {
    "source": lambda example: {example.source},
    "question type": _question_type,
    "subject": _subject,
    "year": _year,
    "reference decision": lambda example: {example.decision} if example.decision else set(),
    "mention": _mention,
    "question length": _length,
}
"""By what items are grouped, and the groups of an item: none where nothing is known, several where several fit"""
