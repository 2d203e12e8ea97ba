"""What a model finds likely: decisions by label likelihood, and the perplexity of given text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

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
    with torch.inference_mode(), Progress(label, sum(len(row) for row in rows), "tokens") as progress:
        for indices in by_length(rows, batch_tokens):
            chosen = [rows[index] for index in indices]
            batch, (hidden, logits) = loaded.frozen.predict(loaded.model, chosen, loaded.pad_id)
            likelihoods = log_likelihoods(logits, batch.targets.to(logits.device))
            start = 0
            for item in (item for row in chosen for item in row.encoded):
                if item.task == "decision":
                    scores.decisions[item.id] = _label_logits(head, hidden[start], labels or {})
                else:
                    scored = len(item.target) if item.answer_cut else len(item.target) - 1
                    scores.answers[item.id] = TextScore(-float(likelihoods[start : start + scored].sum()), scored)
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


def _label_logits(head: Any, hidden: torch.Tensor, labels: dict[str, int]) -> dict[str, float]:
    ids = torch.tensor(list(labels.values()), device=hidden.device)
    logits = head.weight[ids].float() @ hidden.float()
    if getattr(head, "bias", None) is not None:
        logits = logits + head.bias[ids].float()
    return dict(zip(labels, logits.tolist(), strict=True))
