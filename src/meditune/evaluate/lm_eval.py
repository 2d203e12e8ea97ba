"""Decisions as lm-evaluation-harness makes them: the prompt, the choices and the scoring of its task `pubmedqa`.

After the whole abstract, the question and "Answer:", each of " yes", " no" and " maybe" is scored by its
log-likelihood; the likeliest is what the model says. So figures can be set beside those that others publish. The task
is that of lm-evaluation-harness 0.4.13 (https://github.com/EleutherAI/lm-evaluation-harness, lm_eval/tasks/pubmedqa).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from meditune.data.example import DECISIONS, Example
from meditune.errors import DataError, ModelError
from meditune.evaluate.likelihood import log_likelihoods, refuse_not_finite
from meditune.models.context import positions
from meditune.models.forward import label_logits
from meditune.models.inference import inference, tokens_at_once
from meditune.models.load import LoadedModel
from meditune.models.rows import Row, by_length, join
from meditune.progress import Progress
from meditune.prompts import Encoded

UNLIMITED = 1_000_000_000
"""A tokenizer's `model_max_length` from here on means that it doesn't know."""
USUAL_LENGTH = 2048
"""What the harness takes where neither model nor tokenizer says how long a text may be."""


def prompt_text(example: Example) -> str:
    """The text that the choices follow."""
    abstract = "\n".join(passage.text for passage in example.context)
    return f"Abstract: {abstract}\nQuestion: {example.question}\nAnswer:"


class Asked(NamedTuple):
    """One question as a row for a forward pass."""

    row: Row
    """One branch for each choice; a single one where every choice is a single token after the same text"""
    choices: tuple[int, ...]
    """The choices' tokens in that single branch; else empty"""


def asked(loaded: LoadedModel, example: Example) -> Asked:
    """The question in the model's tokens, cut on the left to what the model can read.

    Raises DataError where the example has no decision, and ModelError where a choice adds no token.
    """
    if not example.decision:
        raise DataError(f"{example.id} has no decision to be measured on.")
    text = prompt_text(example)
    before = _tokens(loaded.tokenizer, text)
    longest = _max_length(loaded)
    encoded = []
    for choice in DECISIONS:
        after = _tokens(loaded.tokenizer, f"{text} {choice}")[len(before) :]
        if not after:
            raise ModelError(f"{loaded.name}: this tokenizer merges {choice!r} into the prompt, so it can't be scored.")
        kept = [*before, *after][-(longest + 1) :]
        encoded.append(Encoded(example.id, "decision", kept[: -len(after)], after))
    if all(len(one.target) == 1 and one.prompt == encoded[0].prompt for one in encoded):
        return Asked(join(encoded[:1]), tuple(one.target[0] for one in encoded))
    return Asked(join(encoded), ())


def decisions(
    loaded: LoadedModel, examples: Sequence[Example], batch_tokens: int, label: str
) -> Iterator[dict[str, Any]]:
    """For each example `id`, `reference`, `prediction` and, under `logits`, each choice's log-likelihood in nats.

    The harness rounds logits of a BF16 model to BF16, where choices often tie; here choices of one token are told
    apart in FP32, as in Meditune's own protocol. Raises ModelError where a log-likelihood isn't finite.
    """
    questions = [asked(loaded, example) for example in examples]
    found: dict[int, list[float]] = {}
    rows = [question.row for question in questions]
    with inference(loaded.model), Progress(label, sum(map(len, rows)), "tokens") as progress:
        for indices in by_length(rows, tokens_at_once(loaded.model, batch_tokens)):
            batch, predicted = loaded.frozen.predict(loaded.model, [rows[index] for index in indices], loaded.pad_id)
            each = log_likelihoods(predicted.logits, batch.targets.to(predicted.logits.device))
            start = 0
            for index in indices:
                question = questions[index]
                if question.choices:
                    state, logits = predicted.hidden[start], predicted.logits[start]
                    choices = label_logits(loaded.model.get_output_embeddings(), state, question.choices)
                    found[index] = (choices - logits.float().logsumexp(dim=0)).tolist()
                    start += 1
                else:
                    lengths = [len(item.target) for item in question.row.encoded]
                    parts = torch.split(each[start : start + sum(lengths)], lengths)
                    found[index] = [float(part.sum()) for part in parts]
                    start += sum(lengths)
                refuse_not_finite(found[index], examples[index].id, loaded)
            progress.advance(batch.real_tokens)
    for index, example in enumerate(examples):
        scored = dict(zip(DECISIONS, found[index], strict=True))
        said = max(scored, key=lambda choice: scored[choice])
        yield {"id": example.id, "reference": example.decision, "prediction": said, "logits": scored}


def _tokens(tokenizer: Any, text: str) -> list[int]:
    start = tokenizer.bos_token
    ids: list[int] = tokenizer.encode(
        text, **({"add_special_tokens": False} if start and text.startswith(start) else {})
    )
    return ids


def _max_length(loaded: LoadedModel) -> int:
    length = positions(loaded.model.config)
    if length is not None:
        return length
    told = int(getattr(loaded.tokenizer, "model_max_length", UNLIMITED) or UNLIMITED)
    return told if told < UNLIMITED else USUAL_LENGTH
