"""The assistant: safety, search, writing, citing, safety again; told event by event.

question -> triage -> search -> pack -> engine, sentence by sentence -> judged by the passages -> shown, or not
               \\-> answered at once or declined, without any model
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from meditune import __version__
from meditune.answering import CONTEXT_TOKENS, PASSAGES, Answerer, Writer, judged
from meditune.data.example import DECISIONS, Example, Passage
from meditune.engines.engine import Engine, Job, Piece, Running
from meditune.errors import DataError, ModelError
from meditune.prompts import Encoder, QuestionTooLongError, prompt_text
from meditune.recipe import EvaluateSpec, PromptFormat, Style
from meditune.retrieve.cited import CitedAnswer
from meditune.retrieve.index import Index
from meditune.retrieve.styles import chooser
from meditune.serve.asking import Asking
from meditune.serve.deciding import Correction, asks_yes_or_no, decide
from meditune.serve.events import Decision, Event, Notice, Sources
from meditune.serve.judging import Judging
from meditune.serve.safety.emergencies import numbers
from meditune.serve.safety.triage import Classifier, Triage, triage
from meditune.serve.tracing import span

POLL_S = 0.05
"""So often a writing job is asked whether anyone still listens"""
REPEATS = 3
"""Sentences said before that end an answer"""
FROM_MEMORY = (
    "This answer comes from the model's memory alone: no sources were searched, so none of it can be checked here."
)
NO_ANSWER = "The model wrote nothing that can be shown."


@dataclass(frozen=True)
class AssistantSettings:
    """What an assistant is given once."""

    country: str = ""
    """ISO 3166, for the numbers to call; empty: words that hold everywhere"""
    numbers: Mapping[str, str] = field(default_factory=dict)
    """`emergency`, `poison`, `crisis` in place of the country's"""
    passages: int = PASSAGES
    context_tokens: int = CONTEXT_TOKENS
    max_new_tokens: int = EvaluateSpec().max_new_tokens
    nearest: float | None = None
    """See `answering.Answerer`"""
    correction: Correction | None = None
    """Of yes, no and maybe, fitted on dev"""
    elsewhere: str = ""
    """Who gets to see the passages, where the engine isn't on this machine: restricted ones are refused then"""
    decides: bool = True
    """Whether questions that ask for yes or no get one, where there are passages"""


class Assistant:
    """A model with its engine, and an index if there is one; it answers any number of questions at once."""

    def __init__(
        self,
        engine: Engine,
        index: Index | None = None,
        settings: AssistantSettings | None = None,
        *,
        form: PromptFormat | None = None,
        versions: Mapping[str, str] | None = None,
        classifier: Classifier | None = None,
    ) -> None:
        """`form` is the prompt format that the model was tuned with; without `classifier`, triage has rules alone.

        Raises ModelError where the model has no room for passages and an answer, DataError at an unknown country.
        """
        self.engine, self.settings, self.form = (
            engine,
            settings or AssistantSettings(),
            form or PromptFormat(quoted=True),
        )
        self._numbers = numbers(self.settings.country, self.settings.numbers)
        self._classifier = classifier
        self._encoder = Encoder(engine.tokenizer, self.form)
        self._styles: tuple[Style, ...] = ("expert", "plain") if self.form.plain_cue else ("expert",)
        room = min(self.settings.context_tokens, engine.context_tokens - self.settings.max_new_tokens)
        if room < 64:
            raise ModelError(
                f"The model reads {engine.context_tokens} tokens, which leaves {room} for question and passages beside "
                f"an answer of {self.settings.max_new_tokens}."
            )
        special = tuple(engine.tokenizer.all_special_tokens)
        self._writer = Writer(self.form, self._count, self._write, room, special, elsewhere=self.settings.elsewhere)
        self._answerer = Answerer(index, self._writer, self.settings.nearest) if index else None
        self.index = index
        content = index.manifest.content if index else ""
        self.versions = {"meditune": __version__, "engine": engine.name, "index": content, **(versions or {})}

    def ask(
        self,
        question: str,
        *,
        style: Style = "plain",
        k: int | None = None,
        sources: Sequence[str] | None = None,
        history: Sequence[tuple[str, str]] = (),
        max_new_tokens: int | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        found: Triage | None = None,
    ) -> Iterator[Event]:
        """Events, the last of which is the answer. `history` are earlier questions with their answers, oldest first;
        `found` is what `judge` says of the question, if that is known.

        Nothing is shown that wasn't judged. An answer may be taken back at its end, where too little of it was borne
        out: `outcome` is abstained then. Raises DataError where the question is empty or too long.
        """
        if not question.strip():
            raise DataError("There is no question.")
        asking = Asking(question, style)
        found = found or self.judge(question, [asked for asked, _ in history])
        asking.safety = {"action": found.action, "kind": found.kind}
        if found.action in ("urgent", "decline"):
            yield from asking.at_once(found)
        else:
            yield from self._answered(asking, found, found.question, k, sources, max_new_tokens, cancelled)
        yield asking.answer(self.versions)

    def judge(self, question: str, before: Sequence[str] = ()) -> Triage:
        """What is done with a message; `before` are earlier ones of the same person, oldest first."""
        with span("triage") as made:
            found = triage(question, self._numbers, before, self._classifier)
            made.set_attribute("meditune.action", found.action)
            return found

    def _answered(
        self,
        asking: Asking,
        found: Triage,
        question: str,
        k: int | None,
        sources: Sequence[str] | None,
        max_new_tokens: int | None,
        cancelled: Callable[[], bool],
    ) -> Iterator[Event]:
        for text in found.remarks:
            yield asking.noted(Notice("remark", text))
        with span("retrieve") as made:
            begun = self._begun(question, asking.style, k, sources)
            made.set_attribute("meditune.passages", len(begun.packed) if begun else 0)
        asking.searched(begun)
        if begun:
            yield Sources(asking.sources)
        else:
            yield asking.noted(Notice("remark", FROM_MEMORY))
        if found.action == "bound":
            yield from asking.bounded(found)
        if begun and begun.refusal:
            yield asking.refuse(begun.refusal)
            return
        texts = [each.shown for each in begun.packed] if begun else []
        if begun and found.action == "answer" and self.settings.decides and asks_yes_or_no(question):
            asking.decision = self._decided(question, texts)
        limit = min(max_new_tokens or self.settings.max_new_tokens, self.engine.context_tokens - self._writer.room)
        judging = Judging(begun, found.no_amounts)
        prompt = self._prompt(prompt_text(self.form, question, _context(texts), "answer", asking.style))
        asking.asked(len(prompt))
        for piece in self._pieces(prompt, limit, cancelled):
            asking.count(piece)
            for sentence in judging.add(piece.text):
                yield from asking.said(sentence)
            if judging.repeats >= REPEATS:
                break
        for sentence in judging.rest():
            yield from asking.said(sentence)
        with span("check") as made:
            refusal = judged(begun, judging.text).refusal if begun else ""
            made.set_attribute("meditune.refused", bool(refusal))
        if refusal or not any(each.shown for each in asking.sentences):
            yield asking.refuse(refusal or NO_ANSWER)

    def _begun(self, question: str, style: Style, k: int | None, sources: Sequence[str] | None) -> CitedAnswer | None:
        if self._answerer:
            return self._answerer.begun(question, k or self.settings.passages, sources, chooser(style))
        if self._writer.count(question, ()) >= self._writer.room:
            raise DataError(f"The question is too long: it must fit into {self._writer.room} tokens. Shorten it.")
        return None

    def _decided(self, question: str, texts: Sequence[str]) -> Decision | None:
        """By the first of the texts alone: with more, decisions are worse (docs/experiments.md) and take longer."""
        words: dict[str, list[int]] = {name: self._encoder.tokenize(f" {name}") for name in DECISIONS}
        asked = Example(id="asked", source="asked", question=question, context=_context(texts[:1]), group="asked")
        try:
            return decide(self.engine, self._encoder.prompt(asked, "decision").prompt, words, self.settings.correction)
        except (ModelError, QuestionTooLongError):
            return None  # an engine without likelihoods, say: the answer stands without a decision

    def _pieces(self, prompt: Sequence[int], limit: int, cancelled: Callable[[], bool]) -> Iterator[Piece]:
        came: queue.Queue[Piece] = queue.Queue()
        with span("generate") as made:
            made.set_attribute("meditune.prompt_tokens", len(prompt))
            yield from self._delivered(self.engine.start(Job(prompt, limit), came.put), came, cancelled)

    @staticmethod
    def _delivered(running: Running, came: queue.Queue[Piece], cancelled: Callable[[], bool]) -> Iterator[Piece]:
        try:
            while True:
                try:
                    piece = came.get(timeout=POLL_S)
                except queue.Empty:
                    if cancelled():
                        return
                    continue
                if piece.error is not None:
                    raise piece.error
                yield piece
                if piece.finish is not None or cancelled():
                    return
        finally:
            running.cancel()

    def _write(self, question: str, texts: Sequence[str]) -> str:
        prompt = self._prompt(prompt_text(self.form, question, _context(texts), "answer"))
        pieces = self._pieces(prompt, self.settings.max_new_tokens, lambda: False)
        return "".join(piece.text for piece in pieces)

    def _prompt(self, text: str) -> list[int]:
        ids: list[int] = self.engine.tokenizer(text, split_special_tokens=True)["input_ids"]
        while ids and ids[-1] == self.engine.tokenizer.eos_token_id:
            ids = ids[:-1]
        return ids

    def _count(self, question: str, texts: Sequence[str]) -> int:
        """In the style that takes more."""
        context = _context(texts)
        return max(
            len(self._prompt(prompt_text(self.form, question, context, "answer", style))) for style in self._styles
        )


def _context(texts: Sequence[str]) -> tuple[Passage, ...]:
    return tuple(Passage(text=text) for text in texts)
