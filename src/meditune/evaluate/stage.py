"""Measuring one model on the test items, with every prediction stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from meditune.data.example import Example
from meditune.data.preference.pair import Pair
from meditune.evaluate import likelihood, preference
from meditune.evaluate.generation import generate
from meditune.evaluate.items import chosen_answers
from meditune.evaluate.predictions import Kind, Predictions, TextKind, answer_row, once, path_of
from meditune.evaluate.sampling import samples
from meditune.evaluate.texts import RunningText, asked_for, tokens_of
from meditune.models.load import LoadedModel
from meditune.models.rows import rows_of
from meditune.prompts import Encoder
from meditune.recipe import Recipe


class Scoring:
    """What a model finds likely about given examples: the predictions that need nothing written."""

    def __init__(self, encoder: Encoder, decided: Sequence[Example], answered: Sequence[Example]) -> None:
        """Raises DataError where an example's question is too long for the encoder's prompt."""
        self.decided, self.answered = decided, answered
        encoded = [encoder.supervised(example, "decision") for example in decided]
        encoded += [encoder.supervised(example, "answer") for example in answered]
        self.rows = rows_of(sorted(encoded, key=lambda item: item.id))
        self.labels = encoder.label_ids() if decided else {}

    def predictions(self, loaded: LoadedModel, batch_tokens: int, label: str) -> Predictions:
        """Decisions and likelihoods; `label` is shown beside the progress."""
        scores = likelihood.score(loaded, self.rows, batch_tokens, label, self.labels)
        return Predictions(
            decision=[_decided(example, scores) for example in self.decided],
            likelihood=[_scored(example.id, scores) for example in self.answered],
        )


class Measuring:
    """Measures models on the same items with the same prompt, and remembers on disk what is done.

    Decisions are scored on every example that has one; long answers on a seeded subset, the same for every model. The
    predictions lie in `folder/NAME-KIND.jsonl`; kinds that are there already aren't made again.
    """

    def __init__(self, recipe: Recipe, examples: Sequence[Example], folder: Path, pairs: Sequence[Pair] = ()) -> None:
        self.pairs = pairs
        self.form, self.spec, self.folder = recipe.prompt, recipe.evaluate, folder
        self.decided = [example for example in examples if example.decision]
        self.answered = chosen_answers(examples, recipe.evaluate.answers, recipe.seed)
        self.texts = asked_for(recipe.evaluate)
        self.seed = recipe.seed
        several = recipe.evaluate.samples > 0
        self.sampled = chosen_answers(self.answered, recipe.evaluate.sampled_answers, recipe.seed) if several else []

    def is_done(self, name: str) -> bool:
        """Whether every kind of prediction of this model is stored already."""
        kinds: set[Kind] = set()
        kinds |= {"decision"} if self.decided else set()
        kinds |= {"likelihood", "answer"} if self.answered else set()
        kinds |= {"samples"} if self.sampled else set()
        kinds |= set(self.texts)
        kinds |= {"preference"} if self.pairs else set()
        return all(path_of(self.folder, name, kind).is_file() for kind in kinds)

    def measure(self, loaded: LoadedModel, name: str) -> None:
        """Make the predictions of `loaded` that aren't there yet."""
        self._likelihoods(loaded, name)
        if self.answered:
            once(self.folder, name, "answer", lambda: self._answers(loaded, name))
        if self.sampled:
            once(self.folder, name, "samples", lambda: self._samples(loaded, name))
        for kind, text in self.texts.items():
            once(self.folder, name, kind, partial(self._windows, loaded, kind, text, name))
        if self.pairs:
            once(self.folder, name, "preference", lambda: self._preference(loaded, name))

    def _likelihoods(self, loaded: LoadedModel, name: str) -> None:
        decided = not self.decided or path_of(self.folder, name, "decision").is_file()
        scored = not self.answered or path_of(self.folder, name, "likelihood").is_file()
        if decided and scored:
            return
        scoring = Scoring(loaded.encoder(self.form), self.decided, self.answered)
        predictions = scoring.predictions(loaded, self.spec.batch_tokens, f"Scoring {name}")
        if self.decided:
            once(self.folder, name, "decision", lambda: predictions.decision)
        if self.answered:
            once(self.folder, name, "likelihood", lambda: predictions.likelihood)

    def _answers(self, loaded: LoadedModel, name: str) -> Iterator[dict[str, Any]]:
        encoder = loaded.encoder(self.form)
        prompts = [encoder.prompt(example, "answer") for example in self.answered]
        written = generate(loaded, prompts, self.spec.max_new_tokens, f"Answers of {name}")
        for example in self.answered:
            yield answer_row(example, written[example.id])

    def _samples(self, loaded: LoadedModel, name: str) -> Iterator[dict[str, Any]]:
        encoder, more = loaded.encoder(self.form), self.spec.max_new_tokens
        return samples(loaded, encoder, self.sampled, self.spec.samples, more, self.seed, f"Samples of {name}")

    def _windows(self, loaded: LoadedModel, kind: TextKind, text: RunningText, name: str) -> Iterator[dict[str, Any]]:
        rows = text.rows(loaded, tokens_of(self.spec, kind))
        scores = likelihood.score(loaded, rows, self.spec.batch_tokens, f"{kind.capitalize()} text, {name}")
        for row in rows:
            yield _scored(row.encoded[0].id, scores) | text.edition

    def _preference(self, loaded: LoadedModel, name: str) -> Iterator[dict[str, Any]]:
        encoder = loaded.encoder(self.form)
        return preference.score(loaded, self.pairs, encoder, self.spec.batch_tokens, f"Pairs, {name}")


def _decided(example: Example, scores: likelihood.Scores) -> dict[str, Any]:
    logits = scores.decisions[example.id]
    said = max(logits, key=lambda label: logits[label])
    return {"id": example.id, "reference": example.decision, "prediction": said, "logits": logits}


def _scored(identifier: str, scores: likelihood.Scores) -> dict[str, Any]:
    nll, tokens = scores.answers[identifier]
    return {"id": identifier, "nll": nll, "tokens": tokens}
