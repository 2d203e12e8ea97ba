"""Retrieved text as data: remove what could be read as a part of the prompt, or as an order to the model.

A passage may come from anywhere. What it says of medicine stays; a sentence that tells the model what to do is removed
(injection.py), and so are text that readers don't see and marks of which prompts are built.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from meditune.recipe import PromptFormat
from meditune.retrieve.injection import goes_with_order, is_order
from meditune.text import sentences

_ROLES = (
    "question answer conclusion user assistant system human instruction instructions response input output context "
    "prompt bot ai model"
)
_ROLE_CUE = re.compile(rf"(?:^|(?<=[\s.!?;,>*#\"'(\[]))(?:{_ROLES.replace(' ', '|')})\s*[:：﹕]", re.IGNORECASE)
_TEMPLATE = re.compile(
    r"<\s*\|[^<>\n]{0,40}\|\s*>|<\s*/?\s*(?:s|bos|eos|pad|unk|system|user|assistant|human|inst|instructions?|"
    r"start_of_turn|end_of_turn|start_header_id|end_header_id|begin_of_text|end_of_text)\s*>|"
    r"\[\s*/?\s*(?:INST|SYSTEM|SYS)\s*\]|<<\s*/?\s*SYS\s*>>",
    re.IGNORECASE,
)
_HEADING = re.compile(r"(?m)^\s*(?:#{2,}|-{3,}|={3,}|`{3,}|>{2,})\s*")
_UNSEEN = re.compile(
    r"<!--.*?(?:-->|$)"
    r"|<(\w+)\b[^<>]*(?:\bhidden\b|display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0|opacity\s*:\s*0"
    r"|color\s*:\s*(?:white|transparent|#fff))[^<>]*>.*?(?:</\1\s*>|$)"
    r"|\[//\]:\s*#\s*\([^)\n]*\)|!\[[^\]\n]*\]\([^)\n]*\)|\{\s*\"(?:role|instruction|system)\"\s*:[^{}]*\}",
    re.IGNORECASE | re.DOTALL | re.MULTILINE,
)
"""What a reader of the page doesn't see: HTML comments, hidden elements, images by address, messages as JSON"""
_ELEMENT = re.compile(
    r"<\s*(system|instructions?|important|prompt|admin|developer|assistant|user|order|command|note|secret|override)\b"
    r"[^<>]*>.*?(?:<\s*/\s*\1\s*>|$)",
    re.IGNORECASE | re.DOTALL,
)
_PART = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
"""Between sentences, also where the next one begins in lowercase"""
_TAG = re.compile(r"</?[a-zA-Z][\w-]*(?:\s[^<>]*)?/?>")


@dataclass(frozen=True)
class Cleaned:
    """A passage's text as it may stand in a prompt and be quoted."""

    text: str
    """Whole sentences; empty where nothing is left."""
    orders: tuple[str, ...] = ()
    """Sentences that told the model what to do; they are left out."""


def cleaned(text: str, form: PromptFormat, special_tokens: Sequence[str] = ()) -> Cleaned:
    """The text without orders to the model, special tokens and chat markup, and with the prompt's cues broken.

    `special_tokens` are those of the model's tokenizer. Lines become one paragraph.
    """
    orders: list[str] = []
    seen = _taken_out(_UNSEEN, _taken_out(_ELEMENT, _visible(text), orders), orders)
    plain = _without_markup(_TAG.sub(" ", seen), special_tokens)
    kept: list[str] = []
    found = [part for line in plain.splitlines() for sentence in sentences(line) for part in _PART.split(sentence)]
    is_one = [is_order(sentence) for sentence in found]
    if any(is_one):
        is_one = _with_neighbours(found, is_one)
    for sentence, told in zip(found, is_one, strict=True):
        (orders if told else kept).append(sentence)
    broken = (_broken(sentence, form) for sentence in kept)
    return Cleaned(" ".join(sentence for sentence in broken if sentence), tuple(orders))


def _taken_out(pattern: re.Pattern[str], text: str, orders: list[str]) -> str:
    """Return the text without what the pattern finds, which is added to `orders`."""

    def noted(match: re.Match[str]) -> str:
        orders.append(" ".join(match[0].split()))
        return " "

    return pattern.sub(noted, text)


def _with_neighbours(found: Sequence[str], is_one: Sequence[bool]) -> list[bool]:
    """Return which sentences are orders or belong to one beside them, as "I am the administrator." may."""
    told = list(is_one)
    for places in (range(1, len(found)), range(len(found) - 2, -1, -1)):
        for place in places:
            beside = place - 1 if places.step > 0 else place + 1
            told[place] = told[place] or (told[beside] and goes_with_order(found[place]))
    return told


def _visible(text: str) -> str:
    """Without characters that nobody sees, which could hide words from the rules."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in {"Cf", "Cc"} else ("\n" if char == "\r" else "")
        for char in text
    )


def _without_markup(text: str, special_tokens: Sequence[str]) -> str:
    marks = [re.escape(token) for token in sorted(special_tokens, key=len, reverse=True) if len(token) > 2]
    every = re.compile("|".join((_TEMPLATE.pattern, *marks)), re.IGNORECASE)
    # Again and again, because what is taken out may leave another one behind ("<|im<|x|>_end|>").
    while (shorter := every.sub(" ", text)) != text:
        text = shorter
    return _HEADING.sub("", text)


def _broken(sentence: str, form: PromptFormat) -> str:
    """The sentence without the colons that make cues of its words."""
    for cue in (form.question_cue, form.answer_cue, form.decision_cue, *([form.plain_cue] if form.plain_cue else [])):
        word = cue.rstrip(":： ")
        sentence = re.sub(rf"{re.escape(word)}\s*[:：﹕]", f"{word} -", sentence, flags=re.IGNORECASE)
        if word == cue.rstrip():  # a cue without a colon: it may not stand there as it is
            sentence = re.sub(re.escape(word), " - ".join(word.split(" ", 1)), sentence)
    return " ".join(_ROLE_CUE.sub(lambda match: f"{match[0].rstrip(':：﹕ ')} -", sentence).split())
