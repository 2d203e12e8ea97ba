"""The evaluator's back end for a model in this process, and the generation of greedy and sampled answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

import torch

from meditune.config.data_options import PromptFormat, Task
from meditune.config.recipe import Recipe
from meditune.data.example import Example
from meditune.errors import RecipeError
from meditune.evaluate import likelihood
from meditune.evaluate.evaluator import Backend, KeepScore, KeepText
from meditune.evaluate.general_knowledge import answer_choices, tokens_of
from meditune.evaluate.likelihood import not_finite, scored_bytes, unconditional_rows
from meditune.evaluate.predictions import ChoiceSuite, Kind, Predictions, decided_row
from meditune.evaluate.suites.multiple_choice_scoring import score_suite
from meditune.models.forward import virtual_tokens
from meditune.models.generation import GreedyDecoder, NotFiniteError, batch_size, sample_texts
from meditune.models.inference import inference
from meditune.models.load import LoadedModel
from meditune.models.shared_prefix_batch import Row, rows_of
from meditune.progress import Progress
from meditune.prompts import Encoded, Encoder


def generate_answers(
    loaded: LoadedModel, prompts: Sequence[Encoded], max_new_tokens: int, label: str, no_repeat: int | None = None
) -> dict[str, str]:
    """Return the greedy continuation of each prompt up to an end token, by example id.

    With `no_repeat`, no sequence of that many tokens occurs twice in an answer.
    Raises ModelError if the model's logits aren't finite.
    """
    written: dict[str, str] = {}
    texts = [item.prompt for item in prompts]
    longest = max(map(len, texts), default=0) + virtual_tokens(loaded.model)
    at_once = batch_size(longest, max_new_tokens, loaded.model)
    with inference(loaded.model, small_batches=True), Progress(label, len(prompts), "answers") as progress:
        try:
            greedy = GreedyDecoder(
                loaded.model, texts, max_new_tokens, loaded.end_ids(), loaded.pad_id, at_once, no_repeat
            )
            for index, ids in greedy.texts():
                written[prompts[index].id] = loaded.tokenizer.decode(ids, skip_special_tokens=True).strip()
                progress.advance()
        except NotFiniteError as error:
            raise not_finite(prompts[error.prompt].id, loaded) from None
    return written


def sample_answers(
    loaded: LoadedModel,
    encoder: Encoder,
    examples: Sequence[Example],
    count: int,
    max_new_tokens: int,
    seed: int,
    label: str,
) -> Iterator[dict[str, Any]]:
    """Yield a row for each example: `id`, and `predictions` with `count` answers sampled at temperature 1.

    The same seed gives the same answers on the same machine, unless the batch size or a library version differs.
    """
    prompts = {example.id: encoder.prompt(example, "answer").prompt for example in examples}
    # Prompts of similar length share a batch; the longest come first, so that a lack of memory shows at once.
    order = [name for name in sorted(prompts, key=lambda name: -len(prompts[name])) for _ in range(count)]
    written: dict[str, list[str]] = {name: [] for name in prompts}
    torch.manual_seed(seed)
    with Progress(label, len(order), "answers") as progress:
        while order:
            size = batch_size(len(prompts[order[0]]), max_new_tokens, loaded.model)
            names, order = order[:size], order[size:]
            batch = [prompts[name] for name in names]
            sampled = sample_texts(loaded.model, batch, max_new_tokens, loaded.end_ids(), loaded.pad_id)
            for name, ids in zip(names, sampled, strict=True):
                written[name].append(loaded.tokenizer.decode(ids, skip_special_tokens=True).strip())
            progress.advance(len(names))
    for name, texts in written.items():
        yield {"id": name, "predictions": texts}


class Scoring:
    """Scoring of given examples by likelihood, without generation."""

    def __init__(
        self, encoder: Encoder, decision_examples: Sequence[Example], answer_examples: Sequence[Example]
    ) -> None:
        """Encode the examples. Raises DataError if a question is too long for the encoder's prompt."""
        self.decided, self.answered = decision_examples, answer_examples
        encoded = [encoder.supervised(example, "decision") for example in decision_examples]
        answers = [encoder.supervised(example, "answer") for example in answer_examples]
        self.rows = rows_of(sorted([*encoded, *answers], key=lambda item: item.id))
        self.bytes = {
            # For a complete answer, the bytes of its text count, because some tokenizers don't decode losslessly.
            item.id: scored_bytes(encoder.tokenizer, item) if item.answer_cut else len(example.answer.strip().encode())
            for item, example in zip(answers, answer_examples, strict=True)
        }
        self.labels = encoder.label_ids() if decision_examples else {}

    def predictions(self, loaded: LoadedModel, batch_tokens: int | None, label: str) -> Predictions:
        """Return decisions and likelihoods; `label` is the title of the progress display."""
        scores = likelihood.score(loaded, self.rows, batch_tokens, label, self.labels)
        found = Predictions()
        for example in self.decided:
            found.decision.append(decided_row(example.id, example.decision, scores.decisions[example.id]))
        for example in self.answered:
            found.likelihood.append(_likelihood_row(example.id, scores, self.bytes[example.id]))
        return found


class WeightsBackend(Backend):
    """A loaded model, with prompts in the format `form` (by default the recipe's); it can measure everything."""

    def __init__(self, loaded: LoadedModel, recipe: Recipe, form: PromptFormat | None = None) -> None:
        """Raise RecipeError if answers should be sampled from a model with virtual tokens."""
        if recipe.evaluate.samples and virtual_tokens(loaded.model):
            raise RecipeError(f"evaluate.samples doesn't work with the virtual tokens of {loaded.name}; set it to 0.")
        self.loaded, self.spec, self.seed = loaded, recipe.evaluate, recipe.seed
        self._batch_tokens = recipe.train.micro_batch_tokens
        self._form = form or recipe.prompt

    @property
    def encoder(self) -> Encoder:
        """The encoder of prompts. Raises ModelError if the tokenizer has no end token; `lm-eval` needs no encoder."""
        return self.loaded.encoder(self._form)

    def accepted(self, examples: Sequence[Example]) -> Sequence[Example]:
        """See Backend."""
        return self.encoder.accepted(examples) if examples else examples

    def decidable(self, examples: Sequence[Example]) -> Sequence[Example]:
        """See Backend."""
        return self.encoder.fitting(examples, "decision")

    def score(
        self, decision_examples: Sequence[Example], answer_examples: Sequence[Example], label: str, keep: KeepScore
    ) -> None:
        """Score decisions and answers together, in shared batches."""
        found = Scoring(self.encoder, decision_examples, answer_examples).predictions(
            self.loaded, self._batch_tokens, label
        )
        for row in found.decision:
            keep("decision", row)
        for row in found.likelihood:
            keep("likelihood", row)

    def write(self, examples: Sequence[Example], task: Task, max_new_tokens: int, label: str, keep: KeepText) -> None:
        """Generate the answers in batches."""
        encoder = self.encoder
        prompts = [encoder.prompt(example, task) for example in examples]
        no_repeat = self.spec.no_repeat if task == "answer" else None
        texts = generate_answers(self.loaded, prompts, max_new_tokens, label, no_repeat)
        for prompt in prompts:
            keep(prompt.id, texts[prompt.id], prompt.left_out)

    def decisions_as_lm_eval(self, examples: Sequence[Example], label: str) -> Iterable[dict[str, Any]]:
        """Return decisions under the `lm-eval` protocol."""
        return likelihood.decisions(self.loaded, examples, self._batch_tokens, label)

    def rows(self, kind: Kind, items: Sequence[Any], label: str) -> Iterable[dict[str, Any]]:
        """Return the rows of a kind that needs the weights."""
        loaded, encoder, spec = self.loaded, self.encoder, self.spec
        if kind == "unconditional":
            answers = [encoder.supervised(example, "answer") for example in items]
            return self._texts(unconditional_rows(loaded, answers), label)
        if kind == "samples":
            return sample_answers(loaded, encoder, items, spec.samples, spec.max_new_tokens, self.seed, label)
        if kind == "choice":
            return answer_choices(loaded, encoder, items, self._batch_tokens, label)
        if kind in ("claim", "dev_claim"):
            return likelihood.score_claims(loaded, encoder, items, self._batch_tokens, label)
        if kind == "preference":
            return likelihood.score_pairs(loaded, items, encoder, self._batch_tokens, label)
        if kind in get_args(ChoiceSuite):
            return score_suite(loaded, encoder, kind, items, self._batch_tokens, label)
        assert kind in ("general", "technical"), f"{kind} is written by another method"
        (text,) = items
        windows = self._texts(text.rows(loaded, tokens_of(spec, kind)), label)
        return (row | text.edition for row in windows)

    def _texts(self, rows: Sequence[Row], label: str) -> Iterator[dict[str, Any]]:
        """Yield a likelihood row for each of `rows`, which contain one text each."""
        scores = likelihood.score(self.loaded, rows, self._batch_tokens, label)
        for item in (row.encoded[0] for row in rows):
            yield _likelihood_row(item.id, scores, scored_bytes(self.loaded.tokenizer, item))


def _likelihood_row(identifier: str, scores: likelihood.Scores, size: int) -> dict[str, Any]:
    nll, tokens = scores.answers[identifier]
    return {"id": identifier, "nll": nll, "tokens": tokens, "bytes": size}
