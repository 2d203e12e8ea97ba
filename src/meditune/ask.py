"""One question to one model."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from meditune.data.example import STYLE, Example, Passage
from meditune.errors import DataError, ModelError
from meditune.models.api.chat import Chat
from meditune.models.api.model import ApiModel, find
from meditune.prompts import QuestionTooLongError, chat_messages
from meditune.recipe import ApiSpec, EvaluateSpec, PromptFormat, Style


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
    remote = find(model, api or ApiSpec())
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
    from meditune.evaluate.generation import generate
    from meditune.evaluate.likelihood import score
    from meditune.evaluate.metrics.confidence import probabilities
    from meditune.models.load import load
    from meditune.models.rows import join

    loaded = load(model)
    encoder = loaded.encoder(loaded.form or PromptFormat())
    try:
        prompt, row = encoder.prompt(asked, "answer"), join([encoder.supervised(asked, "decision")])
    except QuestionTooLongError as error:
        raise DataError(
            f"The question is too long: with its answer it must fit into {encoder.format.max_tokens} tokens. Shorten "
            "it, or give the long part as a text file with --source."
        ) from error
    text = generate(loaded, [prompt], limit, "Answering")["asked"]
    likelihoods = probabilities(score(loaded, [row], len(row), "Deciding", encoder.label_ids()).decisions["asked"])
    return Answer(text, max(likelihoods, key=lambda label: likelihoods[label]), likelihoods)
