"""Models that write answers: in an engine, or behind an API. `ask_model` asks one model without safety checks.

The assistant gives a writer the question and the passages, and gets the answer in chunks.
"""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from meditune.config.data_options import PromptFormat, Style
from meditune.config.recipe import EvaluateSpec
from meditune.config.training_options import ApiSpec
from meditune.data.example import DECISIONS, STYLE, Example, Passage
from meditune.engines.engine import Engine, GenerationChunk, GenerationRequest, check_request
from meditune.engines.exported_model import is_exported, read_exported_model
from meditune.errors import DataError, ModelError
from meditune.models.api_client import ApiError, ApiModel, Chat, find_api_model, of_chat
from meditune.observability import span
from meditune.prompts import Encoder, QuestionTooLongError, chat_messages, load_format, opening_decision
from meditune.text import check_utf8

Chunks = Generator[GenerationChunk, None, None]
POLL_S = 0.05
"""The interval, in seconds, at which a running generation checks whether it was cancelled"""


class Writer(Protocol):
    """A model that answers questions from texts."""

    name: str
    form: PromptFormat
    tuned: bool
    """True if the model was tuned in this format, so that its decisions can be used"""
    context_tokens: int
    """The maximum number of tokens of a prompt and its answer"""
    special_tokens: Sequence[str]
    third_party: str
    """The third party that gets the texts; empty if the model runs on this machine"""

    def count(self, question: str, texts: Sequence[str]) -> int:
        """Return the number of tokens of the prompt, for the style (plain or expert) with the longer prompt."""

    def start(
        self, question: str, texts: Sequence[str], style: Style, max_new_tokens: int, cancelled: Callable[[], bool]
    ) -> tuple[int, Chunks]:
        """Return the number of tokens of the prompt, and the chunks of the answer."""

    def decide(self, question: str, texts: Sequence[str]) -> Mapping[str, float] | None:
        """Return the log-likelihoods of yes, no and maybe; None if the model doesn't return them."""

    def close(self) -> None:
        """Free the model."""


class EngineWriter:
    """A model in an engine."""

    def __init__(self, engine: Engine, form: PromptFormat | None = None, third_party: str = "") -> None:
        """Prepare a writer. `form` is the format that the model was tuned with; None if it wasn't tuned."""
        self.engine, self.third_party = engine, third_party
        self.form, self.tuned = form or PromptFormat(quoted=True), form is not None
        self.name, self.context_tokens = engine.name, engine.context_tokens
        self.special_tokens: Sequence[str] = tuple(engine.tokenizer.all_special_tokens)
        self._encoder = Encoder(engine.tokenizer, self.form)
        self._styles: tuple[Style, ...] = ("expert", "plain") if self.form.plain_cue else ("expert",)

    def count(self, question: str, texts: Sequence[str]) -> int:
        """See Writer."""
        return max(len(self._prompt(question, texts, style)) for style in self._styles)

    def start(
        self, question: str, texts: Sequence[str], style: Style, max_new_tokens: int, cancelled: Callable[[], bool]
    ) -> tuple[int, Chunks]:
        """See Writer. The generation is cancelled if the caller stops reading, or once `cancelled` returns True."""
        prompt = self._prompt(question, texts, style)
        return len(prompt), self._generate(GenerationRequest(prompt, max_new_tokens), cancelled)

    def decide(self, question: str, texts: Sequence[str]) -> Mapping[str, float] | None:
        """See Writer. Only the first text is used: more texts make decisions worse and slower (docs/experiments)."""
        labels = [self._encoder.answer_ids(name) for name in DECISIONS]
        try:
            prompt = self._encoder.prompt(_example(question, texts[:1]), "decision").prompt
            scored = self.engine.score(prompt, labels)
        except (ModelError, QuestionTooLongError):
            return None  # for example, an engine without log-probabilities
        sums = [sum((each.logprob for each in tokens), 0.0) for tokens in scored]
        return dict(zip(DECISIONS, sums, strict=True))

    def close(self) -> None:
        """See Writer."""
        self.engine.close()

    def _prompt(self, question: str, texts: Sequence[str], style: Style) -> list[int]:
        return self._encoder.prompt_ids(_example(question, texts, style), "answer")

    def _generate(self, request: GenerationRequest, cancelled: Callable[[], bool]) -> Chunks:
        chunks: queue.Queue[GenerationChunk] = queue.Queue()
        with span("generate") as trace_span:
            trace_span.set_attribute("meditune.prompt_tokens", len(request.prompt))
            running = self.engine.start(request, chunks.put)
            try:
                while True:
                    try:
                        chunk = chunks.get(timeout=POLL_S)
                    except queue.Empty:
                        if cancelled():
                            return
                        continue
                    if chunk.error is not None:
                        raise chunk.error
                    yield chunk
                    if chunk.finish is not None or cancelled():
                        return
            finally:
                running.cancel()


class ApiWriter:
    """A chat model behind an API."""

    context_tokens = sys.maxsize
    special_tokens: Sequence[str] = ()

    def __init__(self, model: ApiModel) -> None:
        """Prepare a writer, and print to stderr where questions are sent. Raises ModelError if there is no API key."""
        model.key()
        self.form, self.tuned = model.form or PromptFormat(quoted=True), model.form is not None
        self.name, self.third_party, self._model = model.name, model.title, model
        _say_where(model, "The question and the passages found are")

    def count(self, question: str, texts: Sequence[str]) -> int:
        """See Writer. The number is an estimate that doesn't include the system message."""
        return of_chat(self._messages(question, texts, "plain")[1:])

    def start(
        self, question: str, texts: Sequence[str], style: Style, max_new_tokens: int, cancelled: Callable[[], bool]
    ) -> tuple[int, Chunks]:
        """See Writer. The answer arrives in one chunk, so `cancelled` has no effect."""
        del cancelled
        messages = self._messages(question, texts, style)
        return of_chat(messages), self._generate(messages, max_new_tokens)

    def decide(self, question: str, texts: Sequence[str]) -> Mapping[str, float] | None:
        """See Writer."""
        messages = chat_messages(self.form, _example(question, texts), "decision", self._model.system)
        try:
            with self._model.client() as client:
                return Chat(client, self._model.name).decide(messages).logits
        except ApiError:
            return None

    def close(self) -> None:
        """See Writer."""

    def _messages(self, question: str, texts: Sequence[str], style: Style) -> list[dict[str, str]]:
        return chat_messages(self.form, _example(question, texts, style), "answer", self._model.system)

    def _generate(self, messages: list[dict[str, str]], max_new_tokens: int) -> Chunks:
        with self._model.client() as client:
            yield GenerationChunk(Chat(client, self._model.name).write(messages, max_new_tokens), finish="stop")


def _say_where(model: ApiModel, what: str) -> None:
    if not model.spec.is_local:
        print(f"{what} sent to {model.title}, which isn't this machine.", file=sys.stderr)


def _example(question: str, texts: Sequence[str], style: Style = "plain") -> Example:
    context, meta = tuple(Passage(text=text) for text in texts), {STYLE: style}
    return Example(id="asked", source="asked", question=question, context=context, group="asked", meta=meta)


def find_api(model: str, api: ApiSpec | None) -> ApiModel | None:
    """Return the API model of this name; None if the model runs on this machine.

    Raises ModelError if `api` is given, but the model isn't an API model.
    """
    found = find_api_model(model, api or ApiSpec())
    if api and not found:
        raise ModelError(
            f"{model} isn't known as an API model, so --api can't be used. If an API serves it, name it api:{model}."
        )
    return found


@dataclass(frozen=True)
class ModelAnswer:
    """A model's answer to one question."""

    text: str
    decision: str | None
    """The most likely of yes, no and maybe; None if an API model answered with none of them"""
    probabilities: dict[str, float]
    """The probabilities of yes, no and maybe, which sum to 1 and aren't calibrated; empty if an API returns none"""

    @property
    def contradictory(self) -> bool:
        """Return whether the text begins with yes, no or maybe, but `decision`, computed separately, is another one."""
        return bool(self.decision) and opening_decision(self.text) not in (None, self.decision)


def ask_model(
    model: str,
    question: str,
    sources: list[str],
    max_new_tokens: int | None = None,
    api: ApiSpec | None = None,
    style: Style = "plain",
) -> ModelAnswer:
    """Return a model's own answer from `sources` (closed book if empty), with the same prompts as an evaluation.

    There is no triage, and the answer isn't checked. `style` has no effect if the format has no cue for plain language.
    `api` is the address and key of an API model, unless its folder contains them. Raises DataError if the question is
    empty, not valid UTF-8 or too long for the model's prompt, and ModelError if prompt and answer exceed the model's
    context, or if an API doesn't answer.
    """
    if not question.strip():
        raise DataError("There is no question. Put the question in quotes after the model.")
    check_utf8(question)
    example = _example(question, sources, style).model_copy(update={"decision": "yes"})
    limit = max_new_tokens or EvaluateSpec().max_new_tokens
    if remote := find_api(model, api):
        return _ask_api(remote, example, limit)
    try:
        return (_ask_exported if needs_engine(model) else _ask_local)(model, example, limit)
    except QuestionTooLongError as error:
        raise DataError(
            "The question is too long: with its answer, it must fit into the tokens of the model's prompt "
            "(max_tokens in its prompt.json). Shorten it, or pass the long part as a text file with --source."
        ) from error


def needs_engine(model: str) -> bool:
    """Return whether a model is the folder of an export that only its own engine can open."""
    return is_exported(model) and read_exported_model(Path(model).expanduser()).engine != "transformers"


def _ask_api(model: ApiModel, example: Example, limit: int) -> ModelAnswer:
    from meditune.evaluate.metrics.decision import probabilities

    form = model.form or PromptFormat()
    _say_where(model, "The question is")
    with model.client() as client:
        chat = Chat(client, model.name)
        text = chat.write(chat_messages(form, example, "answer", model.system), limit)
        decided = chat.decide(chat_messages(form, example, "decision", model.system))
    return ModelAnswer(text, decided.prediction, probabilities(decided.logits) if decided.logits else {})


def _ask_local(model: str, example: Example, limit: int) -> ModelAnswer:
    from meditune.evaluate.likelihood import score
    from meditune.evaluate.metrics.decision import probabilities
    from meditune.evaluate.weights_backend import generate_answers
    from meditune.models.forward import virtual_tokens
    from meditune.models.load import load, positions
    from meditune.models.shared_prefix_batch import join

    loaded = load(model)
    encoder = loaded.encoder(loaded.form or PromptFormat())
    prompt, row = encoder.prompt(example, "answer"), join([encoder.supervised(example, "decision")])
    if most := positions(loaded.model.config):
        check_request(GenerationRequest(prompt.prompt, limit), most - virtual_tokens(loaded.model))
    text = generate_answers(loaded, [prompt], limit, "Answering")["asked"]
    likelihoods = probabilities(score(loaded, [row], len(row), "Deciding", encoder.label_ids()).decisions["asked"])
    return ModelAnswer(text, max(likelihoods, key=lambda label: likelihoods[label]), likelihoods)


def _ask_exported(model: str, example: Example, limit: int) -> ModelAnswer:
    from meditune.engines.open_engine import open_engine
    from meditune.evaluate.backends import EngineBackend
    from meditune.evaluate.metrics.decision import probabilities

    texts: list[str] = []
    rows: list[dict[str, Any]] = []
    with closing(open_engine(model)) as engine:
        backend = EngineBackend(engine, load_format(Path(model).expanduser()) or PromptFormat())
        backend.write([example], "answer", limit, "Answering", lambda _id, text, _left_out: texts.append(text))
        backend.score([example], [], "Deciding", lambda _task, row: rows.append(row))
    return ModelAnswer(texts[0], rows[0]["prediction"], probabilities(rows[0]["logits"]))
