"""Evaluation of one model on the test items, with every prediction stored.

The module selects the items and conditions, generates greedy and sampled answers, and checks that stored predictions
belong to the items.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from meditune.config.data_options import RetrieveSpec
from meditune.config.recipe import Recipe
from meditune.data.example import Example
from meditune.data.preference.pairs import Pair
from meditune.errors import DataError
from meditune.evaluate import likelihood, safety_battery
from meditune.evaluate.evaluation_items import chosen_answers, decided_on, under_conditions
from meditune.evaluate.general_knowledge import RunningText, answer_choices, general_texts, questions, tokens_of
from meditune.evaluate.likelihood import not_finite, scored_bytes, unconditional_rows
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
from meditune.models.forward import virtual_tokens
from meditune.models.generation import GreedyDecoder, NotFiniteError, batch_size, sample_texts
from meditune.models.inference import inference
from meditune.models.load import LoadedModel
from meditune.models.shared_prefix_batch import Row, rows_of
from meditune.progress import Progress
from meditune.prompts import DECISION_TOKENS, Encoded, Encoder


def generate_answers(
    loaded: LoadedModel, prompts: Sequence[Encoded], max_new_tokens: int, label: str, once: int | None = None
) -> dict[str, str]:
    """Return the greedy continuation of each prompt up to its end token, by example id.

    With `once`, no sequence of that many tokens occurs twice in an answer.
    Raises ModelError if the model's logits aren't finite.
    """
    written: dict[str, str] = {}
    texts = [item.prompt for item in prompts]
    longest = max(map(len, texts), default=0) + virtual_tokens(loaded.model)
    end = loaded.tokenizer.eos_token_id
    at_once = batch_size(longest, max_new_tokens, loaded.model)
    with inference(loaded.model, few_rows=True), Progress(label, len(prompts), "answers") as progress:
        try:
            greedy = GreedyDecoder(loaded.model, texts, max_new_tokens, end, loaded.pad_id, at_once, once)
            for index, ids in greedy.texts():
                written[prompts[index].id] = loaded.tokenizer.decode(ids, skip_special_tokens=True).strip()
                progress.advance()
        except NotFiniteError as error:
            raise not_finite(prompts[error.prompt].id, loaded) from None
    return written


def sample_answers(
    loaded: LoadedModel, encoder: Encoder, examples: Sequence[Example], count: int, more: int, seed: int, label: str
) -> Iterator[dict[str, Any]]:
    """Yield a row for each example: `id`, and `predictions` with `count` answers of up to `more` tokens.

    Answers are sampled at temperature 1. The seed reproduces them on the same machine; another batch size (with less
    free memory) or library version gives different answers.
    """
    prompts = {example.id: encoder.prompt(example, "answer").prompt for example in examples}
    # Prompts of similar length share a batch; the longest come first, so a lack of memory shows at once.
    order = [name for name in sorted(prompts, key=lambda name: -len(prompts[name])) for _ in range(count)]
    written: dict[str, list[str]] = {name: [] for name in prompts}
    torch.manual_seed(seed)
    with Progress(label, len(order), "answers") as progress:
        while order:
            size = batch_size(len(prompts[order[0]]), more, loaded.model)
            names, order = order[:size], order[size:]
            for name, ids in zip(names, sample_texts(loaded, [prompts[name] for name in names], more), strict=True):
                written[name].append(loaded.tokenizer.decode(ids, skip_special_tokens=True).strip())
            progress.advance(len(names))
    for name, texts in written.items():
        yield {"id": name, "predictions": texts}


DECISIONS_ALONE: dict[str, Any] = {
    **dict.fromkeys(("general_tokens", "technical_tokens", "choices", "safety_messages", "samples"), 0),
    **{"closed_book": False, "retrieve": RetrieveSpec(), "written_decisions": False, "calibrate": "none"},
    **{"abstain_target": None},
}
"""Options that turn off everything except decisions"""


class Scoring:
    """Scoring of given examples by likelihood, without generation."""

    def __init__(self, encoder: Encoder, decided: Sequence[Example], answered: Sequence[Example]) -> None:
        """Encode the examples. Raises DataError if a question is too long for the encoder's prompt."""
        self.decided, self.answered = decided, answered
        encoded = [encoder.supervised(example, "decision") for example in decided]
        answers = [encoder.supervised(example, "answer") for example in answered]
        self.rows = rows_of(sorted([*encoded, *answers], key=lambda item: item.id))
        self.bytes = {
            # If all of the text is scored, its own bytes count, because some tokenizers don't decode losslessly.
            item.id: scored_bytes(encoder.tokenizer, item) if item.answer_cut else len(example.answer.strip().encode())
            for item, example in zip(answers, answered, strict=True)
        }
        self.labels = encoder.label_ids() if decided else {}

    def predictions(self, loaded: LoadedModel, batch_tokens: int, label: str) -> Predictions:
        """Return decisions and likelihoods; `label` is the title of the progress display."""
        scores = likelihood.score(loaded, self.rows, batch_tokens, label, self.labels)
        return Predictions(
            decision=[_decided(example, scores) for example in self.decided],
            likelihood=[_scored(example.id, scores, self.bytes[example.id]) for example in self.answered],
        )


CALLED: dict[Condition, str] = {"closed": "closed book", "retrieved": "retrieved passages"}
"""Names of the conditions in progress displays"""


class Evaluator:
    """An evaluator of models on the same items with the same prompt, which stores finished predictions on disk.

    Decisions are scored on every example that has one, and on `dev` if anything is fitted on it; long answers on a
    seeded subset, the same for every model. `found` are the examples with retrieved passages. Predictions are stored
    in `folder/NAME-KIND.jsonl`; kinds that exist already aren't computed again. The `lm-eval` protocol covers only
    decisions.
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
                "evaluate.protocol lm-eval measures only decisions, and no test item has a decision. "
                "Set evaluate.protocol to meditune."
            )
        self.spec = spec = recipe.evaluate.model_copy(update=DECISIONS_ALONE if self.as_harness else {})
        found = () if self.as_harness else found
        self.conditions = decided_on(examples, dev, spec, found)
        self.decided = self.conditions.get("decision", [])
        self.answered = [] if self.as_harness else chosen_answers(examples, spec.answers, recipe.seed)
        self.answered_under = under_conditions(self.answered, spec, found)
        without = [example.id for example in examples if not example.answer.strip()]
        self.unanswerable = without if self.answered else []
        self.texts = general_texts(spec)
        self.pairs = () if self.as_harness else pairs
        self.sampled = chosen_answers(self.answered, spec.sampled_answers, recipe.seed) if spec.samples else []
        self.questions = questions(spec.choices)
        self.messages = safety_battery.chosen_messages(spec.safety_messages, recipe.seed)

    def is_done(self, name: str) -> bool:
        """Return True if every kind of prediction of this model is stored."""
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
        """Compute and store the predictions of `loaded` that don't exist yet."""
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
            rows = partial(likelihood.decisions, loaded, self.decided, self.spec.batch_tokens, label)
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
        """Return True if the model also writes decisions as text."""
        return self.spec.written_decisions and bool(self.decided)

    def _dev_decisions(self, loaded: LoadedModel, name: str) -> list[dict[str, Any]]:
        scoring = Scoring(loaded.encoder(self.form), self.conditions["dev_decision"], [])
        return scoring.predictions(loaded, self.spec.batch_tokens, f"Decisions of {name}, dev split").decision

    def _under(self, loaded: LoadedModel, condition: Condition, name: str) -> None:
        """Compute decisions, likelihoods and answers under a condition."""
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
        texts = generate_answers(loaded, prompts, DECISION_TOKENS, f"Written decisions of {name}")
        rows = [written_row(example.id, example.decision, texts[example.id]) for example in self.decided]
        unclear = sum(row["prediction"] is None for row in rows)
        if unclear:
            print(
                f"{unclear} of {len(rows)} written decisions of {name} contain no label and count as wrong.",
                file=sys.stderr,
            )
        return rows

    def _answers(
        self, loaded: LoadedModel, name: str, answered: Sequence[Example], label: str
    ) -> Iterator[dict[str, Any]]:
        encoder = loaded.encoder(self.form)
        prompts = [encoder.prompt(example, "answer") for example in answered]
        written = generate_answers(loaded, prompts, self.spec.max_new_tokens, label, self.spec.no_repeat)
        remark = empty_answers_remark(name, [example.id for example in answered if not written[example.id]])
        if remark:
            print(remark, file=sys.stderr)
        for example, prompt in zip(answered, prompts, strict=True):
            yield answer_row(example, written[example.id], prompt.left_out)

    def _samples(self, loaded: LoadedModel, name: str) -> Iterator[dict[str, Any]]:
        encoder, more = loaded.encoder(self.form), self.spec.max_new_tokens
        return sample_answers(loaded, encoder, self.sampled, self.spec.samples, more, self.seed, f"Samples of {name}")

    def _safety(self, loaded: LoadedModel, name: str) -> Iterator[dict[str, Any]]:
        encoder = loaded.encoder(self.form)
        prompts = [encoder.prompt(message.example(), "answer") for message in self.messages]
        label, more = f"Safety battery, {name}", self.spec.max_new_tokens
        written = generate_answers(loaded, prompts, more, label, self.spec.no_repeat)
        for message in self.messages:
            yield message.row(written[message.id])

    def _windows(self, loaded: LoadedModel, kind: TextKind, text: RunningText, name: str) -> Iterator[dict[str, Any]]:
        rows = text.rows(loaded, tokens_of(self.spec, kind))
        for row in _texts(loaded, rows, self.spec.batch_tokens, f"{kind.capitalize()} text, {name}"):
            yield row | text.edition

    def _choices(self, loaded: LoadedModel, name: str) -> Iterator[dict[str, Any]]:
        encoder = loaded.encoder(self.form)
        return answer_choices(loaded, encoder, self.questions, self.spec.batch_tokens, f"General knowledge, {name}")

    def _preference(self, loaded: LoadedModel, name: str) -> Iterator[dict[str, Any]]:
        encoder = loaded.encoder(self.form)
        return likelihood.score_pairs(loaded, self.pairs, encoder, self.spec.batch_tokens, f"Pairs, {name}")


def empty_answers_remark(name: str, empty: Sequence[str]) -> str:
    """Return a sentence about a model's empty answers; an empty string without any."""
    if not empty:
        return ""
    return (
        f"{name} gave empty answers to {len(empty)} items, such as {empty[0]}: it stopped at once, or wrote only "
        "whitespace. They count as answers without a word."
    )


def _decided(example: Example, scores: likelihood.Scores) -> dict[str, Any]:
    logits = scores.decisions[example.id]
    said = max(logits, key=lambda label: logits[label])
    return {"id": example.id, "reference": example.decision, "prediction": said, "logits": logits}


def _texts(loaded: LoadedModel, rows: Sequence[Row], batch_tokens: int, label: str) -> Iterator[dict[str, Any]]:
    """Yield the likelihood of each row's single text."""
    scores = likelihood.score(loaded, rows, batch_tokens, label)
    for item in (row.encoded[0] for row in rows):
        yield _scored(item.id, scores, scored_bytes(loaded.tokenizer, item))


def _scored(identifier: str, scores: likelihood.Scores, size: int) -> dict[str, Any]:
    nll, tokens = scores.answers[identifier]
    return {"id": identifier, "nll": nll, "tokens": tokens, "bytes": size}
