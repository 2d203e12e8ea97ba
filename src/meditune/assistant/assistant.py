r"""The assistant: the life of an answer from the question to the last event.

question -> triage -> search -> pack -> writer -> each sentence checked against the passages -> shown or withheld
               \-> urgent help or a refusal, without any model

`meditune ask --index` prints the last event. A server's `POST /v1/ask` returns the last event, or streams all events.
Every check runs once for each answer. A server runs triage itself, before the engine's queue, and passes the result to
`Assistant.ask`.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from meditune import __version__
from meditune.assistant import triage as message_triage
from meditune.assistant.answer_filter import SentenceChecker
from meditune.assistant.emergencies import emergency_numbers
from meditune.assistant.events import Answer, Decision, Event, Notice, Outcome, Sentence, Source, Sources, Text
from meditune.assistant.triage import Classifier, Triage, triage
from meditune.assistant.writers import ApiWriter, EngineWriter, Writer, find_api, needs_engine
from meditune.config.data_options import Style
from meditune.config.recipe import EvaluateSpec
from meditune.config.training_options import ApiSpec
from meditune.engines.engine import GenerationChunk
from meditune.errors import DataError, MedituneError, ModelError
from meditune.evaluate.metrics.decision import probabilities
from meditune.evidence.support_model import LEXICAL_DETECTOR
from meditune.files import read_jsonl
from meditune.models.catalogue import SENTENCE_MODEL
from meditune.models.sentence_encoder import DEFAULT, INT8
from meditune.observability import LOGGER, span
from meditune.prompts import LIMITS_LINE, load_format
from meditune.retrieve.citations import Judge, Unjudged
from meditune.retrieve.collections import row_named
from meditune.retrieve.context_packing import PackedPassage, chosen, grade, pack
from meditune.retrieve.index import Index
from meditune.retrieve.index import read as read_manifest
from meditune.retrieve.storage import index_storage
from meditune.text import check_utf8, counted

PASSAGES = 5
"""The number of passages to retrieve"""
CONTEXT_TOKENS = 768
"""The maximum number of tokens of the passages and the question together"""
MIN_COSINE = {SENTENCE_MODEL.files["model.safetensors"]: 0.55}
"""Embedding space -> the minimum cosine similarity of the nearest passage; below it, a question isn't answered"""


@dataclass(frozen=True)
class Retrieved:
    """The passages for an answer, or the reason why the question can't be answered from the index."""

    passages: tuple[PackedPassage, ...]
    """The passages that the model reads, the best first"""
    refusal: str = ""
    remarks: tuple[str, ...] = ()


@dataclass
class AnswerInProgress:
    """The state of one question: its events so far, from which the final answer is made."""

    question: str
    style: Style
    started: float = field(default_factory=time.monotonic)
    safety: dict[str, str] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    notices: list[Notice] = field(default_factory=list)
    sentences: list[Sentence] = field(default_factory=list)
    decision: Decision | None = None
    outcome: Outcome = "answered"
    refused: str = ""
    tokens: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "completion": 0})
    timings: dict[str, float] = field(default_factory=dict)
    lead: str = ""
    _shown: list[str] = field(default_factory=list)

    def without_model(self, triaged: Triage) -> Iterator[Event]:
        """Yield the events of an answer that needs no model: urgent help, or a refusal."""
        urgent = triaged.action == "urgent"
        self.outcome = "escalated" if urgent else "declined"
        self.refused = "" if urgent else triaged.text
        yield self.add_notice(Notice("urgent" if urgent else "refusal", triaged.text, triaged.title))
        yield self.add_text(triaged.text)

    def add_notice(self, notice: Notice) -> Notice:
        """Record a notice, and return it."""
        self.notices.append(notice)
        return notice

    def count(self, chunk: GenerationChunk) -> None:
        """Count the tokens of the model's next chunk."""
        if chunk.text:
            self.record_time("first_token")
        self.tokens["completion"] += len(chunk.tokens)
        if chunk.cached:
            self.tokens["cached"] = self.tokens.get("cached", 0) + chunk.cached

    def add_sentence(self, sentence: Sentence) -> Iterator[Event]:
        """Record a sentence, and yield its event and, if it may be shown, its text."""
        self.sentences.append(sentence)
        yield sentence
        if sentence.shown:
            self.record_time("first_sentence")
            yield self.add_text((" " if self._shown and not self._shown[-1].endswith("\n") else "") + sentence.text)

    def refuse(self, reason: str) -> Notice:
        """Withdraw the answer for this reason, and return the notice.

        Meditune's web pages then show the sources, if there are any.
        """
        self.outcome, self.refused, self.decision = "abstained", reason, None
        self._shown = [self.lead, reason]
        return self.add_notice(
            Notice("refusal", reason, "No answer from these sources" if self.sources else "No answer")
        )

    def answer(self, versions: Mapping[str, str]) -> Answer:
        """Return the complete answer."""
        text = "".join(self._shown)
        supported = sum(each.supported for each in self.sentences)
        share = supported / len(self.sentences) if self.sentences and self.sources else None
        confidence = max(self.decision.probabilities.values()) if self.decision else share
        self.timings["total"] = round(time.monotonic() - self.started, 4)
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
            None if confidence is None or self.refused else round(confidence, 4),
            round(grade(text.removeprefix(self.lead)), 1) if self.outcome == "answered" else None,
            LIMITS_LINE,
            self.safety,
            dict(versions),
            self.tokens,
            self.timings,
        )

    def add_text(self, text: str) -> Text:
        """Record text that is shown, and return its event."""
        self._shown.append(text)
        return Text(text)

    def record_time(self, name: str) -> None:
        """Record the seconds until a stage was reached for the first time."""
        self.timings.setdefault(name, round(time.monotonic() - self.started, 4))


def _source(number: int, packed: PackedPassage, on_this_machine: bool) -> Source:
    passage = packed.hit.passage
    # The address of the operator's own document is a path on this machine, which a server's users must not see.
    is_public = passage.url.startswith(("https://", "http://"))
    same = {name: getattr(passage, name) for name in ("id", "date", "licence", "source", "restricted")}
    title, url = packed.title or passage.document, passage.url if is_public or on_this_machine else ""
    section = ", ".join(filter(None, (passage.section, row_named(passage.url))))
    return Source(number, title=title, section=section, url=url, text=packed.text, meaning=packed.hit.meaning, **same)


MIN_PROBABILITY = 0.5
"""The minimum probability of a decision"""
_ASKS = re.compile(
    r"^(?:(?:so|and|but|please|hi|hello|ok)\W+)*(?:is|are|was|were|does|do|did|can|could|should|will|would|has|have|may|might)"
    r"(?:n['’]t)?\s",
    re.IGNORECASE,
)
_ASKS_TO_EXPLAIN = re.compile(
    r"\b(?:can|could|will|would|do|does|did|may|might)(?:n['’]t)? (?:you|i|we|anyone|anybody|someone|somebody)"
    r" (?:please |also |briefly |quickly |just |maybe |possibly )*"
    r"(?:(?:tell|give|show|teach) (?:me|us)|(?:tell|show) (?:what|which|how|why|when|where|who)"
    r"|help (?:me|us) understand|explain|describe|define|list|summari[sz]e|clarify|elaborate|outline|know|ask)\b"
    r"(?!(?: (?:me|us|you|please|here|exactly))*"
    r"(?:,? (?:if|whether|that)|[,:] (?:is|are|was|were|do|does|did|can|will|has|have))\b)",
    re.IGNORECASE,
)
"""A request for an explanation in the form of a yes/no question; "Can you tell me if ..." is a real yes/no question"""


def asks_yes_or_no(question: str) -> bool:
    """Return whether the last sentence of a message is a yes/no question."""
    last = re.split(r"(?<=[.!?])\s+", question.strip())[-1]
    return bool(_ASKS.match(last)) and not _ASKS_TO_EXPLAIN.search(last) and " or " not in last.lower()


def decide(logits: Mapping[str, float], calibration: Mapping[str, Any] | None = None) -> Decision:
    """Return the decision, calibrated if `calibration` is given; its answer is None below MIN_PROBABILITY."""
    if calibration:
        temperature, bias = calibration["temperature"], calibration["bias"]
        logits = {name: each / temperature + bias[name] for name, each in logits.items()}
    found = probabilities(dict(logits))
    best = max(found, key=lambda name: found[name])
    return Decision(best if found[best] >= MIN_PROBABILITY else None, found, calibration is not None)


REPEATS = 3
"""Generation stops when the answer has repeated this many sentences"""
FROM_MEMORY = (
    "This answer comes from the model's memory alone: no sources were searched, so none of it can be checked here."
)
NOTHING_FOUND = "I can't answer this from the index: no relevant passages were found. Try asking in other words."
TOO_FAR = (
    "I can't answer this from the index: the passages found are too far from the question to base an answer on. Try "
    "asking in other words, or ask an expert."
)
UNMEASURED = (
    "No similarity limit was measured for the embedding model {}. Answers are withheld only if the passages don't "
    "support them, not if the passages are far from the question."
)
UNJUDGED: dict[Unjudged, str] = {
    "time": "The judge ran out of time for {} of this answer; there, only words were compared.",
    "failure": "The judge failed for {} of this answer; there, only words were compared.",
}
NO_ANSWER = "The model wrote nothing that can be shown."


@dataclass(frozen=True)
class AssistantSettings:
    """The settings of an assistant."""

    country: str = ""
    """The ISO 3166 code of the country whose emergency numbers are given; empty: texts that apply everywhere"""
    context_tokens: int = CONTEXT_TOKENS
    max_new_tokens: int = EvaluateSpec().max_new_tokens
    nearest: float | None = None
    """The minimum cosine similarity of the nearest passage; None: the value measured for the embedding model"""
    calibration: Mapping[str, Any] | None = None
    """The temperature and bias of decisions, fitted to decisions of the model's run; None: those of the model's run"""
    on_this_machine: bool = False
    """True on the command line, where the user may see file paths"""


class Assistant:
    """An assistant with a writer and an optional index, which can answer any number of questions at once."""

    def __init__(
        self,
        writer: Writer,
        index: Index | None = None,
        settings: AssistantSettings | None = None,
        *,
        versions: Mapping[str, str] | None = None,
        classifier: Classifier | None = None,
        judge: Judge | None = None,
    ) -> None:
        """Prepare an assistant. Without `classifier`, triage has only its rules; without `judge`, the lexical
        detector alone checks whether passages support a sentence.

        Raises ModelError if the model has no room for passages and an answer, and DataError if the country is unknown.
        """
        self.writer, self.index, self.settings = writer, index, settings or AssistantSettings()
        self._numbers = emergency_numbers(self.settings.country)
        self._classifier, self._judge = classifier, judge
        limit = self.settings.max_new_tokens
        self._room = min(self.settings.context_tokens, writer.context_tokens - limit)
        if self._room < 64:
            name, hint = "The model", ""
            if self.settings.on_this_machine:
                name, hint = (versions or {}).get("model", name), " Set a shorter answer with --max-new-tokens."
            raise ModelError(
                f"{name} reads {writer.context_tokens} tokens. With an answer of {limit} tokens, only {self._room} are "
                f"left for the question and passages; at least 64 are required.{hint}"
            )
        content = index.manifest.content if index else ""
        self.versions = {"meditune": __version__, "engine": writer.name, "index": content, **(versions or {})}
        if index and index.cross_encoder:
            self.versions["cross_encoder"] = index.cross_encoder.name
        if judge or index:
            self.versions["judge"] = judge.name if judge else LEXICAL_DETECTOR

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
        triaged: Triage | None = None,
        started: float | None = None,
    ) -> Iterator[Event]:
        """Yield events, the last of which is the answer.

        `history` contains earlier questions and their answers, oldest first; `triaged` is the result of `judge`, if
        already known; `started` is the monotonic time from which `timings` are measured, by default now. Only sentences
        that pass the checks are shown. If too few sentences of the complete answer are supported, the answer is
        withdrawn, and its `outcome` is abstained. Raises DataError if the question is empty, too long or not valid
        UTF-8.
        """
        if not question.strip():
            raise DataError("There is no question.")
        check_utf8(question)
        progress = AnswerInProgress(question, style, started or time.monotonic())
        triaged = triaged or self.judge(question, [earlier for earlier, _ in history])
        progress.safety = {"action": triaged.action, "kind": triaged.kind}
        if triaged.action in ("urgent", "decline"):
            yield from progress.without_model(triaged)
        else:
            yield from self._answer(progress, triaged, k, sources, max_new_tokens, cancelled)
        yield progress.answer(self.versions)

    def judge(self, question: str, before: Sequence[str] = ()) -> Triage:
        """Return how to handle a message; `before` contains the same person's earlier messages, oldest first."""
        with span("triage") as trace_span:
            found = triage(question, self._numbers, before, self._classifier)
            trace_span.set_attribute("meditune.action", found.action)
            return found

    def search(
        self, question: str, k: int = PASSAGES, sources: Sequence[str] | None = None
    ) -> tuple[tuple[Source, ...], tuple[str, ...]]:
        """Return the `k` passages nearest to a question, and remarks.

        The passages are complete, except for instructions to models, which are left out. Raises DataError if there is
        no index, or if a source is unknown.
        """
        if self.index is None:
            raise DataError("There is no index to search.")
        found = self.index.search(question, k, sources=sources)
        packed = pack(found.hits, self.writer.form, self.writer.special_tokens, lambda _: 0, 0)
        return self._sources(packed.passages), (*found.remarks, *packed.remarks)

    def _sources(self, passages: Sequence[PackedPassage]) -> tuple[Source, ...]:
        numbered = enumerate(passages, start=1)
        return tuple(_source(number, each, self.settings.on_this_machine) for number, each in numbered)

    def _answer(
        self,
        progress: AnswerInProgress,
        triaged: Triage,
        k: int | None,
        sources: Sequence[str] | None,
        max_new_tokens: int | None,
        cancelled: Callable[[], bool],
    ) -> Iterator[Event]:
        question, style = triaged.question, progress.style
        for text in triaged.remarks:
            yield progress.add_notice(Notice("remark", text))
        with span("retrieve") as trace_span:
            retrieved = self._retrieve(question, style, k or PASSAGES, sources)
            trace_span.set_attribute("meditune.passages", len(retrieved.passages) if retrieved else 0)
        progress.record_time("search")
        if retrieved is None:
            yield progress.add_notice(Notice("remark", FROM_MEMORY))
        else:
            progress.sources = self._sources(retrieved.passages)
            progress.notices += [Notice("remark", text) for text in retrieved.remarks]
            yield Sources(progress.sources)
        if triaged.action == "bound":
            yield progress.add_notice(Notice("limit", triaged.text, triaged.title))
            progress.lead = f"{triaged.text}\n\n"
            yield progress.add_text(progress.lead)
        if retrieved and retrieved.refusal:
            yield progress.refuse(retrieved.refusal)
            return
        texts = [each.shown for each in retrieved.passages] if retrieved else []
        # Only a model that was tuned to decide in this format makes decisions.
        if retrieved and triaged.action == "answer" and self.writer.tuned and asks_yes_or_no(question):
            logits = self.writer.decide(question, texts)
            progress.decision = decide(logits, self.settings.calibration) if logits else None
        limit = min(max_new_tokens or self.settings.max_new_tokens, self.writer.context_tokens - self._room)
        passages = retrieved.passages if retrieved else None
        checker = SentenceChecker(question, passages, triaged.no_amounts, self._judge)
        prompt_tokens, chunks = self.writer.start(question, texts, style, limit, cancelled)
        progress.tokens["prompt"] += prompt_tokens
        for chunk in chunks:
            progress.count(chunk)
            for sentence in checker.add(chunk.text):
                yield from progress.add_sentence(sentence)
            if checker.repeats >= REPEATS:
                break
        chunks.close()
        for sentence in checker.rest():
            yield from progress.add_sentence(sentence)
        for reason, count in checker.unjudged.items():
            yield progress.add_notice(Notice("remark", UNJUDGED[reason].format(counted(count, "sentence"))))
        refusal = checker.refusal()
        if refusal or not any(each.shown for each in progress.sentences):
            yield progress.refuse(refusal or NO_ANSWER)

    def _retrieve(self, question: str, style: Style, k: int, sources: Sequence[str] | None) -> Retrieved | None:
        """Return the best `k` passages, or why they can't be used; None without an index. `sources` limits the search.

        Raises DataError if the question is too long, or if passages must not be shown to the model.
        """
        writer = self.writer
        if self.index is None:
            self._refuse_long(question, "it")
            return None
        refuse_restricted(self.index, sources, writer.third_party)
        searched = self.index.search(question, 3 * k, sources=sources)
        if len(searched.hits) < k:
            # There are few documents, such as a single guideline, so several passages of one document are needed.
            searched = self.index.search(question, 3 * k, sources=sources, per_document=None)
        self._refuse_long(question, "with its passages, it")
        count = partial(writer.count, question)
        packing = pack(chosen(style, searched.hits, k), writer.form, writer.special_tokens, count, self._room)
        remarks = [*searched.remarks, *packing.remarks]
        encoder, least = self.index.encoder.identity, self.settings.nearest
        if least is None:
            least = MIN_COSINE.get(encoder.space, -1.0)
            if encoder.space not in MIN_COSINE:
                remarks.append(UNMEASURED.format(encoder.name))
        nearest = -1.0 if searched.nearest is None else searched.nearest
        refusal = NOTHING_FOUND if not packing.passages else TOO_FAR if nearest < least else ""
        return Retrieved(packing.passages, refusal, tuple(remarks))

    def _refuse_long(self, question: str, subject: str) -> None:
        if self.writer.count(question, ()) >= self._room:
            raise DataError(f"The question is too long: {subject} must fit into {self._room} tokens. Shorten it.")


def refuse_restricted(index: Index, sources: Sequence[str] | None, third_party: str) -> None:
    """Raise DataError if a third party would get passages whose licence forbids passing them on."""
    restricted = [name for name in index.manifest.restricted if not sources or name in sources]
    if third_party and restricted:
        free = [name for name in index.manifest.sources if name not in index.manifest.restricted]
        others = f", or search only other sources: --source-filter {free[0]}" if free else ""
        raise DataError(
            f"Passages from {', '.join(restricted)} can't be sent to {third_party}: their licence forbids passing "
            f"them to third parties. Use a model that runs on this machine{others}."
        )


def open_assistant(
    writer: Writer,
    model: Path,
    index: Index | str | None,
    settings: AssistantSettings | None = None,
    versions: Mapping[str, str] | None = None,
    judge: Judge | None = None,
) -> Assistant:
    """Return an assistant for an open model. If `model` is a run's folder, the run's calibration is used.

    Raises DataError if the index can't be opened.
    """
    settings, path = settings or AssistantSettings(), model / "predictions" / "tuned-calibration.jsonl"
    if settings.calibration is None and path.is_file():
        (calibration,) = read_jsonl(path)
        settings = replace(settings, calibration=calibration)
    opened = open_index(index) if isinstance(index, str) else index
    return Assistant(writer, opened, settings, versions=versions, classifier=triage_classifier(), judge=judge)


def triage_first(question: str, style: Style) -> tuple[Triage, Answer | None]:
    """Return how to handle a message, and the answer if it needs no model (otherwise None).

    So urgent help doesn't wait until a model is loaded. Raises DataError if the message is empty or not valid UTF-8.
    """
    if not question.strip():
        raise DataError("There is no question.")
    check_utf8(question)
    found = triage(question, emergency_numbers(), (), triage_classifier())
    if found.action not in ("urgent", "decline"):
        return found, None
    progress = AnswerInProgress(question, style, safety={"action": found.action, "kind": found.kind})
    list(progress.without_model(found))
    return found, progress.answer({"meditune": __version__})


def load_assistant(
    model: str,
    index: Index | str | None,
    sources: Sequence[str] | None = None,
    settings: AssistantSettings | None = None,
    api: ApiSpec | None = None,
    judge: str | None = None,
    judge_threshold: float | None = None,
) -> Assistant:
    """Return an assistant with the model of this name and, unless `index` is None, with this index.

    `judge` and `judge_threshold` are those of `open_judge`. Raises DataError, before anything is loaded, if the
    `sources` to search must not be shown to the model. Raises DataError or ModelError if index, model or judge is
    unavailable.
    """
    from meditune.engines.evidence_judge import open_judge

    opened = Index.open(index) if isinstance(index, str) else index
    remote = find_api(model, api)
    if remote and opened:
        refuse_restricted(opened, sources, remote.title)
    reader = open_judge(judge, judge_threshold) if judge else None
    settings = replace(settings or AssistantSettings(), on_this_machine=True)
    versions = {"model": model}
    if remote:
        return open_assistant(ApiWriter(remote), Path(model), opened, settings, versions, reader)
    place = Path(model).expanduser()
    if needs_engine(model):
        from meditune.engines.open_engine import open_engine

        return open_assistant(
            EngineWriter(open_engine(model), load_format(place)), place, opened, settings, versions, reader
        )
    from meditune.engines.transformers_engine import TransformersEngine
    from meditune.models.load import load

    loaded = load(model)
    writer = EngineWriter(TransformersEngine(loaded), loaded.form)
    return open_assistant(writer, place, opened, settings, versions, reader)


def open_index(index: str, cross_encoder: str | None = None) -> Index:
    """Open an index with its embedding model; use the default model's 8-bit ONNX version if torch isn't loaded.

    Loading torch takes seconds and half a gigabyte of memory. Raises DataError if the index can't be opened.
    """
    own = read_manifest(index_storage(index)).embedding["name"]
    light = own == DEFAULT and not cross_encoder and "torch" not in sys.modules and find_spec("onnxruntime")
    return Index.open(index, INT8 if light else None, cross_encoder)


def triage_classifier() -> message_triage.TriageClassifier | None:
    """Return triage's classifier; None, with an error in the log, if it can't be loaded."""
    try:
        return message_triage.load()
    except ModelError as error:
        LOGGER.error("triage has no classifier, and its rules alone miss most emergencies", extra={"why": str(error)})
        return None


def follow_index(index: Index, changed: Callable[[str], None], seconds: float = 30.0) -> Callable[[], None]:
    """Check periodically for a newer version of the index, so that retracted passages aren't found any more.

    `changed` is called with the content hash of each newer version. Return a function that stops the checks. If the
    newest version can't be read, this is logged once, and the open version stays in use.
    """
    ended = threading.Event()

    def look() -> None:
        in_trouble = False
        while not ended.wait(seconds):
            try:
                if index.refresh():
                    changed(index.manifest.content)
                    LOGGER.info("the index has changed", extra={"index": index.manifest.content})
                in_trouble = False
            except MedituneError as error:
                if not in_trouble:
                    LOGGER.warning("the index's newest version can't be used", extra={"why": str(error)})
                in_trouble = True

    threading.Thread(target=look, name="index", daemon=True).start()
    return ended.set
