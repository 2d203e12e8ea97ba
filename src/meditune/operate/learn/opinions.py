"""Decisions of models on candidates: asked now, or stored by an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from meditune.data.example import DECISIONS, Example
from meditune.errors import DataError
from meditune.files import numbered_jsonl
from meditune.operate.learn.candidate import Candidate, Chances

BATCH_TOKENS = 4096


def with_opinion(candidates: Sequence[Candidate], name: str, chances: Mapping[str, Chances]) -> list[Candidate]:
    """The candidates with one more model's decisions, by the example's id."""
    return [
        replace(each, opinions={**each.opinions, name: chances[each.id]}) if each.id in chances else each
        for each in candidates
    ]


def with_samples(candidates: Sequence[Candidate], samples: Mapping[str, Sequence[str]]) -> list[Candidate]:
    """The candidates with a model's sampled answers, by the example's id."""
    return [
        replace(each, samples=(*each.samples, *samples[each.id])) if each.id in samples else each for each in candidates
    ]


def stored(candidates: Sequence[Candidate], path: Path) -> list[Candidate]:
    """The candidates with what a file of predictions says of them: rows of id and logits, or id and sampled answers.

    Raises DataError where the file is neither, or speaks of none of the candidates.
    """
    chances: dict[str, Chances] = {}
    samples: dict[str, Sequence[str]] = {}
    for number, row in numbered_jsonl(path):
        if not isinstance(row.get("id"), str):
            raise DataError(f"{path}, line {number}: no id.")
        if isinstance(row.get("logits"), dict):
            chances[row["id"]] = _probabilities(row["logits"], f"{path}, line {number}")
        elif isinstance(row.get("predictions"), list):
            samples[row["id"]] = [str(each) for each in row["predictions"]]
        else:
            raise DataError(
                f"{path}, line {number}: neither logits nor sampled predictions. Give a file of a run's predictions/, "
                "such as tuned-decision.jsonl or tuned-samples.jsonl."
            )
    there = {each.id for each in candidates}
    if not there & (chances.keys() | samples.keys()):
        raise DataError(f"{path}: none of its ids is a candidate's. Are these predictions of other rows?")
    return with_samples(with_opinion(candidates, path.stem, chances), samples)


def asked(
    candidates: Sequence[Candidate], model: str, samples: int = 0, seed: int = 17
) -> tuple[list[Candidate], list[str]]:
    """The candidates with a model's decisions, and with so many answers that it writes by chance.

    Each is asked with its own context. Those whose question is too long for the model's prompt stay as they are; their
    ids are given back. Raises ModelError where the model can't be had.
    """
    from meditune.evaluate.likelihood import score
    from meditune.evaluate.metrics.confidence import probabilities
    from meditune.evaluate.sampling import samples as written
    from meditune.models.load import load
    from meditune.models.rows import Row, join
    from meditune.prompts import QuestionTooLongError
    from meditune.recipe import EvaluateSpec, PromptFormat

    loaded = load(model)
    encoder = loaded.encoder(loaded.form or PromptFormat())
    rows: list[Row] = []
    fit: list[Example] = []
    too_long: list[str] = []
    for each in candidates:
        # The word is only there to be a place to score at; which one makes no difference.
        example = each.example.model_copy(update={"decision": DECISIONS[0]})
        try:
            rows.append(join([encoder.supervised(example, "decision")]))
            fit.append(example)
        except QuestionTooLongError:
            too_long.append(each.id)
    found = score(loaded, rows, BATCH_TOKENS, f"Decisions of {model}", encoder.label_ids()).decisions
    known = with_opinion(candidates, model, {id: probabilities(logits) for id, logits in found.items()})
    if samples:
        told = written(loaded, encoder, fit, samples, EvaluateSpec().max_new_tokens, seed, f"Answers of {model}")
        known = with_samples(known, {row["id"]: row["predictions"] for row in told})
    return known, too_long


def _probabilities(logits: Mapping[str, Any], where: str) -> dict[str, float]:
    from meditune.evaluate.metrics.confidence import probabilities

    if not all(isinstance(logits.get(each), int | float) for each in DECISIONS):
        raise DataError(f"{where}: logits must hold a number for each of {', '.join(DECISIONS)}.")
    return probabilities({each: float(logits[each]) for each in DECISIONS})
