"""Retrieved text as data: what in it could be read as a part of the prompt, or as an order to the model, is taken out.

A passage may come from anywhere. What it says of medicine stays; a sentence that tells the model what to do goes, and
so do signs by which prompts are built.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from meditune.recipe import PromptFormat
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
_TOLD = r"(?:instructions?|prompts?|commands?|directives?|system messages?|guardrails?)"
_READER = r"(?:assistant|chat ?bot|language model|AI(?: model| system)?|LLM|GPT\w*)"
_ORDERS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b(?:ignor|disregard|forget|overrid|bypass|discard)\w*\b[^.!?]{{0,40}}\b{_TOLD}\b",
        r"\b(?:ignore|disregard|forget|discard)\b[^.!?]{0,30}\b(?:previous|above|prior|preceding|earlier|other)\b"
        r"[^.!?]{0,20}\b(?:text|context|messages?|passages?|sources?|rules?|documents?|everything)\b",
        r"\b(?:ignore|disregard|forget) (?:everything|all|anything)\b[^.!?]{0,15}\b(?:above|before|you)\b",
        rf"\b(?:new|updated|real|actual|hidden) {_TOLD}\s*[:：]",
        r"\b(?:system|developer|hidden) (?:prompt|message)s?\b",
        rf"\b(?:you are|you're|act as|pretend to be|behave as|as)\s+(?:now\s+)?(?:an?|the)\s+(?:\w+\s+){{0,3}}"
        rf"{_READER}\b",
        rf"\b(?:the |dear |attention,? |hey |note to (?:the )?){_READER}s?\b[^.!?]{{0,20}}"
        r"\b(?:must|should|shall|has to|please|always|never)\b",
        r"^(?:please |now |instead,? |always |just |only )*(?:say|write|output|print|repeat|respond|reply|answer)"
        r" (?:that|only|exactly|instead|with|to the (?:user|question|reader)|the (?:user|question|following|words?)|"
        r"[\"“'])",
        r"\b(?:respond|reply|answer) (?:only )?with (?:only |exactly |just )?(?:the words?|[\"“'])",
        r"\b(?:do not|don't|never) (?:mention|reveal|cite|quote|disclose)\b[^.!?]{0,40}"
        r"\b(?:sources?|passages?|instructions?|prompt|user|limits|warnings?|this message)\b",
        r"\bfrom now on,? (?:you|answer|respond|reply|say)\b",
        r"\btell (?:the|every) (?:user|reader|questioner)s?\b",
    )
)


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
    plain = _without_markup(_visible(text), special_tokens)
    kept: list[str] = []
    orders: list[str] = []
    for line in plain.splitlines():
        for sentence in sentences(line):
            (orders if is_order(sentence) else kept).append(sentence)
    broken = (_broken(sentence, form) for sentence in kept)
    return Cleaned(" ".join(sentence for sentence in broken if sentence), tuple(orders))


def is_order(sentence: str) -> bool:
    """Whether a sentence tells a model what to do, instead of something about health."""
    return any(pattern.search(sentence) for pattern in _ORDERS)


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
