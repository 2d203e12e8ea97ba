"""The rules that look at one row, by name: each says what it found, and how the row would be put right.

A rule is a pure function of one Example and the recipe's `data.quality`, so rows can be looked at anywhere, in any
order.

What can be told of one row without any other: whether it is a question, about medicine, answered, and to the end.

Texts put right: wrong decoding, residue of a page's layout, words that belong to a page and not to an answer.

Layout and encoding lose no word; what is taken out with boilerplate stands in the ledger.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from meditune.config.data_options import QualityRules, QualitySpec
from meditune.data.example import Example, Passage
from meditune.data.near_duplicates import words
from meditune.data.quality.ledger import Entry
from meditune.evidence.words import information_weight, stem
from meditune.text import sentences

HEALTH = Path(__file__).parent / "health_words.txt"
FEW_HEALTH_WORDS = 0.02
"""A text in which so few words in a hundred are of health and medicine isn't about them."""
LEAST_TO_JUDGE, LEAST_CHARACTERS = 8, 40
"""Shorter answers, in words, aren't off topic, and in characters, not in another language: they say too little."""
SAYS = 0.3
"""A word that says more may tell what a question is about."""
BEGINNING = 6
"""Letters in which words of one stem agree."""
BEGIN = 120
"""Characters of an answer in which "this condition" is taken for what the question asks about."""
LEAST_SHARED = 0.25
"""Share of an answer's telling words that stand in its context, where it is about that."""
ENGLISH = 0.12
"""From this share of function words on, a text is English; the least among 18,000 real answers of prose is above."""
SURE = 0.9
"""How sure it must be that a text is in none of the languages."""

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
_OPEN_TEXT = (
    "a an and are as at be because but by for from has have if in include includes including into is may of on or such "
    "than that the their these this those to was were when which while with without not can"
)
"""Words that lead on: no sentence ends with one."""
_ENGLISH_TEXT = (
    "a about after all also an and any are as at be because been before being between both but by can cannot could did "
    "do does during each for from had has have how however if in including into is it its may more most no not of on "
    "one only or other others over people should since so some such than that the their them there these they this "
    "those through to too under up use used usually was we were what when where which while who will with within "
    "without would you your"
)
_ANY_QUESTION_TEXT = (
    "symptom sign treatment treat cause causes diagnose diagnosis inherit inherited genetic genes gene change related "
    "affected people prevent prevention complication outlook stage research clinical trials risk information many "
    "disease disorder syndrome condition deficiency type familial autosomal dominant recessive congenital patients "
    "person medical doctor health help know daughter husband mother father thank thanks question possible common"
)
_STANDS_FOR = re.compile(
    r"\b(?:[Tt]h(?:is|ese|e)|[Ii]ts) (?:condition|disorder|disease|syndrome|infection|illness|cancer|tumor|defect|"
    r"medication|medicine|drug|test|procedure|problem|prognosis|outlook|treatment|exact)s?\b"
)
_OPEN = frozenset(_OPEN_TEXT.split())
_ENGLISH = frozenset(_ENGLISH_TEXT.split())
_ANY_QUESTION = frozenset(map(stem, _ANY_QUESTION_TEXT.split()))


def is_question(question: str) -> bool:
    """Whether a text asks for anything: a question mark, or a word with which people ask."""
    return bool(_ASKS.search(question))


def is_medical(example: Example) -> bool:
    """Whether words of health and medicine stand in the question, or often enough in the context and answer."""
    if any(map(is_health_word, words(example.question))):
        return True
    said = words(" ".join([*(passage.text for passage in example.context), example.answer]))
    return sum(map(is_health_word, said)) > FEW_HEALTH_WORDS * len(said)


@lru_cache(maxsize=65536)
def is_health_word(word: str) -> bool:
    """Whether a word in small letters is one of health_words.txt, or begins or ends as one there."""
    whole, beginnings, endings = _health()
    return (
        word in whole
        or any(word[:length] in beginnings for length in range(4, len(word) + 1))
        or any(word[-length:] in endings for length in range(3, len(word) - 2))
    )


def is_truncated(answer: str) -> str:
    """What shows that an answer isn't whole (a last word that leads on, an open bracket, no full stop), or ""."""
    lines = answer.rstrip().splitlines()
    if not lines or not lines[-1].split():
        return ""
    last, word = lines[-1], lines[-1].split()[-1]
    if word.casefold().strip("\"'(") in _OPEN or word.endswith((",", "...", "…")) or re.search(r"\w-$", word):
        return f'ends with "{word}"'
    if _ENDED.search(last):
        return ""
    if last.count("(") > last.count(")"):
        return "ends inside brackets"
    fragment = sentences(last)[-1]
    if len(_CAPITAL.findall(fragment)) > 1 or _CREDIT.match(fragment):
        return ""  # items that ran together, or who wrote it
    if fragment != last:
        return "the last sentence has no end"
    if _ITEM.match(last):
        others = [line for line in lines[:-1] if _ITEM.match(line)]
        ended = sum(bool(_ENDED.search(line)) for line in others)
        return "the last item has no end, as the others have" if len(others) > 1 and ended == len(others) else ""
    in_prose = all(_ENDED.search(line) for line in lines[:-1] if len(line.split()) > LEAST_TO_JUDGE)
    return "the last sentence has no end" if in_prose and len(last.split()) >= LEAST_TO_JUDGE else ""


def is_off_topic(example: Example) -> bool:
    """Whether an answer has no word of what is asked about, doesn't stand for it ("this condition"), and hardly any of
    the context.

    What is asked about are the question's words beyond those that any medical question has, and the focus and synonyms
    where the source names them.
    """
    said = words(example.answer)
    if len(said) < LEAST_TO_JUDGE:
        return False
    named = _named(example)
    if any(_stands_in(name, example.answer) for name in named):
        return False
    about = " ".join([example.question, *named])
    sought = {
        stem(word) for word in words(about) if information_weight(word) > SAYS and stem(word) not in _ANY_QUESTION
    }
    told = {stem(word) for word in said}
    if not sought or sought & told or _begins_alike(sought, told) or _is_short_for(example.answer, named):
        return False
    if example.context:
        context = {stem(word) for passage in example.context for word in words(passage.text)}
        telling = {stem(word) for word in said if information_weight(word) > SAYS}
        return len(telling & context) < LEAST_SHARED * len(telling)
    return not _STANDS_FOR.search(example.answer[:BEGIN])


def _named(example: Example) -> list[str]:
    """What the source says that the question is about."""
    values = (example.meta.get(key) or [] for key in ("focus", "synonyms"))
    given = [each for value in values for each in (value if isinstance(value, list) else [value])]
    return [str(each) for each in given if len(str(each)) > 1]


def _stands_in(name: str, text: str) -> bool:
    """Whether a name is in the text; a short one, with the same capitals."""
    return re.search(rf"\b{re.escape(name)}\b", text, 0 if len(name) < BEGINNING else re.IGNORECASE) is not None


def _begins_alike(sought: set[str], told: set[str]) -> bool:
    """Whether a word of the one begins as a word of the other: "cystoscopy", "cystoscopist"."""
    beginnings = {word[:BEGINNING] for word in told if len(word) >= BEGINNING}
    return any(word[:BEGINNING] in beginnings for word in sought if len(word) >= BEGINNING)


def _is_short_for(answer: str, named: Sequence[str]) -> bool:
    """Whether the answer has initials of what is asked about: "LCH" for Langerhans Cell Histiocytosis."""
    short = {match.upper() for match in re.findall(r"\b[A-Z][A-Za-z]*[A-Z][A-Za-z0-9]*\b", answer)}
    initials = {"".join(word[0] for word in each.split() if word[0].isalpha()).upper() for each in named}
    return any(a[:3] in {b[:3], b[-3:]} for a in short for b in initials if len(a) > 1 and len(b) > 1)


def is_english(text: str) -> bool:
    """Whether enough of a text's words are the function words of English."""
    said = words(text)
    return sum(word in _ENGLISH for word in said) >= ENGLISH * len(said)


def foreign_language(text: str, languages: Sequence[str]) -> str:
    """The language a text is in, as ISO 639-1 code, where it is surely none of `languages` (py3langid); else ""."""
    said = _NO_WORDS.sub(" ", text)[:2000]
    if len(said.strip()) < LEAST_CHARACTERS:
        return ""
    ranked = _identifier().rank(said)
    allowed = sum(float(sure) for code, sure in ranked if code in languages)
    return str(ranked[0][0]) if allowed < 1 - SURE else ""


@cache
def _identifier():  # type: ignore[no-untyped-def]
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@cache
def _health() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """(words, beginnings, endings): "heart", "cardio-", "-itis"."""
    said = [
        word
        for line in HEALTH.read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
        for word in line.split()
    ]
    return (
        frozenset(word for word in said if "-" not in word) | {f"{word}s" for word in said if "-" not in word},
        frozenset(word[:-1] for word in said if word.endswith("-")),
        frozenset(word[1:] for word in said if word.startswith("-")),
    )


_SUSPECT = re.compile(
    r"[^\n\t\x20-\x7e\xa0-\xff\u2010-\u2027\u2030-\u205e\u0370-\u03ff\u2190-\u22ff]|[\xc2-\xf4][\x80-\xbf]|â"
)
_INVISIBLE = dict.fromkeys([*range(9), 11, *range(14, 32), 127, 0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF])

_BULLET = re.compile(r"^[ \t]*(?:[•▪●◦‣·*\uf0b7]|[-–—])[ \t]+(?=\S)", re.MULTILINE)
_LONE_BULLET = re.compile(r"^[ \t]*[•▪●◦‣·*\uf0b7-][ \t]*\n+(?=\S)", re.MULTILINE)
_INLINE = re.compile(r"(?<=[.:;!?)]) +[-•▪●◦‣·\uf0b7] +(?=[A-Z(0-9])")
_TABLE = re.compile(r"(?<=patients \(when available\)) +|(?<= ) - (?=[A-Z(])")
_BROKEN = re.compile(r"(?<=[a-z,])[ \t]*\n(?=[a-z(])")
_BEFORE = re.compile(r"(?<=[\w)\]\"'%]) +(?=[,;.](?:\s|$)|:(?:\s|$))")
_MARKS = re.compile(r"(?<=\S)\s+(?=\?)|\?(?=\s*\?)")
_LOOSE_ITEM = re.compile(r"(?<=\S)\n\n+(?=- )")

_LINES = re.compile(
    r"^[ \t]*(?:[-•][ \t]*)?(?:key points?|see also\b.*|(?:return|back|go) to (?:the )?top.*|table of contents|"
    r"skip to (?:main )?content.*|share (?:this|on)\b.*|print this page.*|"
    r"related (?:links|topics|articles|pages|information)\b.*|"
    r"(?:home|start) ?[>»›|].*|(?:next|previous) (?:page|article).*|more on:.*|follow us\b.*|"
    r"advert(?:isement|ising)?|read more\b.*|[^\n.]{1,60}[»›]|(?:\w+ ?\| ?)+\w+|(?:this site|we) uses? cookies.*|"
    r"subscribe to our.*|last (?:reviewed|updated|modified):?.*|"
    r"frequently asked questions \(faqs\)|(?:top|close|menu|search))[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_START = r"(?:(?<=^)|(?<=[.!?:)\]] )|(?<=\n))"
_SENTENCES = re.compile(
    _START + r"(?:"
    r"You can use the MedlinePlus Medical Dictionary to look up the definitions for these medical terms|"
    r"If the information is available, the table below includes how often the symptom is seen in people with this "
    r"condition|"
    r"\(?Watch the video[^.)\n]*|To enlarge the video[^.)\n]*|To reduce the video[^.)\n]*|"
    r"Check the list of NCI-supported cancer clinical trials[^.\n]*|"
    r"(?:Copyright|©|\(c\)) ?(?:©|\(c\))? ?\d{4}[^.\n]*|All rights reserved|"
    r"This page (?:was )?last (?:updated|reviewed|modified)[^.\n]*|(?:Last|Page last) (?:updated|reviewed)[^.\n]*|"
    r"(?:Please )?[Cc]lick (?:here|on (?:the|this) link)[^.\n]*|"
    r"[^.!?\n]*\bclick here(?=[.!\n]|$)|"
    r"(?:Subscribe|Sign up) (?:to|for) our[^.\n]*|Follow us on[^.\n]*|"
    r"(?:We use|This (?:web)?site uses) cookies[^.\n]*|Skip to (?:main )?content"
    r")[.!)]*[ \t]*",
    re.MULTILINE,
)


def fix_encoding(text: str) -> str:
    """`text` as it was before it was read in a wrong encoding, and without invisible characters.

    Only what can't be meant is touched: quotes, ligatures and widths stay as they are.
    """
    if text.isascii() and not _SUSPECT.search(text):
        return text
    import ftfy

    return str(ftfy.fix_encoding(text)).translate(_INVISIBLE)


def has_lost_characters(text: str) -> bool:
    """Whether a character was lost for good in a wrong decoding (U+FFFD stands for it)."""
    return "\ufffd" in text


def fix_layout(text: str) -> str:
    """`text` as paragraphs and lists of "- " items, with all of its words in their order.

    Lines that were broken inside a sentence are joined, items that ran together after a colon or a full stop get lines
    of their own, blanks before punctuation and empty lines beyond one go.
    """
    lines = (re.sub(r"[ \t\xa0\u2000-\u200a\u3000]+", " ", line).strip() for line in text.splitlines())
    text = "\n".join(lines).strip()
    text = _LONE_BULLET.sub("- ", text)
    text = _BULLET.sub("- ", text)
    text = _BROKEN.sub(" ", text)
    if len(_INLINE.findall(text)) + text.count("\n- ") >= 2:
        text = _INLINE.sub("\n- ", text)
    if "Approximate number of patients (when available)" in text and text.count(" - ") >= 3:
        text = _TABLE.sub("\n- ", text)
    text = _BEFORE.sub("", text)
    return re.sub(r"\n{3,}", "\n\n", _LOOSE_ITEM.sub("\n", text))


def question_text(question: str) -> str:
    """A question with one question mark, and no blank before it."""
    return _MARKS.sub("", fix_layout(question))


def without_boilerplate(text: str) -> tuple[str, list[str]]:
    """`text` without lines and sentences that belong to a page, and these; as it was where nothing else is there."""
    gone = [match[0].strip() for pattern in (_LINES, _SENTENCES) for match in pattern.finditer(text)]
    if not gone:
        return text, []
    left = re.sub(r"\n{3,}", "\n\n", _SENTENCES.sub("", _LINES.sub("", text))).strip()
    return (left if re.search(r"\w", left) else text), gone


ALL: tuple[str, ...] = tuple(QualityRules.model_fields)
"""In the order in which they are applied."""
MEANING: dict[str, str] = {name: str(info.description) for name, info in QualityRules.model_fields.items()}
SHOWN = 5
"""So many passages of boilerplate are named."""


@dataclass(frozen=True)
class Finding:
    """What a rule found in a row."""

    detail: str
    mended: Example | None = None
    """The row put right, where that can be done."""


Rule = Callable[[Example, QualitySpec], Finding | None]


def apply_rules(example: Example, spec: QualitySpec, as_it_is: bool = False) -> tuple[Example | None, list[Entry]]:
    """The row after all rules that look at one row, None where one dropped it, and what each did.

    With `as_it_is` whatever is found is only flagged.
    """
    entries: list[Entry] = []
    for name, rule in RULES.items():
        action = getattr(spec.rules, name)
        finding = None if action == "off" else rule(example, spec)
        if finding is None:
            continue
        if as_it_is or (action == "mend" and finding.mended is None):
            action = "flag"
        after = {"drop": None, "mend": finding.mended}.get(action, example)
        entries.append(Entry(name, action, example, after, finding.detail))
        if after is None:
            return None, entries
        example = after
    return example, entries


def _encoding(example: Example, _: QualitySpec) -> Finding | None:
    mended = _changed(
        example,
        question=fix_encoding(example.question),
        answer=fix_encoding(example.answer),
        context=tuple(Passage(text=fix_encoding(passage.text), label=passage.label) for passage in example.context),
    )
    texts = [mended.question, mended.answer, *(passage.text for passage in mended.context)]
    if any(map(has_lost_characters, texts)):
        return Finding("characters are lost for good", None if mended == example else mended)
    return None if mended == example else Finding("decoded anew", mended)


def _layout(example: Example, _: QualitySpec) -> Finding | None:
    mended = _changed(example, question=question_text(example.question), answer=fix_layout(example.answer))
    parts = [name for name in ("question", "answer") if getattr(mended, name) != getattr(example, name)]
    return Finding(f"{' and '.join(parts)} laid out anew", mended) if parts else None


def _boilerplate(example: Example, _: QualitySpec) -> Finding | None:
    left, gone = without_boilerplate(example.answer)
    if not gone:
        return None
    mended = _changed(example, answer=left) if left != example.answer else None
    return Finding(" | ".join(gone[:SHOWN]), mended)


def _language(example: Example, spec: QualitySpec) -> Finding | None:
    text = example.answer
    if not text or ("en" in spec.languages and is_english(text)):
        return None
    code = foreign_language(text, spec.languages)
    return Finding(f"in {code}") if code else None


def _not_a_question(example: Example, _: QualitySpec) -> Finding | None:
    return None if is_question(example.question) else Finding("no question mark, and no word that asks")


def _not_medical(example: Example, _: QualitySpec) -> Finding | None:
    return None if is_medical(example) else Finding("no word of health and medicine, or hardly any")


def _too_short(example: Example, spec: QualitySpec) -> Finding | None:
    count = len(example.answer.split())
    return Finding(f"{count} words") if 0 < count < spec.min_answer_words else None


def _too_long(example: Example, spec: QualitySpec) -> Finding | None:
    count = len(example.answer.split())
    return Finding(f"{count} words") if count > spec.max_answer_words else None


def _truncated(example: Example, _: QualitySpec) -> Finding | None:
    shown = is_truncated(example.answer) if example.answer else ""
    return Finding(shown) if shown else None


def _off_topic(example: Example, _: QualitySpec) -> Finding | None:
    return Finding("no word of what is asked about is in the answer") if is_off_topic(example) else None


def _changed(example: Example, **changes: object) -> Example:
    return example.model_copy(update=changes)


RULES: dict[str, Rule] = {
    "encoding": _encoding,
    "layout": _layout,
    "boilerplate": _boilerplate,
    "language": _language,
    "not_a_question": _not_a_question,
    "not_medical": _not_medical,
    "too_short": _too_short,
    "too_long": _too_long,
    "truncated": _truncated,
    "off_topic": _off_topic,
}
"""The rules of `data.quality.rules` that need one row only; those that compare rows are in duplicates.py."""
