"""What can be told of one row without any other: whether it is a question, about medicine, answered, and to the end."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from meditune.data.example import Example
from meditune.data.near import words
from meditune.faithfulness.words import stem, weight
from meditune.text import sentences

HEALTH = Path(__file__).parent / "health_words.txt"
FEW_HEALTH_WORDS = 0.02
"""A text in which so few words in a hundred are of health and medicine isn't about them."""
LEAST_TO_JUDGE = 8
"""Shorter answers are neither off topic nor in another language by their words: there are too few."""
ENGLISH = 0.12
"""From this share of function words on, a text is English; the least among 18,000 real answers of prose is above."""
SURE = 0.9
"""How sure the language model must be of another language."""

_ASKS = re.compile(
    r"\?|\b(?:who|whom|whose|what|whats|when|where|which|why|how|is|are|was|were|do|does|did|can|could|should|would|"
    r"will|may|might|has|have|need|needs|want|wants|like to|please|pls|help|know|explain|describe|list|tell|give|name|"
    r"define|compare|advise|advice|suggest|recommend|looking for|interested|wonder|wondering|find|information|info|"
    r"symptoms?|treatments?|causes?|questions?)\b",
    re.IGNORECASE,
)
_ENDED = re.compile(r"[.!?…:;][\"'”’)\]*]*$|[)\]\"”]$|(?:https?://|www\.)\S+$|\d$")
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
_OPEN = frozenset(_OPEN_TEXT.split())
_ENGLISH = frozenset(_ENGLISH_TEXT.split())


def asks(question: str) -> bool:
    """Whether a text asks for anything: a question mark, or a word with which people ask."""
    return bool(_ASKS.search(question))


def is_medical(example: Example) -> bool:
    """Whether words of health and medicine stand in the question, or often enough in the context and answer."""
    if any(map(is_health_word, words(example.question))):
        return True
    said = words(" ".join([*(passage.text for passage in example.context), example.answer]))
    return sum(map(is_health_word, said)) > FEW_HEALTH_WORDS * len(said)


@cache
def is_health_word(word: str) -> bool:
    """Whether a word in small letters begins or ends as one of health_words.txt."""
    whole, beginnings, endings = _health()
    return (
        word in whole
        or any(word[:length] in beginnings for length in range(4, len(word) + 1))
        or any(word[-length:] in endings for length in range(3, len(word) - 1))
    )


def breaks_off(answer: str) -> str:
    """What shows that an answer isn't whole (a last word that leads on, an open bracket, no full stop), or ""."""
    last = answer.rstrip().rpartition("\n")[2]
    said = last.split()
    if not said:
        return ""
    if last.endswith(("...", "…")):
        return f'ends with "{said[-1][-10:]}"'
    if said[-1].casefold().strip("\"'(") in _OPEN or last.endswith(",") or re.search(r"\w-$", last):
        return f'ends with "{said[-1]}"'
    if _ENDED.search(last):
        return ""
    if last.count("(") > last.count(")"):
        return "ends inside brackets"
    whole = sentences(answer)
    prose = [each for each in whole[:-1] if len(each.split()) > 3]
    ended = sum(bool(_ENDED.search(each)) for each in prose)
    if not _ITEM.match(last) and len(whole[-1].split()) >= 5 and prose and ended == len(prose):
        return "the last sentence has no end"
    return ""


def is_off_topic(example: Example) -> bool:
    """Whether an answer has no telling word of the question, of what the question is about, or of the context."""
    answer = words(example.answer)
    if len(answer) < LEAST_TO_JUDGE:
        return False
    focus = example.meta.get("focus") or ""
    synonyms = example.meta.get("synonyms") or []
    about = " ".join([example.question, *([focus] if isinstance(focus, str) else map(str, focus)), *map(str, synonyms)])
    sought = {stem(word): weight(word) for word in words(about)}
    told = {stem(word) for word in answer}
    said = sum(value for word, value in sought.items() if word in told)
    return sum(sought.values()) >= 1 and said == 0


def is_english(text: str) -> bool:
    """Whether enough of a text's words are the function words of English."""
    said = words(text)
    return sum(word in _ENGLISH for word in said) >= ENGLISH * len(said)


def language(text: str) -> tuple[str, float]:
    """A text's language as ISO 639-1 code, and how sure that is, from 0 to 1 (py3langid)."""
    code, sure = _identifier().classify(text[:2000])
    return str(code), float(sure)


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
