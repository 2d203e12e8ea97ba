"""What a model finds likely: decisions by label likelihood, and the perplexity of given text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from meditune.errors import ModelError
from meditune.models.forward import label_logits
from meditune.models.inference import inference, tokens_at_once
from meditune.models.load import LoadedModel
from meditune.models.rows import Row, by_length, join, windows
from meditune.progress import Progress
from meditune.prompts import Encoded

CHUNK = 128


class TextScore(NamedTuple):
    """How likely a text is."""

    nll: float
    """Summed negative log-likelihood in nats."""
    tokens: int


class Scores(NamedTuple):
    """By example id."""

    decisions: dict[str, dict[str, float]]
    """Logit of each label, FP32."""
    answers: dict[str, TextScore]
    """The answer's tokens without its end token."""


def score(
    loaded: LoadedModel, rows: Sequence[Row], batch_tokens: int, label: str, labels: dict[str, int] | None = None
) -> Scores:
    """Score every task in `rows`; `labels` gives the token id of each decision word.

    The labels' logits are computed in FP32 from the hidden state, because in BF16 they often tie.
    """
    scores = Scores({}, {})
    head = loaded.model.get_output_embeddings()
    with inference(loaded.model), Progress(label, sum(len(row) for row in rows), "tokens") as progress:
        for indices in by_length(rows, tokens_at_once(loaded.model, batch_tokens)):
            chosen = [rows[index] for index in indices]
            batch, (hidden, logits) = loaded.frozen.predict(loaded.model, chosen, loaded.pad_id)
            likelihoods = log_likelihoods(logits, batch.targets.to(logits.device))
            start = 0
            for item in (item for row in chosen for item in row.encoded):
                if item.task == "decision":
                    found = label_logits(head, hidden[start], list((labels or {}).values())).tolist()
                    refuse_not_finite(found, item.id, loaded)
                    scores.decisions[item.id] = dict(zip(labels or {}, found, strict=True))
                else:
                    scored = len(item.target) if item.answer_cut else len(item.target) - 1
                    nll = -float(likelihoods[start : start + scored].sum())
                    refuse_not_finite([nll], item.id, loaded)
                    scores.answers[item.id] = TextScore(nll, scored)
                start += len(item.target)
            progress.advance(batch.real_tokens)
    return scores


def general_rows(loaded: LoadedModel, text: str, tokens: int, window: int, name: str = "window") -> list[Row]:
    """Windows over the first `tokens` tokens of running text, each scored from its second token on.

    They are called NAME-0, NAME-1 and so on.
    """
    ids = loaded.tokenizer(text[: tokens * 12], add_special_tokens=False)["input_ids"][:tokens]
    return windows(name, ids, window, loaded.start_ids())


def unconditional_rows(loaded: LoadedModel, answers: Sequence[Encoded]) -> list[Row]:
    """The answers alone, without question and context, after the special tokens that begin every text of this model.

    Where there are none, an answer is scored from its second token on, as running text is; one of a single token gives
    no row then. The tokens are those that are scored after the prompt.
    """
    start, rows = loaded.start_ids(), []
    for answer in answers:
        ids = [*start, *(answer.target if answer.answer_cut else answer.target[:-1])]
        first = len(start) or 1
        if len(ids) > first:
            rows.append(join([Encoded(answer.id, "answer", ids[:first], ids[first:], answer_cut=True)]))
    return rows


def scored_bytes(tokenizer: Any, item: Encoded) -> int:
    """UTF-8 bytes of the tokens that `score` counts for an answer or a window.

    A character that is cut in two counts as the three bytes of U+FFFD.
    """
    before = item.prompt[-1:]
    whole = [*before, *(item.target if item.answer_cut else item.target[:-1])]
    # Some tokenizers leave out the space before the first token of what they decode.
    return _bytes(tokenizer, whole) - _bytes(tokenizer, before)


def _bytes(tokenizer: Any, ids: list[int]) -> int:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return len(text.encode("utf-8", "replace"))


def log_likelihoods(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-likelihood of each target, a chunk at a time: FP32 logits of a large vocabulary take a gigabyte at once."""
    parts = []
    for first in range(0, len(targets), CHUNK):
        piece = logits[first : first + CHUNK].float()
        chosen = piece.gather(1, targets[first : first + CHUNK, None])[:, 0]
        parts.append(chosen - piece.logsumexp(dim=1))
    return torch.cat(parts)


def refuse_not_finite(values: Sequence[float], identifier: str, loaded: LoadedModel) -> None:
    """Raise ModelError where one of a model's figures on this item is infinite or NaN: nothing can be chosen by it."""
    if not all(map(math.isfinite, values)):
        raise not_finite(identifier, loaded)


def not_finite(identifier: str, loaded: LoadedModel) -> ModelError:
    """What is said of a model whose numbers on this item aren't finite."""
    number_format = str(next(loaded.model.parameters()).dtype).removeprefix("torch.")
    hint = "Its weights may be damaged" if number_format == "float32" else "Try --set model.dtype=float32"
    return ModelError(
        f"{loaded.name} gives numbers that aren't finite on {identifier} (computed in {number_format}), so it can't be "
        f"measured. {hint}; if it was tuned, a lower learning rate helps."
    )
