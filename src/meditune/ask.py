"""One question to one model."""

from __future__ import annotations

from dataclasses import dataclass

from meditune.data.example import Example, Passage
from meditune.errors import DataError
from meditune.prompts import QuestionTooLongError
from meditune.recipe import EvaluateSpec, PromptFormat


@dataclass(frozen=True)
class Answer:
    """What a model says to one question."""

    text: str
    decision: str
    """yes, no or maybe: the likeliest."""
    probabilities: dict[str, float]
    """Of yes, no and maybe, among themselves; not calibrated."""


def ask(model: str, question: str, sources: list[str], max_new_tokens: int | None = None) -> Answer:
    """Answer a question from the given source texts (none: closed book) with the model's own prompt format.

    Raises DataError where there is no question, or it is too long for the model's prompt.
    """
    from meditune.evaluate.generation import generate
    from meditune.evaluate.likelihood import score
    from meditune.evaluate.metrics import probabilities
    from meditune.models.load import load
    from meditune.models.rows import join

    if not question.strip():
        raise DataError("There is no question. Put it in quotes after the model.")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"The question isn't UTF-8 text from character {error.start + 1} on.") from error
    loaded = load(model)
    encoder = loaded.encoder(loaded.form or PromptFormat())
    context = tuple(Passage(text=source) for source in sources)
    asked = Example(id="asked", source="asked", question=question, context=context, decision="yes", group="asked")
    limit = max_new_tokens or EvaluateSpec().max_new_tokens
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
