r"""Answers that are based on the passages of an index and cite them, for the command line and the assistant.

search -> pack -> write -> split into sentences -> cite -> enough sentences supported? -> answer
                                                                                      \-> the passages instead

`ask` answers one question with one model, without an index.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from meditune.config.data_options import PromptFormat, Style
from meditune.config.recipe import EvaluateSpec
from meditune.config.training_options import ApiSpec
from meditune.data.example import STYLE, Example, Passage
from meditune.errors import DataError, ModelError
from meditune.models.api_client import ApiModel, Chat, find_api_model
from meditune.models.catalogue import SENTENCE_MODEL
from meditune.prompts import QuestionTooLongError, chat_messages, prompt_text
from meditune.retrieve.citations import CitedAnswer, CitedSentences, Source, cite
from meditune.retrieve.context_packing import Chooser, PackedContext, pack
from meditune.retrieve.hybrid_search import Found
from meditune.retrieve.index import Index

PASSAGES = 5
"""The number of passages to retrieve"""
CONTEXT_TOKENS = 768
"""The maximum number of tokens of passages and question"""
SUPPORTED_SHARE = 0.5
"""The minimum share of supported sentences; an answer with fewer is withheld"""
NEAREST = {SENTENCE_MODEL.files["model.safetensors"]: 0.55}
"""By embedding space: the minimum cosine similarity of the nearest passage for a question to be answered"""


Asked = tuple[str, Sequence[str]]
"""A question, and the texts to answer it from"""


@dataclass(frozen=True)
class Writer:
    """A model's functions and limits for answering questions."""

    form: PromptFormat
    count: Callable[[str, Sequence[str]], int]
    """Returns the number of tokens of the prompt with this question and these texts"""
    write: Callable[[str, Sequence[str]], str]
    """Returns the model's answer to the question, based on the texts"""
    room: int
    """The maximum number of tokens of a prompt"""
    special_tokens: Sequence[str] = ()
    elsewhere: str = ""
    """The third party that gets the passages; empty if the model runs on this machine"""
    write_many: Callable[[Sequence[Asked]], list[str]] | None = None
    """`write` for several questions at once, if the model can do that faster"""

    def write_all(self, asked: Sequence[Asked]) -> list[str]:
        """Return the model's answer to each question, based on its texts."""
        if self.write_many:
            return self.write_many(asked)
        return [self.write(question, texts) for question, texts in asked]


@dataclass(frozen=True)
class Answerer:
    """An open model with an open index, which can answer any number of questions."""

    index: Index
    writer: Writer
    nearest: float | None = None
    """The minimum cosine similarity of the nearest passage; None: the value measured for the embedding model"""

    def answer(
        self,
        question: str,
        k: int = PASSAGES,
        sources: Sequence[str] | None = None,
        choose: Chooser | None = None,
    ) -> CitedAnswer:
        """Return an answer based on the best k passages, only from `sources` if given. See `begun` for `choose`.

        Raises DataError if the question is empty or too long, or if passages must not be shown to the model.
        """
        return self.answers([question], k, sources, choose)[0]

    def answers(
        self,
        questions: Sequence[str],
        k: int = PASSAGES,
        sources: Sequence[str] | None = None,
        choose: Chooser | None = None,
    ) -> list[CitedAnswer]:
        """Return the answers to several questions, generated together if the model supports it. See `answer`."""
        begun = [self.begun(question, k, sources, choose) for question in questions]
        asked = [(each.question, [packed.shown for packed in each.packed]) for each in begun if not each.refusal]
        written = iter(self.writer.write_all(asked))
        return [each if each.refusal else checked_answer(each, next(written)) for each in begun]

    def begun(
        self,
        question: str,
        k: int = PASSAGES,
        sources: Sequence[str] | None = None,
        choose: Chooser | None = None,
    ) -> CitedAnswer:
        """Return the answer before the model writes: the passages, or a refusal if they are too far from the question.

        `choose` selects and orders k of the best 3 * k hits.
        """
        _refuse_restricted(self.index, sources, self.writer.elsewhere)
        searched = self.index.search(question, 3 * k if choose else k, sources=sources)
        found = replace(searched, hits=tuple(choose(searched.hits, k))) if choose else searched
        packing = self._packed(question, found)
        remarks = (*found.remarks, *packing.remarks, *self._unmeasured())
        return CitedAnswer(question, (), _all(packing), packing.passages, self._too_far(searched, packing), remarks)

    def _packed(self, question: str, found: Found) -> PackedContext:
        writer = self.writer
        if writer.count(question, ()) >= writer.room:
            raise DataError(
                f"The question is too long: with its passages, it must fit into {writer.room} tokens. Shorten it."
            )
        return pack(
            found.hits, writer.form, writer.special_tokens, lambda texts: writer.count(question, texts), writer.room
        )

    def _unmeasured(self) -> tuple[str, ...]:
        """Return a remark if no similarity limit was measured for the index's embedding model."""
        if self.nearest is not None or self.index.embedder.identity.space in NEAREST:
            return ()
        return (
            f"No similarity limit was measured for the embedding model {self.index.embedder.identity.name}. Answers "
            "are withheld only if the passages don't support them, not if the passages are far from the question.",
        )

    def _too_far(self, found: Found, packing: PackedContext) -> str:
        if not packing.passages:
            return "I can't answer this from the index: no relevant passages were found. Try asking in other words."
        least = NEAREST.get(self.index.embedder.identity.space, -1.0) if self.nearest is None else self.nearest
        # A passage without a cosine isn't among the nearest in vector search, so it is further away than those.
        nearest = max((hit.meaning for hit in found.hits if hit.meaning is not None), default=-1.0)
        if nearest < least:
            return (
                "I can't answer this from the index: the passages found are too far from the question to base an "
                "answer on. Try asking in other words, or ask an expert."
            )
        return ""


def open_answerer(
    model: str,
    index: str,
    sources: Sequence[str] | None = None,
    max_new_tokens: int | None = None,
    api: ApiSpec | None = None,
    context_tokens: int = CONTEXT_TOKENS,
    style: Style = "plain",
) -> Answerer:
    """Open a model by name and an index by its place, and return an answerer.

    `sources` are the sources to search; if they must not be shown to the model, DataError is raised before anything is
    loaded. Raises DataError or ModelError if index or model is unavailable.
    """
    limit = max_new_tokens or EvaluateSpec().max_new_tokens
    opened = Index.open(index)
    remote = find_api_model(model, api or ApiSpec())
    if remote:
        _refuse_restricted(opened, sources, remote.title)
        return Answerer(opened, _there(remote, limit, context_tokens, style))
    if api:
        raise ModelError(
            f"{model} isn't known as an API model, so --api can't be used. If an API serves it, name it api:{model}."
        )
    return Answerer(opened, _here(model, limit, context_tokens, style))


def _here(model: str, limit: int, context_tokens: int, style: Style) -> Writer:
    from meditune.evaluate.evaluator import generate_answers
    from meditune.models.forward import virtual_tokens
    from meditune.models.load import load, positions

    loaded = load(model)
    most = positions(loaded.model.config) or context_tokens + limit
    room = min(context_tokens, most - limit - virtual_tokens(loaded.model))
    if room < 64:
        raise ModelError(
            f"{model} reads {most} tokens. With an answer of {limit} tokens, only {room} are left for question and "
            "passages. Set a shorter answer with --max-new-tokens."
        )
    form = loaded.form or PromptFormat(quoted=True)
    whole = form.model_copy(update={"max_tokens": room + limit, "answer_tokens": limit})
    encoder = loaded.encoder(whole)

    def count(question: str, texts: Sequence[str]) -> int:
        text = prompt_text(form, question, _context(texts), "answer", style)
        return len(encoder.tokenize(text)) + len(loaded.start_ids())

    def write_many(asked: Sequence[Asked]) -> list[str]:
        examples = [
            _asked(question, texts, style).model_copy(update={"id": str(place)})
            for place, (question, texts) in enumerate(asked)
        ]
        try:
            prompts = [encoder.prompt(example, "answer") for example in examples]
        except QuestionTooLongError as error:
            raise DataError(f"The question is too long for {model}. Shorten it.") from error
        written = generate_answers(loaded, prompts, limit, "Answering")
        return [written[example.id] for example in examples]

    def write(question: str, texts: Sequence[str]) -> str:
        return write_many([(question, texts)])[0]

    special = tuple(loaded.tokenizer.all_special_tokens)
    return Writer(form, count, write, room, special, write_many=write_many)


def _there(model: ApiModel, limit: int, context_tokens: int, style: Style) -> Writer:
    from meditune.models.api_client import Chat, of_chat

    form = model.form or PromptFormat(quoted=True)
    model.key()
    if not model.spec.is_local:
        print(
            f"The question and the passages found are sent to {model.title}, which isn't this machine.", file=sys.stderr
        )

    def messages(question: str, texts: Sequence[str]) -> list[dict[str, str]]:
        return chat_messages(form, _asked(question, texts, style), "answer", model.system)

    def count(question: str, texts: Sequence[str]) -> int:
        return of_chat(messages(question, texts)[1:])

    def write(question: str, texts: Sequence[str]) -> str:
        with model.client() as client:
            return Chat(client, model.name).write(messages(question, texts), limit)

    return Writer(form, count, write, context_tokens, elsewhere=model.title)


def _asked(question: str, texts: Sequence[str], style: Style) -> Example:
    meta = {STYLE: style}
    return Example(id="asked", source="asked", question=question, context=_context(texts), group="asked", meta=meta)


def _context(texts: Sequence[str]) -> tuple[Passage, ...]:
    return tuple(Passage(text=text) for text in texts)


def checked_answer(begun: CitedAnswer, written: str) -> CitedAnswer:
    """Return the answer with the model's text and its citations, or with a refusal if too little is supported."""
    cited = cite(written, begun.packed)
    refusal = _too_weak(cited)
    shown = begun.sources if refusal else cited.sources
    return replace(
        begun,
        sentences=cited.sentences,
        sources=shown,
        refusal=refusal,
        remarks=(*begun.remarks, *cited.remarks),
    )


def _all(packing: PackedContext) -> tuple[Source, ...]:
    return tuple(Source(number, each) for number, each in enumerate(packing.passages, start=1))


def _too_weak(cited: CitedSentences) -> str:
    supported = sum(each.supported for each in cited.sentences)
    if not cited.sentences:
        return "The model wrote no answer."
    if supported < SUPPORTED_SHARE * len(cited.sentences):
        return (
            f"I'd rather not answer: the passages found support {supported or 'none'} of the {len(cited.sentences)} "
            "sentences that the model wrote."
        )
    return ""


def _refuse_restricted(index: Index, sources: Sequence[str] | None, elsewhere: str) -> None:
    restricted = [name for name in index.manifest.restricted if not sources or name in sources]
    if elsewhere and restricted:
        free = [name for name in index.manifest.sources if name not in index.manifest.restricted]
        others = f", or search only other sources: --source-filter {free[0]}" if free else ""
        raise DataError(
            f"Passages from {', '.join(restricted)} can't be sent to {elsewhere}: their licence forbids passing them "
            f"to third parties. Use a model that runs on this machine{others}."
        )


@dataclass(frozen=True)
class Answer:
    """A model's answer to one question."""

    text: str
    decision: str | None
    """The most likely of yes, no and maybe; None if an API model answered with none of them"""
    probabilities: dict[str, float]
    """The probabilities of yes, no and maybe, which sum to 1; not calibrated. Empty if an API returns none"""


def ask(
    model: str,
    question: str,
    sources: list[str],
    max_new_tokens: int | None = None,
    api: ApiSpec | None = None,
    style: Style = "plain",
) -> Answer:
    """Answer a question from the given source texts (none: closed book) in the model's own prompt format.

    `style` has no effect if the format has no cue for plain language. `api` is the address and key of an API model,
    unless its folder holds them. Raises DataError if the question is empty or too long for the model's prompt, and
    ModelError if an API doesn't answer.
    """
    if not question.strip():
        raise DataError("There is no question. Put it in quotes after the model.")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"The question isn't valid UTF-8 text: character {error.start + 1} is invalid.") from error
    context = tuple(Passage(text=source) for source in sources)
    asked = Example(
        id="asked",
        source="asked",
        question=question,
        context=context,
        decision="yes",
        group="asked",
        meta={STYLE: style},
    )
    limit = max_new_tokens or EvaluateSpec().max_new_tokens
    remote = find_api_model(model, api or ApiSpec())
    if remote:
        return _ask_there(remote, asked, limit)
    if api:
        raise ModelError(
            f"{model} isn't known as an API model, so --api can't be used. If an API serves it, name it api:{model}."
        )
    return _ask_here(model, asked, limit)


def _ask_there(model: ApiModel, asked: Example, limit: int) -> Answer:
    from meditune.evaluate.metrics.confidence import probabilities

    form = model.form or PromptFormat()
    if not model.spec.is_local:
        print(f"The question is sent to {model.title}, which isn't this machine.", file=sys.stderr)
    with model.client() as client:
        chat = Chat(client, model.name)
        text = chat.write(chat_messages(form, asked, "answer", model.system), limit)
        decided = chat.decide(chat_messages(form, asked, "decision", model.system))
    return Answer(text, decided.prediction, probabilities(decided.logits) if decided.logits else {})


def _ask_here(model: str, asked: Example, limit: int) -> Answer:
    from meditune.evaluate.evaluator import generate_answers
    from meditune.evaluate.likelihood import score
    from meditune.evaluate.metrics.confidence import probabilities
    from meditune.models.load import load
    from meditune.models.shared_prefix_batch import join

    loaded = load(model)
    encoder = loaded.encoder(loaded.form or PromptFormat())
    try:
        prompt, row = encoder.prompt(asked, "answer"), join([encoder.supervised(asked, "decision")])
    except QuestionTooLongError as error:
        raise DataError(
            f"The question is too long: with its answer, it must fit into {encoder.format.max_tokens} tokens. Shorten "
            "it, or give the long part as a text file with --source."
        ) from error
    text = generate_answers(loaded, [prompt], limit, "Answering")["asked"]
    likelihoods = probabilities(score(loaded, [row], len(row), "Deciding", encoder.label_ids()).decisions["asked"])
    return Answer(text, max(likelihoods, key=lambda label: likelihoods[label]), likelihoods)
