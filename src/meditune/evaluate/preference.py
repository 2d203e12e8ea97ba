"""Experimental: which of two answers a model finds likelier, on held-out pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from meditune.data.preference.pair import Pair
from meditune.evaluate.likelihood import log_likelihoods, refuse_not_finite
from meditune.evaluate.metrics.preference import statistics
from meditune.evaluate.predictions import Predictions
from meditune.models.load import LoadedModel
from meditune.models.pairs import rows_of_pairs
from meditune.models.rows import by_length
from meditune.progress import Progress
from meditune.prompts import Encoder


def score(
    loaded: LoadedModel, pairs: Sequence[Pair], encoder: Encoder, batch_tokens: int, label: str
) -> Iterator[dict[str, Any]]:
    """For each pair that fits: `id`, `kind`, and the summed negative log-likelihood and tokens of either answer.

    End tokens count, because where to stop is part of an answer.
    """
    rows, kept = rows_of_pairs(pairs, encoder)
    found: dict[int, dict[str, Any]] = {}
    with torch.inference_mode(), Progress(label, sum(map(len, rows)), "tokens") as progress:
        for indices in by_length(rows, batch_tokens):
            chosen = [rows[index] for index in indices]
            batch, (_, logits) = loaded.frozen.predict(loaded.model, chosen, loaded.pad_id)
            each = log_likelihoods(logits, batch.targets.to(logits.device))
            start = 0
            for index, row in zip(indices, chosen, strict=True):
                first, second = (len(item.target) for item in row.encoded)
                middle, end = start + first, start + first + second
                found[index] = {
                    "chosen_nll": -float(each[start:middle].sum()),
                    "chosen_tokens": first,
                    "rejected_nll": -float(each[middle:end].sum()),
                    "rejected_tokens": second,
                }
                refuse_not_finite([float(each[start:end].sum())], kept[index].id, loaded)
                start = end
            progress.advance(batch.real_tokens)
    for index, pair in enumerate(kept):
        yield {"id": pair.id, "kind": pair.kind} | found[index]


def by_kind(predictions: Predictions) -> dict[str, dict[str, float]]:
    """For each kind of pair how many `pairs` there are, and the figures on them alone."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in predictions.preference:
        kinds.setdefault(row["kind"], []).append(row)
    figures = {}
    for kind in sorted(kinds):
        found = statistics(Predictions(preference=kinds[kind]))
        figures[kind] = {"pairs": float(len(kinds[kind]))} | {name: each.value() for name, each in found.items()}
    return figures
