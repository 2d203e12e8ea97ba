"""Measuring one model on the test items, with every prediction stored."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from meditune.data.example import Example
from meditune.data.preference.pair import Pair
from meditune.errors import DataError
from meditune.evaluate import likelihood, lm_eval, preference
from meditune.evaluate.choices import measured, questions
from meditune.evaluate.generation import generate
from meditune.evaluate.items import chosen_answers, decided_on, under_conditions
from meditune.evaluate.likelihood import scored_bytes, unconditional_rows
from meditune.evaluate.predictions import (
    ANSWER,
    CONDITIONS,
    LIKELIHOOD,
    Condition,
    Kind,
    LikelihoodKind,
    Predictions,
    TextKind,
    answer_row,
    once,
    path_of,
    written_row,
)
from meditune.evaluate.safety import battery
from meditune.evaluate.sampling import samples
from meditune.evaluate.texts import RunningText, asked_for, tokens_of
from meditune.models.load import LoadedModel
from meditune.models.rows import Row, rows_of
from meditune.prompts import DECISION_TOKENS, Encoder
from meditune.recipe import Recipe, RetrieveSpec

DECISIONS_ALONE: dict[str, Any] = {
    **dict.fromkeys(("general_tokens", "technical_tokens", "choices", "safety_messages", "samples"), 0),
    **{"closed_book": False, "retrieve": RetrieveSpec(), "written_decisions": False, "calibrate": "none"},
    **{"abstain_target": None},
}
"""Options with which nothing but decisions is measured"""


class Scoring:
    """What a model finds likely about given examples: the predictions that need nothing written."""

    def __init__(self, encoder: Encoder, decided: Sequence[Example], answered: Sequence[Example]) -> None:
        """Raises DataError where an example's question is too long for the encoder's prompt."""
        self.decided, self.answered = decided, answered
        encoded = [encoder.supervised(example, "decision") for example in decided]
        answers = [encoder.supervised(example, "answer") for example in answered]
        self.rows = rows_of(sorted([*encoded, *answers], key=lambda item: item.id))
        self.bytes = {
            # Of the text itself where all of it is scored, because some tokenizers don't give it back as it was.
            item.id: scored_bytes(encoder.tokenizer, item) if item.answer_cut else len(example.answer.strip().encode())
            for item, example in zip(answers, answered, strict=True)
        }
        self.labels = encoder.label_ids() if decided else {}

    def predictions(self, loaded: LoadedModel, batch_tokens: int, label: str) -> Predictions:
        """Decisions and likelihoods; `label` is shown beside the progress."""
        scores = likelihood.score(loaded, self.rows, batch_tokens, label, self.labels)
        return Predictions(
            decision=[_decided(example, scores) for example in self.decided],
            likelihood=[_scored(example.id, scores, self.bytes[example.id]) for example in self.answered],
        )


CALLED: dict[Condition, str] = {"closed": "closed book", "retrieved": "retrieved passages"}
"""What conditions are called while they are measured"""


class Measuring:
    """Measures models on the same items with the same prompt, and remembers on disk what is done.

    Decisions are scored on every example that has one, and on `dev` where something is fitted there; long answers on a
    seeded subset, the same for every model. `found` are the examples with retrieved passages. The predictions lie in
    `folder/NAME-KIND.jsonl`; kinds that are there already aren't made again. With the protocol lm-eval only decisions
    are.
    """

    def __init__(
        self,
        recipe: Recipe,
        examples: Sequence[Example],
        folder: Path,
        pairs: Sequence[Pair] = (),
        dev: Sequence[Example] = (),
        found: Sequence[Example] = (),
    ) -> None:
        self.form, self.folder = recipe.prompt, folder
        self.seed, self.count = recipe.seed, len(examples)
        self.as_harness = recipe.evaluate.protocol == "lm-eval"
        if self.as_harness and not any(example.decision for example in examples):
            raise DataError(
                "evaluate.protocol lm-eval measures decisions, and no item to be measured on has one. Take meditune."
            )
        self.spec = spec = recipe.evaluate.model_copy(update=DECISIONS_ALONE if self.as_harness else {})
        found = () if self.as_harness else found
        self.conditions = decided_on(examples, dev, spec, found)
        self.decided = self.conditions.get("decision", [])
        self.answered = [] if self.as_harness else chosen_answers(examples, spec.answers, recipe.seed)
        self.answered_under = under_conditions(self.answered, spec, found)
        without = [example.id for example in examples if not example.answer.strip()]
        self.unanswerable = without if self.answered else []
        self.texts = asked_for(spec)
        self.pairs = () if self.as_harness else pairs
        self.sampled = chosen_answers(self.answered, spec.sampled_answers, recipe.seed) if spec.samples else []
        self.questions = questions(spec.choices)
        self.messages = battery.chosen(spec.safety_messages, recipe.seed)

    def is_done(self, name: str) -> bool:
        """Whether every kind of prediction of this model is stored already."""
        kinds: set[Kind] = set(self.conditions)
        kinds |= {"written"} if self._written else set()
        kinds |= {"likelihood", "unconditional", "answer"} if self.answered else set()
        for condition in self.answered_under:
            kinds |= {LIKELIHOOD[condition], ANSWER[condition]}
        kinds |= {"samples"} if self.sampled else set()
        kinds |= set(self.texts)
        kinds |= {"choice"} if self.questions else set()
        kinds |= {"preference"} if self.pairs else set()
        kinds |= {"safety"} if self.messages else set()
        return all(path_of(self.folder, name, kind).is_file() for kind in kinds)

    def measure(self, loaded: LoadedModel, name: str) -> None:
        """Make the predictions of `loaded` that aren't there yet."""
        if self.unanswerable:
            print(
                f"{len(self.unanswerable)} of {self.count} items have no reference answer and are measured by their "
                f"decision only, such as {self.unanswerable[0]}.",
                file=sys.stderr,
            )
        self._likelihoods(loaded, name)
        if "dev_decision" in self.conditions:
            once(self.folder, name, "dev_decision", lambda: self._dev_decisions(loaded, name))
        for condition in CONDITIONS:
            self._under(loaded, condition, name)
        if self._written:
            once(self.folder, name, "written", lambda: self._decisions_in_words(loaded, name))
        if self.answered:
            once(self.folder, name, "unconditional", lambda: self._unconditional(loaded, name))
            label = f"Answers of {name}"
            once(self.folder, name, "answer", lambda: self._answers(loaded, name, self.answered, label))
        if self.sampled:
            once(self.folder, name, "samples", lambda: self._samples(loaded, name))
        for kind, text in self.texts.items():
            once(self.folder, name, kind, partial(self._windows, loaded, kind, text, name))
        if self.questions:
            once(self.folder, name, "choice", lambda: self._choices(loaded, name))
        if self.pairs:
            once(self.folder, name, "preference", lambda: self._preference(loaded, name))
        if self.messages:
            once(self.folder, name, "safety", lambda: self._safety(loaded, name))

    def _likelihoods(self, loaded: LoadedModel, name: str) -> None:
        decided = not self.decided or path_of(self.folder, name, "decision").is_file()
        scored = not self.answered or path_of(self.folder, name, "likelihood").is_file()
        if decided and scored:
            return
        if self.as_harness:
            label = f"Scoring {name} as lm-eval does"
            rows = partial(lm_eval.decisions, loaded, self.decided, self.spec.batch_tokens, label)
            once(self.folder, name, "decision", rows)
            return
        scoring = Scoring(loaded.encoder(self.form), self.decided, self.answered)
        predictions = scoring.predictions(loaded, self.spec.batch_tokens, f"Scoring {name}")
        if self.decided:
            once(self.folder, name, "decision", lambda: predictions.decision)
        if self.answered:
            once(self.folder, name, "likelihood", lambda: predictions.likelihood)

    def _unconditional(self, loaded: LoadedModel, name: str) -> Iterator[dict[str, Any]]:
        encoder = loaded.encoder(self.form)
        rows = unconditional_rows(loaded, [encoder.supervised(example, "answer") for example in self.answered])
        return _texts(loaded, rows, self.spec.batch_tokens, f"Answers without questions, {name}")

    @property
    def _written(self) -> bool:
        """Whether decisions are asked for in words, too."""
        return self.spec.written_decisions and bool(self.decided)

    def _dev_decisions(self, loaded: LoadedModel, name: str) -> list[dict[str, Any]]:
        scoring = Scoring(loaded.encoder(self.form), self.conditions["dev_decision"], [])
        return scoring.predictions(loaded, self.spec.batch_tokens, f"Decisions of {name}, dev split").decision

    def _under(self, loaded: LoadedModel, condition: Condition, name: str) -> None:
        """Decisions, likelihoods and answers under a condition."""
        decided, answered = self.conditions.get(condition, []), self.answered_under.get(condition, [])
        kinds: list[Condition | LikelihoodKind] = [condition] if decided else []
        kinds += [LIKELIHOOD[condition]] if answered else []
        if not all(path_of(self.folder, name, kind).is_file() for kind in kinds):
            scoring = Scoring(loaded.encoder(self.form), decided, answered)
            label = f"Scoring {name}, {CALLED[condition]}"
            predictions = scoring.predictions(loaded, self.spec.batch_tokens, label)
            made: dict[Kind, list[dict[str, Any]]] = {
                condition: predictions.decision,
                LIKELIHOOD[condition]: predictions.likelihood,
            }
            for kind in kinds:
                once(self.folder, name, kind, partial(iter, made[kind]))
        if answered:
            label = f"Answers of {name}, {CALLED[condition]}"
            once(self.folder, name, ANSWER[condition], lambda: self._answers(loaded, name, answered, label))

    def _decisions_in_words(self, loaded: LoadedModel, name: str) -> list[dict[str, Any]]:
        encoder = loaded.encoder(self.form)
        prompts = [encoder.prompt(example, "decision") for example in self.decided]
        texts = generate(loaded, prompts, DECISION_TOKENS, f"Decisions of {name} in words")
        rows = [written_row(example.id, example.decision, texts[example.id]) for example in self.decided]
        unclear = sum(row["prediction"] is None for row in rows)
        if unclear:
            print(f"{unclear} of {len(rows)} written decisions of {name} name no label: wrong.", file=sys.stderr)
        return rows

    def _answers(
        self, loaded: LoadedModel, name: str, answered: Sequence[Example], label: str
    ) -> Iterator[dict[str, Any]]:
        encoder = loaded.encoder(self.form)
        prompts = [encoder.prompt(example, "answer") for example in answered]
        written = generate(loaded, prompts, self.spec.max_new_tokens, label, self.spec.no_repeat)
        remark = empty_answers_remark(name, [example.id for example in answered if not written[example.id]])
        if remark:
            print(remark, file=sys.stderr)
        for example, prompt in zip(answered, prompts, strict=True):
            yield answer_row(example, written[example.id], prompt.left_out)

    def _samples(self, loaded: LoadedModel, name: str) -> Iterator[dict[str, Any]]:
        encoder, more = loaded.encoder(self.form), self.spec.max_new_tokens
        return samples(loaded, encoder, self.sampled, self.spec.samples, more, self.seed, f"Samples of {name}")

    def _safety(self, loaded: LoadedModel, name: str) -> Iterator[dict[str, Any]]:
        encoder = loaded.encoder(self.form)
        prompts = [encoder.prompt(message.example(), "answer") for message in self.messages]
        label, more = f"Safety battery, {name}", self.spec.max_new_tokens
        written = generate(loaded, prompts, more, label, self.spec.no_repeat)
        for message in self.messages:
            yield message.row(written[message.id])

    def _windows(self, loaded: LoadedModel, kind: TextKind, text: RunningText, name: str) -> Iterator[dict[str, Any]]:
        rows = text.rows(loaded, tokens_of(self.spec, kind))
        for row in _texts(loaded, rows, self.spec.batch_tokens, f"{kind.capitalize()} text, {name}"):
            yield row | text.edition

    def _choices(self, loaded: LoadedModel, name: str) -> Iterator[dict[str, Any]]:
        encoder = loaded.encoder(self.form)
        return measured(loaded, encoder, self.questions, self.spec.batch_tokens, f"General knowledge, {name}")

    def _preference(self, loaded: LoadedModel, name: str) -> Iterator[dict[str, Any]]:
        encoder = loaded.encoder(self.form)
        return preference.score(loaded, self.pairs, encoder, self.spec.batch_tokens, f"Pairs, {name}")


def empty_answers_remark(name: str, empty: Sequence[str]) -> str:
    """What is said where a model wrote nothing to these items; empty where there are none."""
    if not empty:
        return ""
    return (
        f"{name} wrote nothing to {len(empty)} items, such as {empty[0]}: it ended at once, or wrote only white space. "
        "They count as answers without a word."
    )


def _decided(example: Example, scores: likelihood.Scores) -> dict[str, Any]:
    logits = scores.decisions[example.id]
    said = max(logits, key=lambda label: logits[label])
    return {"id": example.id, "reference": example.decision, "prediction": said, "logits": logits}


def _texts(loaded: LoadedModel, rows: Sequence[Row], batch_tokens: int, label: str) -> Iterator[dict[str, Any]]:
    """How likely each row's one text is."""
    scores = likelihood.score(loaded, rows, batch_tokens, label)
    for item in (row.encoded[0] for row in rows):
        yield _scored(item.id, scores, scored_bytes(loaded.tokenizer, item))


def _scored(identifier: str, scores: likelihood.Scores, size: int) -> dict[str, Any]:
    nll, tokens = scores.answers[identifier]
    return {"id": identifier, "nll": nll, "tokens": tokens, "bytes": size}
