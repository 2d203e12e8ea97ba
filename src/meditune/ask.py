"""One question to one model."""

from __future__ import annotations

from dataclasses import dataclass

from meditune.data.example import Example, Passage
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
    """Answer a question from the given source texts (none: closed book) with the model's own prompt format."""
    from meditune.evaluate.generation import generate
    from meditune.evaluate.likelihood import score
    from meditune.evaluate.metrics import probabilities
    from meditune.models.load import load
    from meditune.models.rows import join

    loaded = load(model)
    encoder = loaded.encoder(loaded.form or PromptFormat())
    context = tuple(Passage(text=source) for source in sources)
    asked = Example(id="asked", source="asked", question=question, context=context, decision="yes", group="asked")
    limit = max_new_tokens or EvaluateSpec().max_new_tokens
    text = generate(loaded, [encoder.prompt(asked, "answer")], limit, "Answering")["asked"]
    row = join([encoder.supervised(asked, "decision")])
    likelihoods = probabilities(score(loaded, [row], len(row), "Deciding", encoder.label_ids()).decisions["asked"])
    return Answer(text, max(likelihoods, key=lambda label: likelihoods[label]), likelihoods)
