"""The least that answers a question: the model alone, in the assistant's events."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from meditune.assistant.triage import Triage
from meditune.engines.engine import Engine, GenerationChunk, GenerationRequest


@dataclass
class Told:
    """An event."""

    kind: str
    said: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)["said"]


class Plain:
    """Asks the engine, and tells its pieces."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.asked: list[dict[str, Any]] = []

    def judge(self, question: str, _: Sequence[str] = ()) -> Triage:
        return Triage("answer", question=question)

    def ask(self, question: str, *, cancelled: Callable[[], bool], **options: Any) -> Iterator[Told]:
        self.asked.append(options | {"question": question})
        if "nonsense" in question:
            raise ZeroDivisionError(question)
        yield Told("sources", {"sources": [{"number": 1, "title": "Gout"}]})
        prompt = self.engine.tokenizer(question)["input_ids"]
        came: queue.Queue[GenerationChunk] = queue.Queue()
        job = GenerationRequest(prompt, options["max_new_tokens"] or 8, temperature=1.5, seed=3)
        running = self.engine.start(job, came.put)
        text, tokens = "", 0
        while True:
            if cancelled():
                running.cancel()
            piece = came.get(timeout=10)
            text, tokens = text + piece.text, tokens + len(piece.tokens)
            if piece.text:
                yield Told("text", {"text": piece.text})
            if piece.finish:
                break
        sentences = [{"text": text, "supported": True}, {"text": "", "supported": False}]
        counted = {"prompt": len(prompt), "completion": tokens}
        sources = [{"number": 1, "id": "gout", "title": "Gout", "meaning": 0.7, "restricted": False}]
        answer = {"question": question, "text": text, "sentences": sentences, "sources": sources, "tokens": counted}
        answer |= {"decision": "yes", "confidence": 0.8, "outcome": "answered", "timings": {}, "style": "plain"}
        yield Told("answer", answer | {"reading_grade": None})
