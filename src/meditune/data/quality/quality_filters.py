"""Quality filters and text corrections: pure functions for the rules that check one row at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import count, groupby
from pathlib import Path
from typing import Any

from meditune.config.data_options import QualitySpec
from meditune.data.example import Example, Passage
from meditune.data.near_duplicates import words
from meditune.data.quality.ledger import Entry
from meditune.evidence.lexical_features import information_weight, stem
from meditune.files import package_lines, package_table
from meditune.text import sentences, without_invisible

MIN_ANSWER_WORDS, MAX_ANSWER_WORDS = 3, 2000
FEW_HEALTH_WORDS = 0.02
"""A text isn't medical if at most this share of its words is about health and medicine"""
MIN_WORDS, MIN_CHARACTERS = 8, 40
"""Minimum length of an answer, in words for the check of its topic and in characters for the check of its language"""
CONTENT_WEIGHT = 0.3
PREFIX = 6
"""Two words count as related if at least this number of initial characters is the same"""
OPENING = 120
"""Number of characters at the beginning of an answer in which "this condition" counts as a mention of the topic"""
MIN_SHARED_WORDS = 0.25
"""An answer uses its context if at least this share of the answer's content words is in the context"""
ENGLISH = 0.12
"""A text is English if at least this share of its words are function words; 18,000 real prose answers all have more"""
MIN_LANGUAGE_PROBABILITY, MIN_LANGUAGE_WORDS = 0.9, 12
"""A text is rejected if the probability that it is in none of the allowed languages exceeds this; a text with fewer
words, only if a single language is that probable"""

_ASKS = re.compile(
    r"\?|^\W*(?:is|are|was|were|do|does|did|can|could|should|would|will|may|might|has|have|had|when|which|whose|whom|"
    r"explain|describe|list|tell|give|name|define|compare|find|suggest|recommend|advise|discuss|summari[sz]e)\b|"
    r"\b(?:who|what|whats|where|why|how|please|pls|plz|help|want|wants|need|needs|like to|looking for|wonder|wondering|"
    r"information|info|advice|questions?|i|i'm|im|my|me|can you|could you|do you|is there|are there)\b",
    re.IGNORECASE,
)
_NO_WORDS = re.compile(r"\S*[\d@/]\S*|\b[A-Z]{2,}\b")
_CAPITAL = re.compile(r"(?<=[a-z)] )[A-Z][a-z]+")
_ENDED = re.compile(r"[.!?…:;][\"'”’)\]*]*$|[)\]\"”]$|(?:https?://|www\.)\S+$|\d$")
_CREDIT = re.compile(r"\W*(?:[A-Z]\S*|of|for|and|the|on|in|&)(?:\s+(?:[A-Z]\S*|of|for|and|the|on|in|&))+$")
_ITEM = re.compile(r"^\s*(?:[-•*]|\d+[.)])\s")
_PATTERNS = package_table(Path(__file__).with_name("patterns.yaml"))
_NEVER_LAST = frozenset(_PATTERNS["never_last"].split())
_ENGLISH = frozenset(_PATTERNS["english"].split())
_ANY_QUESTION = frozenset(map(stem, _PATTERNS["any_question"].split()))
_LINES = re.compile(
    rf"^[ \t]*(?:[-•][ \t]*)?(?:{'|'.join(_PATTERNS['boilerplate_lines'])})[ \t]*$", re.IGNORECASE | re.MULTILINE
)
_SENTENCES = re.compile(
    rf"(?:(?<=^)|(?<=[.!?:)\]] )|(?<=\n))(?:{'|'.join(_PATTERNS['boilerplate_sentences'])})[.!)]*[ \t]*", re.MULTILINE
)
_STANDS_FOR = re.compile(
    r"\b(?:[Tt]h(?:is|ese|e)|[Ii]ts) (?:condition|disorder|disease|syndrome|infection|illness|cancer|tumor|defect|"
    r"medication|medicine|drug|test|procedure|problem|prognosis|outlook|treatment|exact)s?\b"
)


def is_question(question: str) -> bool:
    """Return True if a text has a question mark or a word that is typical of questions and requests."""
    return bool(_ASKS.search(question))


def is_medical(example: Example) -> bool:
    """Return True if the question has a word about health and medicine, or context and answer have enough of them."""
    if any(map(is_health_word, words(example.question))):
        return True
    text = words(f"{example.context_text} {example.answer}")
    return sum(map(is_health_word, text)) > FEW_HEALTH_WORDS * len(text)


@lru_cache(maxsize=65536)
def is_health_word(word: str) -> bool:
    """Return True if a lowercase word is in health_words.txt, or has a prefix or suffix listed there."""
    full_words, prefixes, suffixes = _health_words()
    return (
        word in full_words
        or any(word[:length] in prefixes for length in range(4, len(word) + 1))
        or any(word[-length:] in suffixes for length in range(3, len(word) - 2))
    )


def is_truncated(answer: str) -> str:
    """Return the reason why an answer seems truncated (last word, open bracket, no full stop), or ""."""
    lines = answer.rstrip().splitlines()
    if not lines or not lines[-1].split():
        return ""
    last, word = lines[-1], lines[-1].split()[-1]
    if word.casefold().strip("\"'(") in _NEVER_LAST or word.endswith((",", "...", "…")) or re.search(r"\w-$", word):
        return f'ends with "{word}"'
    if _ENDED.search(last):
        return ""
    if last.count("(") > last.count(")"):
        return "ends inside brackets"
    fragment = sentences(last)[-1]
    if len(_CAPITAL.findall(fragment)) > 1 or _CREDIT.match(fragment):
        return ""  # items on one line, or an author credit
    if fragment != last:
        return "the last sentence is incomplete"
    if _ITEM.match(last):
        others = [line for line in lines[:-1] if _ITEM.match(line)]
        ended = sum(bool(_ENDED.search(line)) for line in others)
        return "the last item is incomplete, unlike the others" if len(others) > 1 and ended == len(others) else ""
    in_prose = all(_ENDED.search(line) for line in lines[:-1] if len(line.split()) > MIN_WORDS)
    return "the last sentence is incomplete" if in_prose and len(last.split()) >= MIN_WORDS else ""


def is_off_topic(example: Example) -> bool:
    """Return True if an answer neither mentions the topic (by name or as "this condition") nor uses the context."""
    answer = words(example.answer)
    if len(answer) < MIN_WORDS:
        return False
    values = (example.meta.get(key) or [] for key in ("focus", "synonyms"))
    given = [each for value in values for each in (value if isinstance(value, list) else [value])]
    names = [str(each) for each in given if len(str(each)) > 1]
    # Short names are matched case-sensitively.
    cases = ((name, 0 if len(name) < PREFIX else re.IGNORECASE) for name in names)
    if any(re.search(rf"\b{re.escape(name)}\b", example.answer, case) for name, case in cases):
        return False
    topic = {stem(word) for word in _content_words(words(" ".join([example.question, *names])))} - _ANY_QUESTION
    stems = {stem(word) for word in answer}
    if not topic or topic & stems or _share_prefix(topic, stems) or _abbreviates(example.answer, names):
        return False
    if example.context:
        content = {stem(word) for word in _content_words(answer)}
        return len(content & set(map(stem, words(example.context_text)))) < MIN_SHARED_WORDS * len(content)
    return not _STANDS_FOR.search(example.answer[:OPENING])


def _content_words(text: Sequence[str]) -> list[str]:
    return [word for word in text if information_weight(word) > CONTENT_WEIGHT]


def _share_prefix(first: set[str], second: set[str]) -> bool:
    """Return True if words of both sets have the same beginning, such as "cystoscopy" and "cystoscopist"."""
    one, two = ({word[:PREFIX] for word in each if len(word) >= PREFIX} for each in (first, second))
    return not one.isdisjoint(two)


def _abbreviates(answer: str, names: Sequence[str]) -> bool:
    """Return True if the answer has the initials of a topic name, such as "LCH" for Langerhans Cell Histiocytosis."""
    short = {match.upper() for match in re.findall(r"\b[A-Z][A-Za-z]*[A-Z][A-Za-z0-9]*\b", answer)}
    initials = {"".join(word[0] for word in each.split() if word[0].isalpha()).upper() for each in names}
    return any(a[:3] in {b[:3], b[-3:]} for a in short for b in initials if len(a) > 1 and len(b) > 1)


def is_english(text: str) -> bool:
    """Return True if enough of a text's words are English function words."""
    found = words(text)
    return sum(word in _ENGLISH for word in found) >= ENGLISH * len(found)


def foreign_language(text: str, languages: Sequence[str]) -> str:
    """Return the ISO 639-1 code that py3langid finds, or "" if a text is short or may be in one of `languages`.

    If English is allowed, a text of mostly health words, or one that resembles Latin, counts as English.
    """
    prose, found = _NO_WORDS.sub(" ", text)[:2000], words(text)
    if len(prose.strip()) < MIN_CHARACTERS:
        return ""
    # English names of diseases, drugs and species look like Latin to py3langid.
    if "en" in languages and 2 * sum(map(is_health_word, found)) > len(found):
        return ""
    ranked = _language_identifier().rank(prose)
    code, probability = str(ranked[0][0]), float(ranked[0][1])
    if code in languages or (code == "la" and "en" in languages):
        return ""
    if len(found) < MIN_LANGUAGE_WORDS and probability < MIN_LANGUAGE_PROBABILITY:
        return ""
    allowed = sum(float(sure) for each, sure in ranked if each in languages)
    return code if allowed < 1 - MIN_LANGUAGE_PROBABILITY else ""


def language_probability(text: str, languages: Sequence[str]) -> float:
    """Return the probability, by py3langid, that a text is in one of `languages` (ISO 639-1 codes)."""
    ranked = _language_identifier().rank(_NO_WORDS.sub(" ", text)[:2000])
    return sum(float(sure) for code, sure in ranked if code in languages)


@cache
def _language_identifier():  # type: ignore[no-untyped-def]
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@cache
def _health_words() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Return the words ("heart"), prefixes ("cardio") and suffixes ("itis") in health_words.txt, without hyphens."""
    listed = [word for line in package_lines(Path(__file__).with_name("health_words.txt")) for word in line.split()]
    return (
        frozenset(form for word in listed if "-" not in word for form in (word, f"{word}s")),
        frozenset(word[:-1] for word in listed if word.endswith("-")),
        frozenset(word[1:] for word in listed if word.startswith("-")),
    )


MAX_ITEM_WORDS, MIN_ITEMS = 3, 3
"""Consecutive lines without bullets count as a list if there are MIN_ITEMS or more of at most MAX_ITEM_WORDS words,
and no line begins or ends with a word that links it to the line before or after"""
_LINKS = _NEVER_LAST - {"a", "an", "the", "not"}
_SUSPECT = re.compile(
    r"[^\n\t\x20-\x7e\xa0-\xff\u2010-\u2027\u2030-\u205e\u0370-\u03ff\u2190-\u22ff]|[\xc2-\xf4][\x80-\xbf]|â"
)
_INVISIBLE = frozenset(map(chr, [*range(9), 11, *range(14, 32), 127, 0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF]))
_BULLET = re.compile(r"^[ \t]*(?:[•▪●◦‣·*\uf0b7]|[-–—])[ \t]+(?=\S)", re.MULTILINE)
_LONE_BULLET = re.compile(r"^[ \t]*[•▪●◦‣·*\uf0b7-][ \t]*\n+(?=\S)", re.MULTILINE)
_INLINE = re.compile(r"(?<=[.:;!?)]) +[-•▪●◦‣·\uf0b7] +(?=[A-Z(0-9])")
_TABLE = re.compile(r"(?<=patients \(when available\)) +|(?<= ) - (?=[A-Z(])")
_BROKEN = re.compile(r"(?<=[a-z,])\n(?=[a-z(])")
_BEFORE = re.compile(r"(?<=[\w)\]\"'%]) +(?=[,;.](?:\s|$)|:(?:\s|$))")
_MARKS = re.compile(r"(?<=\S)\s+(?=\?)|\?(?=\s*\?)")
_LOOSE_ITEM = re.compile(r"(?<=\S)\n\n+(?=- )")


def fix_encoding(text: str) -> str:
    """Return `text` with decoding errors corrected and without invisible characters (joiners can stay)."""
    if text.isascii() and not _SUSPECT.search(text):
        return text
    import ftfy

    return without_invisible(str(ftfy.fix_encoding(text)), _INVISIBLE.__contains__)


def fix_layout(text: str) -> str:
    """Return `text` as paragraphs and lists of "- " items; the words and their order don't change."""
    lines = (re.sub(r"[ \t\xa0\u2000-\u200a\u3000]+", " ", line).strip() for line in text.splitlines())
    text = "\n".join(lines).strip()
    text = _LONE_BULLET.sub("- ", text)
    text = _BULLET.sub("- ", text)
    text = _joined(text)
    if len(_INLINE.findall(text)) + text.count("\n- ") >= 2:
        text = _INLINE.sub("\n- ", text)
    if "Approximate number of patients (when available)" in text and text.count(" - ") >= 3:
        text = _TABLE.sub("\n- ", text)
    text = _BEFORE.sub("", text)
    return re.sub(r"\n{3,}", "\n\n", _LOOSE_ITEM.sub("\n", text))


def _joined(text: str) -> str:
    """Return `text` with lines joined that were broken inside a sentence, but not the lines of a list."""
    lines = text.split("\n")
    is_short = [0 < len(line.split()) <= MAX_ITEM_WORDS and not line.startswith("- ") for line in lines]
    in_list: list[bool] = []
    for short, run in groupby(is_short):
        length = len(list(run))
        is_list = short and length >= MIN_ITEMS
        words_of = [line.split() for line in lines[len(in_list) : len(in_list) + length]] if is_list else []
        is_prose = any(each[0] in _LINKS or each[-1] in _NEVER_LAST for each in words_of)
        in_list += [is_list and not is_prose] * length
    if not any(in_list):
        return _BROKEN.sub(" ", text)
    breaks = count()

    def join(line_break: re.Match[str]) -> str:
        at = next(breaks)
        is_broken = _BROKEN.match(text, line_break.start()) and not in_list[at] and not in_list[at + 1]
        return " " if is_broken else line_break[0]

    return re.sub(r"\n", join, text)


def question_text(question: str) -> str:
    """Return a question with a clean layout, without repeated question marks and without spaces before them."""
    return _MARKS.sub("", fix_layout(question))


def without_boilerplate(text: str) -> tuple[str, list[str]]:
    """Return `text` without web-page boilerplate (unchanged if nothing would remain), and the boilerplate found."""
    gone = [match[0].strip() for match in _LINES.finditer(text) if not _is_table_row(match)]
    gone += [match[0].strip() for match in _SENTENCES.finditer(text)]
    if not gone:
        return text, []
    without_lines = _LINES.sub(lambda match: match[0] if _is_table_row(match) else "", text)
    left = re.sub(r"\n{3,}", "\n\n", _SENTENCES.sub("", without_lines)).strip()
    return (left if re.search(r"\w", left) else text), gone


def _is_table_row(line: re.Match[str]) -> bool:
    """Return True if a line is next to another line with the same number of vertical bars."""
    text, bars = line.string, line[0].count("|")
    if not bars:
        return False
    start, end = text.rfind("\n", 0, max(line.start() - 1, 0)) + 1, text.find("\n", line.end() + 1)
    before, after = (start, line.start()), (line.end(), len(text) if end < 0 else end)
    return bars in (text.count("|", *before), text.count("|", *after))


MAX_LISTED_PASSAGES = 5


@dataclass(frozen=True)
class Finding:
    """A finding of a rule in a row: a description (`detail`), and the corrected row if the rule can correct it."""

    detail: str
    corrected: Example | None = None


Rule = Callable[[Example, QualitySpec], Finding | str]
"""Returns a Finding, or only its detail if the rule corrects no rows; an empty string if the rule finds nothing"""


def apply_rules(example: Example, spec: QualitySpec, flag_only: bool = False) -> tuple[Example | None, list[Entry]]:
    """Return the row after all single-row rules (None if a rule dropped the row), and the ledger entries.

    With `flag_only`, the rules neither drop nor change the row.
    """
    entries: list[Entry] = []
    for name, rule in RULES.items():
        action = spec.action(name)
        finding = "" if action == "off" else rule(example, spec)
        if not finding:
            continue
        if isinstance(finding, str):
            finding = Finding(finding)
        if flag_only or (action == "mend" and finding.corrected is None):
            action = "flag"
        after = {"drop": None, "mend": finding.corrected}.get(action, example)
        entries.append(Entry(name, action, example, after, finding.detail))
        if after is None:
            return None, entries
        example = after
    return example, entries


def _encoding(example: Example, _: QualitySpec) -> Finding | str:
    update: dict[str, Any] = {
        "question": fix_encoding(example.question),
        "answer": fix_encoding(example.answer),
        "context": tuple(Passage(text=fix_encoding(each.text), label=each.label) for each in example.context),
    }
    texts = [update["question"], update["answer"], *(passage.text for passage in update["context"])]
    if example.turns:
        update["turns"] = tuple(each.model_copy(update={"text": fix_encoding(each.text)}) for each in example.turns)
        texts += [turn.text for turn in update["turns"]]
    mended = example.model_copy(update=update)
    if any("\ufffd" in text for text in texts):
        return Finding("characters were lost and can't be restored", None if mended == example else mended)
    return "" if mended == example else Finding("decoding errors fixed", mended)


def _layout(example: Example, _: QualitySpec) -> Finding | str:
    if example.turns is not None:
        return ""  # lists and code in a conversation are intentional
    texts = {"question": question_text(example.question), "answer": fix_layout(example.answer)}
    changed = [name for name, text in texts.items() if text != getattr(example, name)]
    return Finding(f"{' and '.join(changed)} reformatted", example.model_copy(update=texts)) if changed else ""


def _boilerplate(example: Example, _: QualitySpec) -> Finding | str:
    left, gone = without_boilerplate(example.answer)
    mended = example.model_copy(update={"answer": left}) if left != example.answer else None
    return Finding(" | ".join(gone[:MAX_LISTED_PASSAGES]), mended) if gone else ""


def _language(example: Example, spec: QualitySpec) -> str:
    text = example.answer
    if not text or ("en" in spec.languages and is_english(text)):
        return ""
    code = foreign_language(text, spec.languages)
    return f"in {code}" if code else ""


def _length(example: Example, is_wrong: Callable[[int], bool]) -> str:
    count = len(example.answer.split())
    return f"{count} words" if is_wrong(count) else ""


RULES: dict[str, Rule] = {
    "encoding": _encoding,
    "layout": _layout,
    "boilerplate": _boilerplate,
    "language": _language,
    "not_a_question": lambda row, _: "" if is_question(row.question) else "no question mark and no question word",
    "not_medical": lambda row, _: "" if is_medical(row) else "few or no words about health and medicine",
    "too_short": lambda row, _: _length(row, lambda count: 0 < count < MIN_ANSWER_WORDS),
    "too_long": lambda row, _: _length(row, lambda count: count > MAX_ANSWER_WORDS),
    "truncated": lambda row, _: is_truncated(row.answer),
    "off_topic": lambda row, _: "the answer contains no word about the topic" if is_off_topic(row) else "",
}
"""The single-row rules of `data.quality.rules`; rules that compare rows are in deduplication.py"""
