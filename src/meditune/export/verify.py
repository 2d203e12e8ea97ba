"""Whether an exported model still says what the model said that it was made from.

Both are asked through the one interface of all engines: how likely long answers are, which decision is the likeliest,
and what is written. What the exported model writes is scored by the original, because that catches what scores of
given texts can't: a cache, a mask or a stop token that is wrong where the engine writes.

What an exported model is checked on: questions with a decision and a long answer, of the training half.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from meditune.config.data_options import PromptFormat
from meditune.data.balance import in_style
from meditune.data.example import DECISIONS, Example
from meditune.data.prepare import stored_data
from meditune.data.readers import pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.data.sources import SOURCES, locate_source
from meditune.engines.engine import Engine, GenerationRequest, generate_all
from meditune.errors import DataError, ModelError
from meditune.prompts import Encoder

PERPLEXITY = 0.02
"""By this share the perplexity of given answers may rise"""
ACCURACY = 1.0
"""By so many points the accuracy of decisions may fall, or by what changes that go either way explain"""
CHANCE = 0.05
"""Under this probability they don't (McNemar's exact test, one-sided)"""
AGREEMENT = 0.9
"""Share of decisions that must be the same; those that differ are near ties"""
WRITTEN = 0.25
"""By this share the original may find the exported model's answers less likely, token by token, than its own"""
ANSWERS = 20
"""Items whose long answers are scored; decisions are made on all"""
WRITTEN_ITEMS, WRITTEN_TOKENS = 8, 48


@dataclass(frozen=True)
class Deviation:
    """The exported model beside the original."""

    items: int
    perplexity: tuple[float, float]
    """Of the reference answers: of the original, and of the exported model"""
    accuracy: tuple[float, float]
    """Of the decisions, in percent"""
    changed: tuple[int, int]
    """Decisions that were right and are wrong, and the other way round"""
    agreement: float
    """Share of decisions that are the same"""
    written: tuple[float, float]
    """Perplexity by the original of its own answers, and of the exported model's"""

    def problems(self) -> list[str]:
        """What is out of tolerance, in words."""
        found = []
        if not self.perplexity[1] <= self.perplexity[0] * (1 + PERPLEXITY):
            found.append(
                f"the perplexity of given answers rose from {self.perplexity[0]:.2f} to {self.perplexity[1]:.2f} "
                f"(allowed: {100 * PERPLEXITY:g} %)"
            )
        if self.accuracy[0] - self.accuracy[1] > ACCURACY and chance_agreement(*self.changed) < CHANCE:
            found.append(
                f"accuracy fell from {self.accuracy[0]:.1f} to {self.accuracy[1]:.1f}: {self.changed[0]} decisions "
                f"turned wrong and {self.changed[1]} right, which is no chance"
            )
        if self.agreement < AGREEMENT:
            found.append(f"{100 * self.agreement:.0f} % of the decisions are the same ({100 * AGREEMENT:g} % must be)")
        if not self.written[1] <= self.written[0] * (1 + WRITTEN):
            found.append(
                f"its own answers have a perplexity of {self.written[1]:.2f} by the original, whose own have "
                f"{self.written[0]:.2f} (allowed: {100 * WRITTEN:g} % more)"
            )
        return found

    def facts(self) -> dict[str, object]:
        """For export.json, with the tolerances."""
        tolerance = {
            "perplexity": PERPLEXITY,
            "accuracy_points": ACCURACY,
            "accuracy_chance": CHANCE,
            "agreement": AGREEMENT,
            "written": WRITTEN,
        }
        return asdict(self) | {"tolerance": tolerance}

    def __str__(self) -> str:
        (before, after), (was, now), (own, its) = self.perplexity, self.accuracy, self.written
        return (
            f"On {self.items} questions: perplexity {before:.2f} -> {after:.2f} ({100 * (after / before - 1):+.1f} %), "
            f"accuracy {was:.1f} -> {now:.1f}, {100 * self.agreement:.0f} % of the decisions the same; written answers "
            f"{own:.2f} -> {its:.2f} by the original."
        )


@dataclass(frozen=True)
class ModelOutput:
    """What one model says to the items."""

    nll: float
    tokens: int
    decisions: list[str]
    prompts: list[list[int]]
    """As this model's tokenizer reads them"""
    written: list[list[int]]
    """The tokens that it writes after the first of them"""


class Check:
    """The same questions to models."""

    def __init__(self, examples: Sequence[Example], form: PromptFormat) -> None:
        self.form = form
        # Every second one is asked for plain words, if there is a cue for them.
        self.examples = [
            in_style(example, "plain") if form.plain_cue and number % 2 else example
            for number, example in enumerate(examples)
        ]

    def said(self, engine: Engine) -> ModelOutput:
        """What a model says to them."""
        encoder = Encoder(engine.tokenizer, self.form)
        nll, tokens = 0.0, 0
        decisions: list[str] = []
        labels = encoder.label_ids()
        for number, example in enumerate(self.examples):
            prompt = encoder.supervised(example, "decision").prompt
            scores = engine.score(prompt, [[labels[label]] for label in DECISIONS])
            decisions.append(max(zip(DECISIONS, scores, strict=True), key=lambda pair: pair[1][0].logprob)[0])
            if number < ANSWERS:
                item = encoder.supervised(example, "answer")
                text = item.target if item.answer_cut else item.target[:-1]
                nll -= sum(one.logprob for one in engine.score(item.prompt, [text])[0])
                tokens += len(text)
        prompts = [encoder.prompt(example, "answer").prompt for example in self.examples[:WRITTEN_ITEMS]]
        return ModelOutput(nll, tokens, decisions, prompts, written_answers(engine, prompts, WRITTEN_TOKENS))

    def compare(self, before: ModelOutput, after: ModelOutput, original: Engine) -> Deviation:
        """What changed from the original's words to the exported model's; `original` judges what was written.

        Raises ModelError where the two read a prompt as different tokens.
        """
        if before.prompts != after.prompts:
            raise ModelError("The exported tokenizer reads prompts as other tokens than the original's.")
        right = [str(example.decision) for example in self.examples]
        same = sum(one == other for one, other in zip(before.decisions, after.decisions, strict=True))
        return Deviation(
            len(self.examples),
            (math.exp(before.nll / before.tokens), math.exp(after.nll / after.tokens)),
            (_accuracy(before.decisions, right), _accuracy(after.decisions, right)),
            _changed(before.decisions, after.decisions, right),
            same / len(right),
            (_likely(original, before), _likely(original, after)),
        )


def _likely(original: Engine, said: ModelOutput) -> float:
    """The perplexity of what was written, by the original."""
    total, count = 0.0, 0
    for prompt, text in zip(said.prompts, said.written, strict=True):
        total -= sum(one.logprob for one in original.score(prompt, [text])[0])
        count += len(text)
    return math.exp(total / count) if count else math.inf


def written_answers(engine: Engine, prompts: Sequence[Sequence[int]], more: int) -> list[list[int]]:
    """The greedy continuation of each prompt, as tokens. Raises what broke one off."""
    found = dict(generate_all(engine, [GenerationRequest(prompt, more) for prompt in prompts]))
    return [found[number].tokens for number in range(len(prompts))]


def chance_agreement(worse: int, better: int) -> float:
    """The probability that so many or more of the changes are for the worse, if either way is as likely."""
    count = worse + better
    ways: int = sum(math.comb(count, number) for number in range(worse, count + 1))
    return float(ways / 2**count)


def _changed(before: Sequence[str], after: Sequence[str], right: Sequence[str]) -> tuple[int, int]:
    was = [one == truth for one, truth in zip(before, right, strict=True)]
    now = [one == truth for one, truth in zip(after, right, strict=True)]
    pairs = list(zip(was, now, strict=True))
    return pairs.count((True, False)), pairs.count((False, True))


def _accuracy(said: Sequence[str], right: Sequence[str]) -> float:
    return 100 * sum(one == other for one, other in zip(said, right, strict=True)) / len(right)


COUNT = 50
SEED = 17


def items(run: Path | None) -> list[Example]:
    """Fifty examples of a run's training data; without a run, of PubMedQA's training half.

    Where neither can be had they are those of the synthetic sample, and that is said. The test items stay untouched.
    """
    if run and (run / "data" / "quality.json").is_file():
        found = [
            example for example in stored_data(run / "data").splits.train if example.decision and example.answer.strip()
        ]
        if found:
            return _some(found)
    try:
        labelled = list(pubmedqa.read(locate_source(pubmedqa.SOURCE), Rejects()))
    except DataError:
        print("PubMedQA isn't here: the export is checked on Meditune's synthetic sample instead.", file=sys.stderr)
        reader = SOURCES["sample"].reader
        assert reader is not None
        return _some([example for example in reader(locate_source("sample"), Rejects()) if example.decision])
    return _some(pubmedqa.official_split(labelled)[0])


def _some(examples: list[Example]) -> list[Example]:
    chosen = sorted(examples, key=lambda example: example.id)
    return random.Random(SEED).sample(chosen, min(COUNT, len(chosen)))
