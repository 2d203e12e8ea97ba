r"""The assistant, which answers a question as a stream of events.

question -> triage -> search -> pack -> engine -> each sentence checked against the passages -> shown or withheld
               \-> urgent help or a refusal, without any model
"""

from __future__ import annotations

import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from meditune import __version__
from meditune.assistant import triage as message_triage
from meditune.assistant.answer_filter import REASONS, withheld
from meditune.assistant.cited_answers import CONTEXT_TOKENS, PASSAGES, Answerer, Writer, checked_answer
from meditune.assistant.emergencies import emergency_numbers
from meditune.assistant.events import (
    Answer,
    Citation,
    Decision,
    Event,
    Notice,
    Outcome,
    Sentence,
    Source,
    Sources,
    Text,
)
from meditune.assistant.triage import Classifier, Triage, triage
from meditune.config.data_options import PromptFormat, Style
from meditune.config.recipe import EvaluateSpec
from meditune.data.example import DECISIONS, Example, Passage
from meditune.engines.engine import Engine, GenerationChunk, GenerationRequest, RunningGeneration
from meditune.errors import DataError, MedituneError, ModelError
from meditune.evaluate.metrics.confidence import probabilities
from meditune.evidence.detector import placed
from meditune.files import read_jsonl
from meditune.observability import LOGGER, span
from meditune.prompts import LIMITS_LINE, Encoder, QuestionTooLongError, prompt_text
from meditune.retrieve.citations import CitedAnswer, Citer, is_stated_in
from meditune.retrieve.context_packing import PackedPassage, chooser, grade
from meditune.retrieve.index import Index
from meditune.retrieve.index import read as read_manifest
from meditune.retrieve.storage import index_storage
from meditune.retrieve.vector_search import DEFAULT, INT8


@dataclass
class AnswerInProgress:
    """The state of one question: its events so far, from which the final answer is made."""

    question: str
    style: Style
    begun: float = field(default_factory=time.monotonic)
    safety: dict[str, str] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    notices: list[Notice] = field(default_factory=list)
    sentences: list[Sentence] = field(default_factory=list)
    decision: Decision | None = None
    outcome: Outcome = "answered"
    refused: str = ""
    tokens: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "completion": 0})
    timings: dict[str, float] = field(default_factory=dict)
    _lead: str = ""
    _shown: list[str] = field(default_factory=list)

    def at_once(self, found: Triage) -> Iterator[Event]:
        """Yield the events of an answer that needs no model: urgent help, or a refusal."""
        urgent = found.action == "urgent"
        self.outcome = "escalated" if urgent else "declined"
        self.refused = "" if urgent else found.text
        yield self.noted(Notice("urgent" if urgent else "refusal", found.text, found.title))
        yield self._text(found.text)

    def noted(self, notice: Notice) -> Notice:
        """Record a notice, and return it."""
        self.notices.append(notice)
        return notice

    def searched(self, begun: CitedAnswer | None) -> None:
        """Record the passages that were found."""
        self._lap("search")
        if begun is None:
            return
        self.sources = tuple(_source(number, packed) for number, packed in enumerate(begun.packed, start=1))
        self.notices += [Notice("remark", text) for text in begun.remarks]

    def asked(self, prompt_tokens: int) -> None:
        """Record that the model was given a prompt of this length."""
        self.tokens["prompt"] += prompt_tokens

    def count(self, piece: GenerationChunk) -> None:
        """Count the tokens of the model's next chunk."""
        if piece.text:
            self._lap("first_token")
        self.tokens["completion"] += len(piece.tokens)
        if piece.cached:
            self.tokens["cached"] = self.tokens.get("cached", 0) + piece.cached

    def said(self, sentence: Sentence) -> Iterator[Event]:
        """Record a sentence, and yield its event and, if it may be shown, its text."""
        self.sentences.append(sentence)
        yield sentence
        if sentence.shown:
            self._lap("first_sentence")
            yield self._text((" " if self._shown and not self._shown[-1].endswith("\n") else "") + sentence.text)

    def bounded(self, found: Triage) -> Iterator[Event]:
        """Yield the events before a bounded answer, such as one about a dose."""
        yield self.noted(Notice("limit", found.text, found.title))
        self._lead = f"{found.text}\n\n"
        yield self._text(self._lead)

    def refuse(self, why: str) -> Notice:
        """Withdraw the answer for this reason, and return the notice. Pages show the sources, if any, instead."""
        self.outcome, self.refused, self.decision = "abstained", why, None
        self._shown = [self._lead, why]
        return self.noted(Notice("refusal", why, "No answer from these sources" if self.sources else "No answer"))

    def answer(self, versions: Mapping[str, str]) -> Answer:
        """Return the complete answer."""
        text = "".join(self._shown)
        judged = [each for each in self.sentences if not each.text.endswith("?")]
        share = sum(each.supported for each in judged) / len(judged) if judged and self.sources else None
        sure = max(self.decision.probabilities.values()) if self.decision else share
        self.timings["total"] = round(time.monotonic() - self.begun, 4)
        return Answer(
            self.question,
            text,
            self.outcome,
            self.refused,
            self.style,
            tuple(self.sentences),
            self.sources,
            tuple(self.notices),
            self.decision,
            None if sure is None or self.refused else round(sure, 4),
            round(grade(text.removeprefix(self._lead)), 1) if self.outcome == "answered" else None,
            LIMITS_LINE,
            self.safety,
            dict(versions),
            self.tokens,
            self.timings,
        )

    def _text(self, text: str) -> Text:
        self._shown.append(text)
        return Text(text)

    def _lap(self, name: str) -> None:
        self.timings.setdefault(name, round(time.monotonic() - self.begun, 4))


def _source(number: int, packed: PackedPassage) -> Source:
    passage = packed.hit.passage
    return Source(
        number,
        passage.id,
        packed.title or passage.document,
        passage.section,
        # The address of the operator's own document is a path on this machine, which users must not see.
        passage.url if passage.url.startswith(("https://", "http://")) else "",
        passage.date,
        passage.licence,
        passage.source,
        packed.text,
        packed.hit.meaning,
        passage.restricted,
    )


LEAST = 0.5
"""The minimum probability of a decision"""
_ASKS = re.compile(
    r"^(?:(?:so|and|but|please|hi|hello|ok)\W+)*(?:is|are|was|were|does|do|did|can|could|should|will|would|has|have|may|might)"
    r"(?:n['’]t)?\s",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Correction:
    """The calibration of a model's decisions (evaluate/decision_calibration.py): logits / temperature + bias."""

    temperature: float = 1.0
    bias: Mapping[str, float] = field(default_factory=dict)


def asks_yes_or_no(question: str) -> bool:
    """Return whether the last sentence of a message is a yes/no question."""
    asked = re.split(r"(?<=[.!?])\s+", question.strip())[-1]
    return bool(_ASKS.match(asked)) and " or " not in asked.lower()


def decide(
    engine: Engine, prompt: Sequence[int], labels: Mapping[str, Sequence[int]], correction: Correction | None = None
) -> Decision:
    """Return the most likely of yes, no and maybe after a prompt that ends in the decision's cue.

    `labels` are the words' tokens. Raises ModelError if the engine returns no log-probabilities.
    """
    scored = engine.score(prompt, [labels[name] for name in DECISIONS])
    logits: dict[str, float] = {
        name: sum((each.logprob for each in tokens), 0.0) for name, tokens in zip(DECISIONS, scored, strict=True)
    }
    if correction:
        logits = {name: each / correction.temperature + correction.bias.get(name, 0.0) for name, each in logits.items()}
    found = probabilities(logits)
    best = max(found, key=lambda name: found[name])
    return Decision(best if found[best] >= LEAST else None, found, correction is not None)


class SentenceChecker:
    """The check of a model's answer, sentence by sentence, while it is generated."""

    def __init__(self, begun: CitedAnswer | None, no_amounts: bool) -> None:
        """Start an answer. `begun` holds the passages, if there is an index; `no_amounts` withholds doses."""
        self.text = ""
        self.repeats = 0
        """The number of sentences that the answer had already"""
        self._citer = Citer(begun.packed) if begun else None
        self._no_amounts = no_amounts
        self._taken = 0
        self._said: set[str] = set()

    def add(self, piece: str) -> Iterator[Sentence]:
        """Add the next piece of text, and yield the sentences that it completes."""
        self.text += piece
        finished = [text for _, text in placed(self.text)][:-1]
        for text in finished[self._taken :]:
            self._taken += 1
            if text.endswith("?"):
                continue
            if text in self._said:
                self.repeats += 1
                continue
            yield self._judged(text)

    def rest(self) -> Iterator[Sentence]:
        """Yield the remaining sentences at the end of the answer, without an incomplete last one."""
        for text in is_stated_in(self.text)[0]:
            if text not in self._said:
                yield self._judged(text)

    def _judged(self, text: str) -> Sentence:
        self._said.add(text)
        if self._citer is None:
            why = withheld(text, supported=False, searched=False, no_amounts=self._no_amounts)
            return Sentence(text, (), False, why is None, REASONS[why] if why else "")
        with span("check") as made:
            support = self._citer.judge(text)
            supported = bool(support.places)
            made.set_attribute("meditune.supported", supported)
        why = withheld(text, supported, searched=True, no_amounts=self._no_amounts)
        citations = tuple(
            Citation(place + 1, quote) for place, quote in zip(support.places, support.words, strict=True)
        )
        return Sentence(text, citations, supported, why is None, REASONS[why] if why else "", round(support.score, 4))


POLL_S = 0.05
"""How often a running generation checks whether it was cancelled, in seconds"""
REPEATS = 3
"""The number of repeated sentences that ends an answer"""
FROM_MEMORY = (
    "This answer comes from the model's memory alone: no sources were searched, so none of it can be checked here."
)
NO_ANSWER = "The model wrote nothing that can be shown."


@dataclass(frozen=True)
class AssistantSettings:
    """The settings of an assistant."""

    country: str = ""
    """The ISO 3166 code of the country whose emergency numbers are given; empty: texts that hold everywhere"""
    numbers: Mapping[str, str] = field(default_factory=dict)
    """Own numbers instead of the country's, by `emergency`, `poison` and `crisis`"""
    passages: int = PASSAGES
    context_tokens: int = CONTEXT_TOKENS
    max_new_tokens: int = EvaluateSpec().max_new_tokens
    nearest: float | None = None
    """The minimum cosine similarity of the nearest passage (see `cited_answers.Answerer`)"""
    correction: Correction | None = None
    """The calibration of decisions, fitted on the development split"""
    elsewhere: str = ""
    """The third party that runs the engine and gets the passages; restricted passages aren't sent to it"""
    decides: bool = True
    """Decide yes/no questions, if there are passages"""


class Assistant:
    """An assistant with an engine and an optional index, which can answer any number of questions at once."""

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
        """Prepare an assistant. `form` is the model's prompt format; without `classifier`, triage has only its rules.

        Raises ModelError if the model has no room for passages and an answer, and DataError if the country is unknown.
        """
        self.engine, self.settings, self.form = (
            engine,
            settings or AssistantSettings(),
            form or PromptFormat(quoted=True),
        )
        self._numbers = emergency_numbers(self.settings.country, self.settings.numbers)
        self._classifier = classifier
        self._encoder = Encoder(engine.tokenizer, self.form)
        self._styles: tuple[Style, ...] = ("expert", "plain") if self.form.plain_cue else ("expert",)
        room = min(self.settings.context_tokens, engine.context_tokens - self.settings.max_new_tokens)
        if room < 64:
            raise ModelError(
                f"The model reads {engine.context_tokens} tokens. With an answer of {self.settings.max_new_tokens} "
                f"tokens, only {room} are left for question and passages; at least 64 are required."
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
        """Yield events, the last of which is the answer.

        `history` holds earlier questions with their answers, oldest first; `found` is the result of `judge`, if already
        known. Only sentences that passed the checks are shown. If too few sentences are supported at the end, the
        answer is withdrawn, and its `outcome` is abstained. Raises DataError if the question is empty or too long.
        """
        if not question.strip():
            raise DataError("There is no question.")
        asking = AnswerInProgress(question, style)
        found = found or self.judge(question, [asked for asked, _ in history])
        asking.safety = {"action": found.action, "kind": found.kind}
        if found.action in ("urgent", "decline"):
            yield from asking.at_once(found)
        else:
            yield from self._answered(asking, found, found.question, k, sources, max_new_tokens, cancelled)
        yield asking.answer(self.versions)

    def judge(self, question: str, before: Sequence[str] = ()) -> Triage:
        """Return how to handle a message; `before` holds earlier messages of the same person, oldest first."""
        with span("triage") as made:
            found = triage(question, self._numbers, before, self._classifier)
            made.set_attribute("meditune.action", found.action)
            return found

    def _answered(
        self,
        asking: AnswerInProgress,
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
        judging = SentenceChecker(begun, found.no_amounts)
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
            refusal = checked_answer(begun, judging.text).refusal if begun else ""
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
        """Return the decision, based on the first text: more texts make it worse and slower (docs/experiments)."""
        words: dict[str, list[int]] = {name: self._encoder.tokenize(f" {name}") for name in DECISIONS}
        asked = Example(id="asked", source="asked", question=question, context=_context(texts[:1]), group="asked")
        try:
            return decide(self.engine, self._encoder.prompt(asked, "decision").prompt, words, self.settings.correction)
        except (ModelError, QuestionTooLongError):
            return None  # for example, an engine without log-probabilities: the answer has no decision

    def _pieces(self, prompt: Sequence[int], limit: int, cancelled: Callable[[], bool]) -> Iterator[GenerationChunk]:
        came: queue.Queue[GenerationChunk] = queue.Queue()
        with span("generate") as made:
            made.set_attribute("meditune.prompt_tokens", len(prompt))
            yield from self._delivered(self.engine.start(GenerationRequest(prompt, limit), came.put), came, cancelled)

    @staticmethod
    def _delivered(
        running: RunningGeneration, came: queue.Queue[GenerationChunk], cancelled: Callable[[], bool]
    ) -> Iterator[GenerationChunk]:
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
        """Return the number of tokens of the prompt, in the style with the longer prompt."""
        context = _context(texts)
        return max(
            len(self._prompt(prompt_text(self.form, question, context, "answer", style))) for style in self._styles
        )


def _context(texts: Sequence[str]) -> tuple[Passage, ...]:
    return tuple(Passage(text=text) for text in texts)


def open_assistant(
    engine: Engine,
    model: Path,
    form: PromptFormat | None,
    index: Index | str | None,
    settings: AssistantSettings | None = None,
    versions: Mapping[str, str] | None = None,
) -> Assistant:
    """Return an assistant for an open engine. `model` is the run's folder, if the model is a run.

    Raises DataError if the index can't be opened.
    """
    settings = settings or AssistantSettings()
    # Only a model that was tuned to decide in this format makes decisions.
    settings = replace(
        settings,
        correction=settings.correction or decision_correction_of(model),
        decides=settings.decides and form is not None,
    )
    opened = open_index(index) if isinstance(index, str) else index
    return Assistant(engine, opened, settings, form=form, versions=versions, classifier=triage_classifier())


def open_index(index: str) -> Index:
    """Open an index with its embedding model, or with that model's torch-free form if torch isn't loaded.

    Raises DataError if the index can't be opened.
    """
    return Index.open(index, _light(index))


def _light(index: str) -> str | None:
    """Return the torch-free form of the sentence model if its vectors are comparable with the index's; else None.

    Torch takes seconds to start and half a gigabyte. A process that has loaded it uses the index's own model.
    """
    own = read_manifest(index_storage(index)).embedding["name"]
    return INT8 if own == DEFAULT and "torch" not in sys.modules and find_spec("onnxruntime") else None


def triage_classifier() -> message_triage.TriageClassifier | None:
    """Return triage's classifier; None, with an error in the log, if it can't be loaded."""
    try:
        return message_triage.load()
    except ModelError as error:
        LOGGER.error("triage has no classifier, and its rules alone miss most emergencies", extra={"why": str(error)})
        return None


def decision_correction_of(run: Path) -> Correction | None:
    """Return the calibration of the tuned model's decisions, fitted on the development split; None without one."""
    path = run / "predictions" / "tuned-calibration.jsonl"
    if not path.is_file():
        return None
    (row,) = read_jsonl(path)
    return Correction(float(row["temperature"]), row["bias"])


SECONDS = 30.0


def follow_index(index: Index, told: Callable[[str], None], seconds: float = SECONDS) -> Callable[[], None]:
    """Check periodically for a newer version of the index, so that retracted passages aren't found any more.

    `told` is called with the hash of new content. Return a function that stops the checks. An index that can't be read
    is logged once, and its open version stays in use.
    """
    ended = threading.Event()

    def look() -> None:
        in_trouble = False
        while not ended.wait(seconds):
            try:
                if index.refresh():
                    told(index.manifest.content)
                    LOGGER.info("the index has changed", extra={"index": index.manifest.content})
                in_trouble = False
            except MedituneError as error:
                if not in_trouble:
                    LOGGER.warning("the index's newest version can't be used", extra={"why": str(error)})
                in_trouble = True

    threading.Thread(target=look, name="index", daemon=True).start()
    return ended.set
