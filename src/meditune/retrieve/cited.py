"""An answer with its sources, as it is handed on: to the terminal, as JSON, to a server."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from meditune.limits import LIMITS
from meditune.retrieve.citing import Sentence, Source
from meditune.retrieve.packing import Packed

WIDTH = 100
UNSUPPORTED = "[no source]"
"""Stands after a sentence that no passage bears out"""
LINES = 8
"""Of a passage that is handed back in place of an answer"""


@dataclass(frozen=True)
class CitedAnswer:
    """What a model says to a question from what was found, or why it is kept back."""

    question: str
    sentences: tuple[Sentence, ...]
    """What the model wrote; also where it is kept back"""
    sources: tuple[Source, ...]
    """Those that are cited; where the answer is kept back, all that were found"""
    packed: tuple[Packed, ...]
    """The passages that the model read, the best first"""
    refusal: str = ""
    """Why the answer is kept back; empty where it isn't"""
    remarks: tuple[str, ...] = ()

    @property
    def unsupported(self) -> tuple[Sentence, ...]:
        """Sentences that no passage bears out."""
        return tuple(sentence for sentence in self.sentences if not sentence.supported)


def as_dict(answer: CitedAnswer) -> dict[str, Any]:
    """For JSON. An answer that is kept back isn't in it."""
    shown = () if answer.refusal else answer.sentences
    return {
        "question": answer.question,
        "answer": " ".join(map(marked, shown)),
        "refusal": answer.refusal,
        "sentences": [
            {"text": each.text, "citations": list(each.citations), "score": each.score, "supported": each.supported}
            for each in shown
        ],
        "unsupported": [each.text for each in shown if not each.supported],
        "sources": [_source(each) for each in answer.sources],
        "used": [
            {"id": each.hit.passage.id, "score": each.hit.score, "meaning": each.hit.meaning} for each in answer.packed
        ],
        "remarks": list(answer.remarks),
        "limits": LIMITS,
    }


def as_text(answer: CitedAnswer) -> Iterator[str]:
    """For people: the answer with its citations, the sources, remarks, limits."""
    if answer.refusal:
        yield from _wrapped(answer.refusal)
        if answer.sources:
            yield from ("", "The sources found say:")
    else:
        yield from _wrapped(" ".join(map(marked, answer.sentences)))
        if answer.unsupported:
            yield from ("", f"{UNSUPPORTED}: none of the passages found bears this sentence out. Don't rely on it.")
    if answer.sources:
        yield from ("",) if answer.refusal else ("", "Sources")
    for source in answer.sources:
        yield from _shown(source, quoted=bool(answer.refusal))
    yield ""
    for remark in answer.remarks:
        yield from _wrapped(f"Note: {remark}")
    yield from _wrapped(LIMITS)


def marked(sentence: Sentence) -> str:
    """A sentence with what it rests on: "It helps [1][2]." """
    mark = "".join(f"[{number}]" for number in sentence.citations) or UNSUPPORTED
    body = sentence.text.rstrip(".!?")
    return f"{body} {mark}{sentence.text[len(body) :]}"


def _shown(source: Source, quoted: bool) -> Iterator[str]:
    passage = source.passage.hit.passage
    start = f"[{source.number}] "
    title = source.passage.title or passage.document
    yield start + title + (f" [{passage.section}]" if passage.section else "")
    facts = (passage.url, passage.date, passage.licence, "restricted" if passage.restricted else "")
    yield f"    {' · '.join(fact for fact in facts if fact)}"
    if quoted:
        yield from textwrap.wrap(
            source.passage.text,
            WIDTH,
            initial_indent="    ",
            subsequent_indent="    ",
            max_lines=LINES,
            placeholder=" …",
        )


def _source(source: Source) -> dict[str, Any]:
    passage = source.passage.hit.passage
    return {
        "number": source.number,
        "id": passage.id,
        "title": source.passage.title,
        "section": passage.section,
        "url": passage.url,
        "licence": passage.licence,
        "date": passage.date,
        "restricted": passage.restricted,
        "text": source.passage.text,
    }


def _wrapped(text: str) -> Sequence[str]:
    return textwrap.wrap(text, WIDTH)
