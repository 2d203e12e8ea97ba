"""Assistants for tests: one only asks the model, one has an engine that says what a test wants, and a small index."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from meditune.assistant.assistant import Assistant, AssistantSettings
from meditune.assistant.events import Answer, Decision, Event, Sentence, Source, Sources, Text
from meditune.assistant.triage import Triage
from meditune.assistant.writers import EngineWriter
from meditune.config.data_options import PromptFormat
from meditune.engines.engine import Engine, EngineLoad, GenerationChunk, GenerationRequest, TokenLogprob
from meditune.retrieve import collections
from meditune.retrieve.build_index import build
from meditune.retrieve.index import Index
from meditune.retrieve.storage import index_storage
from tests import corpus, tiny


class ModelAlone:
    """Asks the engine, and tells its pieces."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.index = None
        self.settings = AssistantSettings(max_new_tokens=8)
        self.asked: list[dict[str, Any]] = []

    def judge(self, question: str, _: Sequence[str] = ()) -> Triage:
        return Triage("answer", question=question)

    def ask(self, question: str, *, cancelled: Callable[[], bool], **options: Any) -> Iterator[Event]:
        self.asked.append(options | {"question": question})
        if "nonsense" in question:
            raise ZeroDivisionError(question)
        sources = [Source(1, "gout", "Gout", "", "", "", "", "medquad", "Gout is painful.", 0.7)]
        yield Sources(sources)
        prompt = self.engine.tokenizer(question)["input_ids"]
        came: queue.Queue[GenerationChunk] = queue.Queue()
        job = GenerationRequest(prompt, options["max_new_tokens"], temperature=1.5, seed=3)
        running = self.engine.start(job, came.put)
        text, tokens = "", 0
        while True:
            if cancelled():
                running.cancel()
            piece = came.get(timeout=10)
            text, tokens = text + piece.text, tokens + len(piece.tokens)
            if piece.text:
                yield Text(piece.text)
            if piece.finish:
                break
        yield Answer(
            question,
            text,
            "answered",
            "",
            "plain",
            sentences=[Sentence(text, [], True, True), Sentence("", [], False, False)],
            sources=sources,
            decision=Decision("yes", {"yes": 0.8, "no": 0.2}, False),
            confidence=0.8,
            tokens={"prompt": len(prompt), "completion": tokens},
        )


class ScriptedEngine:
    """Continues every prompt with the same text, word by word, from a thread of its own."""

    name = "saying"
    context_tokens = 4096

    def __init__(self, text: str | Callable[[str], str], delay: float = 0.0, likeliest: str = "yes") -> None:
        self.tokenizer = tiny.tokenizer()
        self.text, self.delay, self.likeliest = text, delay, likeliest
        self.prompts: list[str] = []
        self.cancelled = 0

    def start(self, job: GenerationRequest, deliver: Callable[[GenerationChunk], None]) -> ScriptedAnswer:
        prompt = self.tokenizer.decode(job.prompt)
        self.prompts.append(prompt)
        going = ScriptedAnswer(self)
        said = self.text(prompt) if callable(self.text) else self.text
        threading.Thread(target=going.say, args=(said, deliver), daemon=True).start()
        return going

    def score(self, _: Sequence[int], texts: Sequence[Sequence[int]]) -> list[list[TokenLogprob]]:
        labels = [self.tokenizer.decode(text).strip() for text in texts]
        return [
            [TokenLogprob(text[0], -0.1 if label == self.likeliest else -3.0)]
            for label, text in zip(labels, texts, strict=True)
        ]

    def load(self) -> EngineLoad:
        return EngineLoad(0, 0)

    def failure(self) -> None:
        return None

    def close(self) -> None:
        pass


class ScriptedAnswer:
    """What is being said."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine
        self.over = False
        self.ended = False

    def say(self, text: str, deliver: Callable[[GenerationChunk], None]) -> None:
        for number, word in enumerate(text.split(" ")):
            if self.over:
                deliver(GenerationChunk("", finish="cancelled"))
                return
            time.sleep(self.engine.delay)
            deliver(GenerationChunk(word if number == 0 else f" {word}", (number,)))
        self.ended = True
        deliver(GenerationChunk("", finish="stop"))

    def cancel(self) -> None:
        if not self.ended and not self.over:
            self.engine.cancelled += 1
        self.over = True


def index_of(folder: Path, texts: dict[str, str] | None = None, name: str = "clinic") -> Index:
    """An index of these texts, or of the tests' corpus."""
    docs = corpus.folder(folder / "docs", texts or corpus.TEXTS)
    build(index_storage(str(folder / "index")), [collections.documents(f"{name}={docs}")], corpus.TINY)
    return Index.open(str(folder / "index"), corpus.TINY)


def assistant_of(
    engine: Engine,
    index: Index | None = None,
    settings: AssistantSettings | None = None,
    form: PromptFormat | None = None,
    third_party: str = "",
) -> Assistant:
    """An assistant whose writer is this engine; its triage has only the rules."""
    return Assistant(EngineWriter(engine, form or PromptFormat(quoted=True), third_party), index, settings)
