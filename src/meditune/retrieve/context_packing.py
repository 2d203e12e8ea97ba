"""Packing passages into the prompt: choosing them by style, adding their neighbours, and cutting them after a sentence.

Search works best with short passages, but a short passage may need its neighbours: for example, the background of a
study asks a question, and the results answer it. Since an answer reads like the passages it is based on, the style
decides between passages of about the same relevance: the plain style prefers easier ones, the expert style research.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from meditune import readability
from meditune.config.data_options import PromptFormat, Style
from meditune.retrieve.hybrid_search import Hit
from meditune.retrieve.prompt_injection import clean_passage
from meditune.text import counted, sentences


@dataclass(frozen=True)
class PackedPassage:
    """A passage as the model reads it."""

    hit: Hit
    title: str  # Cleaned, like the text
    text: str  # The passage's first sentences, as many as fit
    left_out: int = 0  # Number of sentences that didn't fit

    @property
    def shown(self) -> str:
        """The text in the prompt, under the passage's title, because the subject may be unclear without the title."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True)
class PackedContext:
    """The passages that are in the prompt."""

    passages: tuple[PackedPassage, ...]
    remarks: tuple[str, ...] = ()  # What was left out, and why


def pack(
    hits: Sequence[Hit],
    form: PromptFormat,
    special_tokens: Sequence[str],
    count: Callable[[Sequence[str]], int],
    max_tokens: int,
) -> PackedContext:
    """Return as many of the hits as fit into `max_tokens`, in their order.

    `count` returns the number of tokens in a prompt with the given texts. The first hit that doesn't fit completely is
    cut after a sentence, and later hits are left out.
    """
    packed: list[PackedPassage] = []
    remarks: list[str] = []
    for number, hit in enumerate(hits):
        clean = clean_passage(hit.passage.text, form, special_tokens)
        title = clean_passage(hit.passage.title, form, special_tokens)
        orders = len(clean.orders) + len(title.orders)
        if orders:
            remarks.append(
                f"{hit.passage.id}: {counted(orders, 'sentence')} with instructions to the model "
                f"{'was' if orders == 1 else 'were'} left out."
            )
        if not clean.text:
            continue
        fits = partial(_fits, count, max_tokens, [each.shown for each in packed])
        fitting = _fitting(hit, title.text, sentences(clean.text), fits)
        omitted = len(hits) - number
        parts = []
        if fitting is not None:
            packed.append(fitting)
            omitted -= 1
            if not fitting.left_out:
                continue
            parts.append(f"the last {counted(fitting.left_out, 'sentence')} of {hit.passage.id}")
        if omitted:
            parts.append(counted(omitted, "further passage"))
        remarks.append(f"The prompt has no room for {' and '.join(parts)}.")
        break
    return PackedContext(tuple(packed), tuple(remarks))


def _fits(count: Callable[[Sequence[str]], int], max_tokens: int, before: Sequence[str], text: str) -> bool:
    return count([*before, text]) <= max_tokens


def _fitting(hit: Hit, title: str, texts: Sequence[str], fits: Callable[[str], bool]) -> PackedPassage | None:
    """Return the passage with as many of its first sentences as fit (by bisection); None if none fits."""
    low, high = 0, len(texts)
    if fits(PackedPassage(hit, title, " ".join(texts)).shown):
        low = high
    while low < high:
        middle = (low + high + 1) // 2
        if middle < len(texts) and fits(PackedPassage(hit, title, " ".join(texts[:middle])).shown):
            low = middle
        else:
            high = middle - 1
    return PackedPassage(hit, title, " ".join(texts[:low]), len(texts) - low) if low else None


Part = Mapping[str, Any]  # The columns of a passage
Section = tuple[str, str]  # (heading, text); the heading may be empty


def with_neighbors(passages: Sequence[Part], id: str, words: int) -> list[Part]:
    """Return the passage with the id `id` and its neighbours, up to `words` words in total.

    `passages` are all passages of its document, in order. Following passages are added before preceding ones.
    """
    place = next(number for number, each in enumerate(passages) if each["id"] == id)
    first = last = place
    lengths = [len(str(each["text"]).split()) for each in passages]
    left = words - lengths[place]
    while True:
        if last + 1 < len(passages) and lengths[last + 1] <= left:
            last += 1
            left -= lengths[last]
        elif first and lengths[first - 1] <= left:
            first -= 1
            left -= lengths[first]
        else:
            return list(passages[first : last + 1])


def in_sections(parts: Sequence[Part], form: PromptFormat) -> list[Section]:
    """Return the passages merged into sections by heading, without instructions to the model or prompt cues."""
    sections: list[tuple[str, list[str]]] = []
    for part in parts:
        if not sections or sections[-1][0] != part["section"]:
            sections.append((part["section"], []))
        sections[-1][1].append(part["text"])
    several = len(sections) > 1  # the heading of a single section only repeats the title
    return clean_text([(heading if several else "", " ".join(texts)) for heading, texts in sections], form)


def clean_text(sections: Sequence[Section], form: PromptFormat) -> list[Section]:
    """Return the sections cleaned for a prompt. A heading that looks like a prompt cue becomes "".

    Sections without text after cleaning are dropped.
    """
    cleaned = []
    for heading, text in sections:
        body = clean_passage(text, form).text
        if body:
            is_safe = clean_passage(f"{heading}: {body}", form).text == f"{heading}: {body}"
            cleaned.append((heading if is_safe else "", body))
    return cleaned


MAX_COSINE_GAP = 0.15
"""Maximum difference between the best cosine and that of a passage that is used. Small models write about whatever the
prompt contains, so a passage about another disease leads to an answer that is supported but irrelevant.
"""
READABLE = 9.0  # School grade (Flesch-Kincaid) above which the plain style lowers a passage's weight
PER_GRADE = 0.06  # How much each further grade adds to the divisor of the weight
RESEARCH = ("pubmed",)  # Prefixes of the names of sources for experts
AUDIENCE_BONUS = 0.5  # Addition to the weight for sources that suit the audience


def chosen(style: Style, hits: Sequence[Hit], k: int) -> Sequence[Hit]:
    """Return up to k hits that are about as relevant as the most relevant one; the best for the style come first."""
    nearest = max((hit.meaning for hit in hits if hit.meaning is not None), default=None)
    if nearest is None:
        return hits[:k]
    near = [hit for hit in hits if hit.meaning is not None and hit.meaning >= nearest - MAX_COSINE_GAP]
    worth = {id(hit): _weight(style, hit) / (place + 3) for place, hit in enumerate(near)}
    return sorted(near, key=lambda hit: -worth[id(hit)])[:k]


@lru_cache(maxsize=4096)
def grade(text: str) -> float:
    """Return a text's school grade (Flesch-Kincaid), or 0 if the text has no words."""
    found = readability.counted(text)
    return found.grade if found.words else 0.0


def _weight(style: Style, hit: Hit) -> float:
    research = hit.passage.source.startswith(RESEARCH)
    if style == "expert":
        return 1 + AUDIENCE_BONUS * research
    hard = max(0.0, grade(hit.passage.text) - READABLE)
    return (1 + AUDIENCE_BONUS * (not research)) / (1 + PER_GRADE * hard)
