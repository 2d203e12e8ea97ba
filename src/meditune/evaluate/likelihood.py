"""Scoring by likelihood: decisions, claims, given text, preference pairs, and decisions under the `lm-eval` protocol.

Decisions under the `lm-eval` protocol use the prompt, the choices and the scoring of the task `pubmedqa` in
lm-evaluation-harness 0.4.13 (https://github.com/EleutherAI/lm-evaluation-harness, lm_eval/tasks/pubmedqa), so their
metrics are comparable with published metrics. The prompt consists of the complete abstract, the question and "Answer:".
Each of " yes", " no" and " maybe" is scored by its log-likelihood after the prompt, and the most likely choice is the
prediction.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import torch

from meditune.data.example import DECISIONS, Example
from meditune.data.preference_pairs import Pair
from meditune.errors import ModelError
from meditune.evaluate.predictions import decided_row
from meditune.models.forward import Predicted, label_logits
from meditune.models.inference import batch_limit, inference, tokens_per_pass
from meditune.models.load import LoadedModel, positions
from meditune.models.shared_prefix_batch import Row, by_length, join, rows_of_pairs, windows
from meditune.progress import Progress
from meditune.prompts import Encoded, Encoder

CHUNK = 128


class TextScore(NamedTuple):
    """The likelihood of a text."""

    nll: float
    """Summed negative log-likelihood in nats"""
    tokens: int


class Scores(NamedTuple):
    """Scores by example id."""

    decisions: dict[str, dict[str, float]]
    """Logit of each label, FP32"""
    claims: dict[str, list[float]]
    """Logit of each label that the claim's source uses, in the order of LABELS, FP32"""
    answers: dict[str, TextScore]
    """Likelihood of the answer's tokens, without the end token"""


def score(
    loaded: LoadedModel, rows: Sequence[Row], batch_tokens: int | None, label: str, labels: dict[str, int] | None = None
) -> Scores:
    """Return the scores of every task in `rows`; `labels` maps each decision word to its token id.

    The labels' logits are computed in FP32 from the hidden state, because BF16 logits often tie.
    """
    scores = Scores({}, {}, {})
    limit = tokens_per_pass(loaded.model, batch_tokens)
    with inference(loaded.model), Progress(label, sum(map(len, rows)), "tokens") as progress:
        for _, item, (hidden, _), likelihoods in _predictions(loaded, rows, limit, progress):
            if item.task in ("decision", "claim"):
                tokens = list((labels or {}).values()) if item.task == "decision" else item.choices
                found = label_logits(loaded.model, hidden[0], tokens).tolist()
                refuse_not_finite(found, item.id, loaded)
                if item.task == "decision":
                    scores.decisions[item.id] = dict(zip(labels or {}, found, strict=True))
                else:
                    scores.claims[item.id] = found
            else:
                scored = len(item.target) if item.answer_cut else len(item.target) - 1
                nll = -float(likelihoods[:scored].sum())
                refuse_not_finite([nll], item.id, loaded)
                scores.answers[item.id] = TextScore(nll, scored)
    return scores


def _predictions(
    loaded: LoadedModel, rows: Sequence[Row], max_tokens: int, progress: Progress
) -> Iterator[tuple[int, Encoded, Predicted, torch.Tensor]]:
    """Yield each row's index with each of its tasks, and the predictions and log-likelihoods of the task's targets."""
    for indices in by_length(rows, max_tokens):
        batch, (hidden, logits) = loaded.frozen.predict(loaded.model, [rows[index] for index in indices], loaded.pad_id)
        likelihoods = log_likelihoods(logits, batch.targets.to(logits.device))
        tasks = [(index, item) for index in indices for item in rows[index].encoded]
        parts = (torch.split(each, [len(item.target) for _, item in tasks]) for each in (hidden, logits, likelihoods))
        for (index, item), states, values, each in zip(tasks, *parts, strict=True):
            yield index, item, Predicted(states, values), each
        progress.advance(batch.real_tokens)


def general_rows(loaded: LoadedModel, text: str, tokens: int, window: int, name: str = "window") -> list[Row]:
    """Return windows over the first `tokens` tokens of running text; each window is scored from its second token.

    The windows' ids are NAME-0, NAME-1 and so on.
    """
    ids = loaded.tokenizer(text[: tokens * 12], add_special_tokens=False)["input_ids"][:tokens]
    return windows(name, ids, window, loaded.start_ids())


def unconditional_rows(loaded: LoadedModel, answers: Sequence[Encoded]) -> list[Row]:
    """Return rows with only the model's special start tokens and an answer, without question and context.

    The same tokens of the answer are scored as after its prompt. If the model has no start tokens, however, an answer
    is scored from its second token, and an answer of a single token gives no row.
    """
    start, rows = loaded.start_ids(), []
    for answer in answers:
        ids = [*start, *(answer.target if answer.answer_cut else answer.target[:-1])]
        first = len(start) or 1
        if len(ids) > first:
            rows.append(join([Encoded(answer.id, "answer", ids[:first], ids[first:], answer_cut=True)]))
    return rows


def scored_bytes(tokenizer: Any, item: Encoded) -> int:
    """Return the number of UTF-8 bytes of the tokens that `score` counts for an answer or a window.

    A truncated character counts as the three bytes of U+FFFD.
    """
    before = item.prompt[-1:]
    ids = [*before, *(item.target if item.answer_cut else item.target[:-1])]
    # Some tokenizers drop the space before the first decoded token.
    return _bytes(tokenizer, ids) - _bytes(tokenizer, before)


def _bytes(tokenizer: Any, ids: list[int]) -> int:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return len(text.encode("utf-8", "replace"))


def log_likelihoods(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the log-likelihood of each target, computed in chunks, because FP32 logits can take a gigabyte."""
    parts = []
    for first in range(0, len(targets), CHUNK):
        piece = logits[first : first + CHUNK].float()
        chosen = piece.gather(1, targets[first : first + CHUNK, None])[:, 0]
        parts.append(chosen - piece.logsumexp(dim=1))
    return torch.cat(parts)


def refuse_not_finite(values: Sequence[float], identifier: str, loaded: LoadedModel) -> None:
    """Raise ModelError if one of a model's values on this item is infinite or NaN."""
    if not all(map(math.isfinite, values)):
        raise not_finite(identifier, loaded)


def not_finite(identifier: str, loaded: LoadedModel) -> ModelError:
    """Return the error for a model whose values on this item aren't finite."""
    number_format = str(next(loaded.model.parameters()).dtype).removeprefix("torch.")
    hint = "Its weights may be damaged" if number_format == "float32" else "Try --set model.dtype=float32"
    return ModelError(
        f"{loaded.name} computes infinite or NaN values on {identifier} (in {number_format}), so it can't be "
        f"evaluated. {hint}; if the model was tuned, use a lower learning rate."
    )


def score_claims(
    loaded: LoadedModel, encoder: Encoder, claims: Sequence[Example], batch_tokens: int | None, label: str
) -> Iterator[dict[str, Any]]:
    """Yield a row for each claim: `id`, `source`, `reference`, `prediction`, and the `logits` of its source's labels.

    Successive claims about the same evidence share one pass over that evidence.
    """
    encoded = [
        [encoder.supervised(claim, "claim") for claim in group] for _, group in groupby(claims, attrgetter("context"))
    ]
    scores = score(loaded, [join(items) for items in encoded], batch_tokens, label).claims
    for claim in claims:
        logits = dict[str, float](zip(claim.labels, scores[claim.id], strict=True))
        yield {"id": claim.id, "source": claim.source} | decided_row(claim.id, claim.label, logits)


def score_pairs(
    loaded: LoadedModel, pairs: Sequence[Pair], encoder: Encoder, batch_tokens: int | None, label: str
) -> Iterator[dict[str, Any]]:
    """Yield a row for each pair that fits: `id`, `kind`, `group`, and each answer's negative log-likelihood and tokens.

    End tokens count, because stopping is part of an answer.
    """
    rows, encoded_pairs = rows_of_pairs(pairs, encoder)
    found: dict[int, list[tuple[float, int]]] = defaultdict(list)
    with torch.inference_mode(), Progress(label, sum(map(len, rows)), "tokens") as progress:
        limit = batch_limit(loaded.model, batch_tokens)
        for index, item, _, likelihoods in _predictions(loaded, rows, limit, progress):
            nll = -float(likelihoods.sum())
            refuse_not_finite([nll], item.id, loaded)
            found[index].append((nll, len(item.target)))
    for index, pair in enumerate(encoded_pairs):
        row: dict[str, Any] = {"id": pair.id, "kind": pair.kind, "group": pair.group}
        for name, (nll, tokens) in zip(pair.answers, found[index], strict=True):
            row |= {f"{name}_nll": nll, f"{name}_tokens": tokens}
        yield row


UNLIMITED = 1_000_000_000
"""A tokenizer's `model_max_length` of at least this value means that the length is unknown."""
USUAL_LENGTH = 2048
"""The harness's maximum length if neither the model nor the tokenizer specifies one"""


def prompt_text(example: Example) -> str:
    """Return the prompt of the harness's task `pubmedqa`, after which the choices are scored."""
    abstract = "\n".join(passage.text for passage in example.context)
    return f"Abstract: {abstract}\nQuestion: {example.question}\nAnswer:"


class Asked(NamedTuple):
    """A question and its choices as a row for a forward pass."""

    row: Row
    """One branch per choice; only one branch if every choice is a single token after the same text"""
    choices: tuple[int, ...]
    """The choices' tokens if there is a single branch, else empty"""


def asked_text(loaded: LoadedModel, identifier: str, text: str, choices: Sequence[str]) -> Asked:
    """Return a text followed by a space and each choice, truncated on the left to the model's maximum length.

    Raises ModelError if a choice adds no token.
    """
    before = _tokens(loaded.tokenizer, text)
    longest = positions(loaded.model.config)
    if longest is None:
        longest = int(getattr(loaded.tokenizer, "model_max_length", UNLIMITED) or UNLIMITED)
        longest = longest if longest < UNLIMITED else USUAL_LENGTH
    encoded = []
    for choice in choices:
        after = _tokens(loaded.tokenizer, f"{text} {choice}")[len(before) :]
        if not after:
            raise ModelError(f"{loaded.name}: this tokenizer merges {choice!r} into the prompt, so it can't be scored.")
        ids = [*before, *after][-(longest + 1) :]
        encoded.append(Encoded(identifier, "decision", ids[: -len(after)], after))
    if all(len(one.target) == 1 and one.prompt == encoded[0].prompt for one in encoded):
        return Asked(join(encoded[:1]), tuple(one.target[0] for one in encoded))
    return Asked(join(encoded), ())


def decisions(
    loaded: LoadedModel, examples: Sequence[Example], batch_tokens: int | None, label: str
) -> Iterator[dict[str, Any]]:
    """Yield a row for each example: `id`, `reference`, `prediction`, and as `logits` the log-likelihoods in nats.

    Raises ModelError if a log-likelihood isn't finite.
    """
    questions = [asked_text(loaded, example.id, prompt_text(example), DECISIONS) for example in examples]
    found = choice_likelihoods(loaded, questions, batch_tokens, label)
    for example, likelihoods in zip(examples, found, strict=True):
        yield decided_row(example.id, example.decision, dict[str, float](zip(DECISIONS, likelihoods, strict=True)))


def choice_likelihoods(
    loaded: LoadedModel, questions: Sequence[Asked], batch_tokens: int | None, label: str
) -> list[list[float]]:
    """Return the log-likelihood in nats of each choice of each question.

    The harness rounds the logits of a BF16 model to BF16, so that choices often tie. Here, the logits of single-token
    choices are computed in FP32, as in Meditune's own protocol. Raises ModelError if a log-likelihood isn't finite.
    """
    found: dict[int, list[float]] = defaultdict(list)
    rows = [question.row for question in questions]
    limit = tokens_per_pass(loaded.model, batch_tokens)
    with inference(loaded.model), Progress(label, sum(map(len, rows)), "tokens") as progress:
        for index, item, (hidden, logits), likelihoods in _predictions(loaded, rows, limit, progress):
            if choices := questions[index].choices:
                values = label_logits(loaded.model, hidden[0], choices)
                found[index] = (values - logits[0].float().logsumexp(dim=0)).tolist()
            else:
                found[index].append(float(likelihoods.sum()))
            refuse_not_finite(found[index], item.id, loaded)
    return [found[index] for index in range(len(questions))]


def _tokens(tokenizer: Any, text: str) -> list[int]:
    start = tokenizer.bos_token
    more = {"add_special_tokens": False} if start and text.startswith(start) else {}
    return list(tokenizer.encode(text, **more))
