r"""Answers that rest on what an index holds, and cite it: for the command line, and for whatever serves answers.

search -> pack -> write -> split into sentences -> cite -> enough of it borne out? -> answer
                                                                                  \-> the passages instead

One question to one model.
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
"""Passages that are looked for"""
CONTEXT_TOKENS = 768
"""Room for the passages with the question"""
SUPPORTED_SHARE = 0.5
"""An answer with fewer of its sentences borne out is kept back."""
NEAREST = {SENTENCE_MODEL.files["model.safetensors"]: 0.55}
"""By the embedding model's space: the cosine that the nearest passage must reach for a question to be answered"""


Asked = tuple[str, Sequence[str]]
"""A question, and the texts that it is to be answered from"""


@dataclass(frozen=True)
class Writer:
    """A model as far as answers need it."""

    form: PromptFormat
    count: Callable[[str, Sequence[str]], int]
    """Tokens of the prompt with this question and these texts"""
    write: Callable[[str, Sequence[str]], str]
    """The model's answer to the question from the texts"""
    room: int
    """The most tokens that a prompt may have"""
    special_tokens: Sequence[str] = ()
    elsewhere: str = ""
    """Who gets to see the passages, where that isn't this machine alone"""
    write_many: Callable[[Sequence[Asked]], list[str]] | None = None
    """The same for several questions at once, where that is faster"""

    def write_all(self, asked: Sequence[Asked]) -> list[str]:
        """The model's answer to each question from its texts."""
        if self.write_many:
            return self.write_many(asked)
        return [self.write(question, texts) for question, texts in asked]


@dataclass(frozen=True)
class Answerer:
    """A model with an index, both open; it answers any number of questions."""

    index: Index
    writer: Writer
    nearest: float | None = None
    """The cosine that the nearest passage must reach; None: what was measured for the index's embedding model"""

    def answer(
        self,
        question: str,
        k: int = PASSAGES,
        sources: Sequence[str] | None = None,
        choose: Chooser | None = None,
    ) -> CitedAnswer:
        """Answer from the best k passages, of these sources alone if any are named; `choose` as in `begun`.

        Raises DataError where the question is empty or too long, or what is searched may not be shown to the model.
        """
        return self.answers([question], k, sources, choose)[0]

    def answers(
        self,
        questions: Sequence[str],
        k: int = PASSAGES,
        sources: Sequence[str] | None = None,
        choose: Chooser | None = None,
    ) -> list[CitedAnswer]:
        """As `answer`, for several questions, which are written at once where the model can."""
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
        """What is known before the model writes: the passages, and whether they are too far from the question.

        `choose` takes k hits out of three times as many, in another order than that of the search.
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
                f"The question is too long: with what it rests on it must fit into {writer.room} tokens. Shorten it."
            )
        return pack(
            found.hits, writer.form, writer.special_tokens, lambda texts: writer.count(question, texts), writer.room
        )

    def _unmeasured(self) -> tuple[str, ...]:
        """What is to be known where no limit fits the index's embedding model."""
        if self.nearest is not None or self.index.embedder.identity.space in NEAREST:
            return ()
        return (
            f"No limit was measured for the embedding model {self.index.embedder.identity.name}: no answer is kept "
            "back because the passages found are far from the question, only where they don't bear it out.",
        )

    def _too_far(self, found: Found, packing: PackedContext) -> str:
        if not packing.passages:
            return "I can't answer this from the index: nothing was found that bears on it. Ask in other words."
        least = NEAREST.get(self.index.embedder.identity.space, -1.0) if self.nearest is None else self.nearest
        # A passage that isn't among the nearest in meaning has no cosine, and is further away than those that are.
        nearest = max((hit.meaning for hit in found.hits if hit.meaning is not None), default=-1.0)
        if nearest < least:
            return (
                "I can't answer this from the index: what was found is too far from the question to rest an answer on. "
                "Ask in other words, or ask someone who knows."
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
    """A model by name, and an index by its place.

    `sources` are those that will be searched: what may not be shown to the model is refused before anything is loaded.
    Raises DataError and ModelError where either can't be had.
    """
    limit = max_new_tokens or EvaluateSpec().max_new_tokens
    opened = Index.open(index)
    remote = find_api_model(model, api or ApiSpec())
    if remote:
        _refuse_restricted(opened, sources, remote.title)
        return Answerer(opened, _there(remote, limit, context_tokens, style))
    if api:
        raise ModelError(f"{model} isn't behind an API, so it has no address or key. Call it api:{model} if it is.")
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
            f"{model} reads {most} tokens, which leaves {room} for question and passages beside an answer of {limit}. "
            "Ask for a shorter one with --max-new-tokens."
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
        print(f"The question and what is found go to {model.title}, which is not this machine.", file=sys.stderr)

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
    """The answer that was begun, with what the model wrote to it: cited, or kept back."""
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
            f"I'd rather not answer: of the {len(cited.sentences)} sentences that the model wrote, the passages found "
            f"bear out {supported or 'none'}."
        )
    return ""


def _refuse_restricted(index: Index, sources: Sequence[str] | None, elsewhere: str) -> None:
    restricted = [name for name in index.manifest.restricted if not sources or name in sources]
    if elsewhere and restricted:
        free = [name for name in index.manifest.sources if name not in index.manifest.restricted]
        others = f" or search without it: --source-filter {free[0]}" if free else ""
        raise DataError(
            f"Passages from {', '.join(restricted)} may not be sent to {elsewhere}: their licence forbids passing them "
            f"to a third party. Use a model that runs on this machine,{others}."
        )


@dataclass(frozen=True)
class Answer:
    """What a model says to one question."""

    text: str
    decision: str | None
    """yes, no or maybe: the likeliest; None where a model behind an API said none of them."""
    probabilities: dict[str, float]
    """Of yes, no and maybe, among themselves; not calibrated. Empty where an API doesn't tell them."""


def ask(
    model: str,
    question: str,
    sources: list[str],
    max_new_tokens: int | None = None,
    api: ApiSpec | None = None,
    style: Style = "plain",
) -> Answer:
    """Answer a question from the given source texts (none: closed book) with the model's own prompt format.

    `style` changes nothing where the format has no cue for plain words.
    `api` says where a model behind an API is, unless its folder does. Raises DataError where there is no question, or
    it is too long for the model's prompt, and ModelError where an API doesn't answer.
    """
    if not question.strip():
        raise DataError("There is no question. Put it in quotes after the model.")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"The question isn't UTF-8 text from character {error.start + 1} on.") from error
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
        raise ModelError(f"{model} isn't behind an API, so it has no address or key. Call it api:{model} if it is.")
    return _ask_here(model, asked, limit)


def _ask_there(model: ApiModel, asked: Example, limit: int) -> Answer:
    from meditune.evaluate.metrics.confidence import probabilities

    form = model.form or PromptFormat()
    if not model.spec.is_local:
        print(f"The question goes to {model.title}, which is not this machine.", file=sys.stderr)
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
            f"The question is too long: with its answer it must fit into {encoder.format.max_tokens} tokens. Shorten "
            "it, or give the long part as a text file with --source."
        ) from error
    text = generate_answers(loaded, [prompt], limit, "Answering")["asked"]
    likelihoods = probabilities(score(loaded, [row], len(row), "Deciding", encoder.label_ids()).decisions["asked"])
    return Answer(text, max(likelihoods, key=lambda label: likelihoods[label]), likelihoods)
