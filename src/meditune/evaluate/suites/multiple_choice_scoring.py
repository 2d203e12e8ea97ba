"""Scoring of public tests by likelihood, with the prompts of lm-evaluation-harness if the harness has the task.

The prompts are those of lm-evaluation-harness 0.4.13 (https://github.com/EleutherAI/lm-evaluation-harness): `medqa`,
`medmcqa`, `mmlu` (letters) and `mmlu_continuation` (full options), `pubmedqa`. A test runs the harness's own tasks and
compares every item. For scores that the harness lacks, the most similar of these prompts is used:

- Full options of MedQA and MedMCQA: the prompt of `mmlu_continuation`, without its first sentence.
- BioASQ: the prompt of `pubmedqa`, with the snippets as the abstract and the choices yes and no.
- MedHallu: the model's own prompt format. The true and the hallucinated answer are compared as claims about the
  abstract, by the logit of yes minus that of no; and by their perplexity as answers to the question.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from meditune.data.example import CHOICES, EXAM_SUBJECT, LABEL, Example
from meditune.data.preference_pairs import Pair
from meditune.evaluate import likelihood
from meditune.evaluate.suites.suite_readers import CORRECT, LETTERS
from meditune.models.load import LoadedModel
from meditune.prompts import Encoder


def letters_prompt(example: Example) -> str:
    """Return the prompt after which the letters A to D are scored."""
    options = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, example.meta[CHOICES], strict=False))
    if example.source == "mmlu-medical":
        subject = _subject(example)
        about = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        return f"{about}{example.question.strip()}\n{options}Answer:"
    choices = "Choices:\n" if example.source == "medmcqa" else ""
    return f"Question: {example.question}\n{choices}{options}Answer:"


def options_prompt(example: Example) -> str:
    """Return the prompt after which the full options are scored; the prompt doesn't contain the options."""
    is_mmlu = example.source == "mmlu-medical"
    about = f"The following are questions (with answers) about {_subject(example)}.\n\n" if is_mmlu else ""
    return f"{about}Question: {example.question.strip()}\nAnswer:"


def _subject(example: Example) -> str:
    return str(example.meta[EXAM_SUBJECT][0]).replace("_", " ")


def score_suite(
    loaded: LoadedModel, encoder: Encoder, kind: str, items: Sequence[Example], batch_tokens: int | None, label: str
) -> Iterable[dict[str, Any]]:
    """Return the rows of a suite's kind (evaluate/predictions.py); log-likelihoods are in nats."""
    if kind == "suite_medhallu":
        return _pairs(loaded, encoder, items, batch_tokens, label)
    if kind in ("suite_pubmedqa", "suite_bioasq_yesno"):
        return _words(loaded, items, batch_tokens, label)
    return _letters_and_options(loaded, items, batch_tokens, label)


def _words(
    loaded: LoadedModel, items: Sequence[Example], batch_tokens: int | None, label: str
) -> Iterator[dict[str, Any]]:
    asked = [likelihood.asked_text(loaded, item.id, likelihood.prompt_text(item), item.meta[CHOICES]) for item in items]
    found = likelihood.choice_likelihoods(loaded, asked, batch_tokens, label)
    for item, words in zip(items, found, strict=True):
        yield {"id": item.id, "reference": item.meta[CORRECT], "words": words}


def _letters_and_options(
    loaded: LoadedModel, items: Sequence[Example], batch_tokens: int | None, label: str
) -> Iterator[dict[str, Any]]:
    """Yield `letters` and `options`, and in `lengths` the number of characters of each option."""
    letters = [
        likelihood.asked_text(loaded, item.id, letters_prompt(item), LETTERS[: len(item.meta[CHOICES])])
        for item in items
    ]
    options = [likelihood.asked_text(loaded, item.id, options_prompt(item), item.meta[CHOICES]) for item in items]
    by_letter = likelihood.choice_likelihoods(loaded, letters, batch_tokens, f"{label}, letters")
    by_option = likelihood.choice_likelihoods(loaded, options, batch_tokens, f"{label}, options")
    for item, letter, option in zip(items, by_letter, by_option, strict=True):
        row = {"id": item.id, "reference": item.meta[CORRECT], "letters": letter, "options": option}
        yield row | {"lengths": [len(text) for text in item.meta[CHOICES]]}


def _pairs(
    loaded: LoadedModel, encoder: Encoder, items: Sequence[Example], batch_tokens: int | None, label: str
) -> Iterator[dict[str, Any]]:
    """Yield rows with `margins` and `nll` (per token) of both answers; `nll` is None if the question leaves no room."""
    claims, pairs = [], []
    for item in items:
        for number, text in enumerate(item.meta[CHOICES]):
            update = {"id": f"{item.id}/{number}", "question": text, "meta": {LABEL: "supported"}}
            claims.append(item.model_copy(update=update))
        chosen, rejected = item.meta[CHOICES]
        same = {name: getattr(item, name) for name in ("id", "question", "context", "group")}
        pairs.append(Pair(**same, chosen=chosen, rejected=rejected, kind="medhallu"))
    judged = likelihood.score_claims(loaded, encoder, claims, batch_tokens, f"{label}, claims")
    margins = {row["id"]: row["logits"]["supported"] - row["logits"]["refuted"] for row in judged}
    scored = {
        row["id"]: [row[f"{side}_nll"] / row[f"{side}_tokens"] for side in ("chosen", "rejected")]
        for row in likelihood.score_pairs(loaded, pairs, encoder, batch_tokens, f"{label}, answers")
    }
    for item in items:
        both = [margins[f"{item.id}/{number}"] for number in range(2)]
        yield {"id": item.id, "reference": item.meta[CORRECT], "margins": both, "nll": scored.get(item.id)}
