"""The rules that look at one row, by name: each says what it found, and how the row would be put right.

A rule is a pure function of one Example and the recipe's `data.quality`, so rows can be looked at anywhere, in any
order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from meditune.data.example import Example, Passage
from meditune.data.quality import judging, mending
from meditune.data.quality.ledger import Entry
from meditune.recipe import QualityRules, QualitySpec

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


def look(example: Example, spec: QualitySpec, as_it_is: bool = False) -> tuple[Example | None, list[Entry]]:
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
        question=mending.decoded(example.question),
        answer=mending.decoded(example.answer),
        context=tuple(Passage(text=mending.decoded(passage.text), label=passage.label) for passage in example.context),
    )
    texts = [mended.question, mended.answer, *(passage.text for passage in mended.context)]
    if any(map(mending.has_lost_characters, texts)):
        return Finding("characters are lost for good", None if mended == example else mended)
    return None if mended == example else Finding("decoded anew", mended)


def _layout(example: Example, _: QualitySpec) -> Finding | None:
    mended = _changed(example, question=mending.asked(example.question), answer=mending.laid_out(example.answer))
    parts = [name for name in ("question", "answer") if getattr(mended, name) != getattr(example, name)]
    return Finding(f"{' and '.join(parts)} laid out anew", mended) if parts else None


def _boilerplate(example: Example, _: QualitySpec) -> Finding | None:
    left, gone = mending.without_boilerplate(example.answer)
    if not gone:
        return None
    mended = _changed(example, answer=left) if left != example.answer else None
    return Finding(" | ".join(gone[:SHOWN]), mended)


def _language(example: Example, spec: QualitySpec) -> Finding | None:
    text = example.answer
    if not text or ("en" in spec.languages and judging.is_english(text)):
        return None
    code = judging.foreign(text, spec.languages)
    return Finding(f"in {code}") if code else None


def _not_a_question(example: Example, _: QualitySpec) -> Finding | None:
    return None if judging.asks(example.question) else Finding("no question mark, and no word that asks")


def _not_medical(example: Example, _: QualitySpec) -> Finding | None:
    return None if judging.is_medical(example) else Finding("no word of health and medicine, or hardly any")


def _too_short(example: Example, spec: QualitySpec) -> Finding | None:
    count = len(example.answer.split())
    return Finding(f"{count} words") if 0 < count < spec.min_answer_words else None


def _too_long(example: Example, spec: QualitySpec) -> Finding | None:
    count = len(example.answer.split())
    return Finding(f"{count} words") if count > spec.max_answer_words else None


def _truncated(example: Example, _: QualitySpec) -> Finding | None:
    shown = judging.breaks_off(example.answer) if example.answer else ""
    return Finding(shown) if shown else None


def _off_topic(example: Example, _: QualitySpec) -> Finding | None:
    return Finding("no word of what is asked about is in the answer") if judging.is_off_topic(example) else None


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
