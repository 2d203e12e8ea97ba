"""Verify that an exported model gives the same outputs as the original model.

Both models are called through the common engine interface. The check compares the likelihood of long answers, the most
likely decisions, and generated text. The original also scores the text that the exported model generates, because
scores of given texts can't reveal a wrong cache, mask or stop token. For an evidence judge, the check compares the
probabilities of labels on claims. If the judge was also trained to answer questions, both checks are made. All items
come from training data.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from meditune.config.data_options import PromptFormat
from meditune.data.balance import in_style
from meditune.data.example import DECISIONS, LABEL, LABELS, Example
from meditune.data.prepare import stored_data
from meditune.data.readers import pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.data.sources import SOURCES, locate_source
from meditune.engines.engine import Engine, GenerationRequest, generate_all
from meditune.errors import DataError
from meditune.evidence.support_model import ClaimCorrection, load_correction
from meditune.prompts import Encoder, QuestionTooLongError

PERPLEXITY = 0.02
"""Largest allowed relative increase in the perplexity of reference answers"""
ACCURACY = 1.0
"""Allowed loss of decision accuracy, in percentage points; a larger loss is allowed if it isn't significant"""
CHANCE = 0.05
"""Significance level for the loss of accuracy (McNemar's exact test, one-sided)"""
AGREEMENT = 0.9
"""Minimum share of identical decisions; decisions that differ are near ties"""
MAX_PERPLEXITY_RISE = 0.25
"""Largest allowed relative increase in perplexity from the original's generated text to the exported model's generated
text. The original model computes both perplexities."""
ANSWERS = 20
"""Number of items whose long answers are scored; decisions are made for all items"""
WRITTEN_ITEMS, WRITTEN_TOKENS = 8, 48


@dataclass(frozen=True)
class Deviation:
    """A comparison of the exported model with the original."""

    items: int
    perplexity: tuple[float, float]
    """Perplexity of the reference answers, under the original and under the exported model"""
    accuracy: tuple[float, float]
    """Accuracy of the decisions, in percent"""
    changed: tuple[int, int]
    """Number of decisions that turned from right to wrong, and from wrong to right"""
    agreement: float
    """Share of identical decisions"""
    written: tuple[float, float]
    """Perplexity under the original of its own generated text, and of the exported model's generated text"""

    def problems(self, looseness: float = 1.0) -> list[str]:
        """Return a description of each value outside its tolerance.

        `looseness` is a factor for the tolerances of agreement and of the reference answers' perplexity.
        """
        (before, after), (was, now), (own, its) = self.perplexity, self.accuracy, self.written
        least = 1 - looseness * (1 - AGREEMENT)
        found = []
        if not after <= before * (1 + looseness * PERPLEXITY):
            allowed = f"(allowed: {100 * looseness * PERPLEXITY:g} %)"
            found.append(f"the perplexity of reference answers rose from {before:.2f} to {after:.2f} {allowed}")
        if was - now > ACCURACY and self._chance_of_loss() < CHANCE:
            found.append(
                f"accuracy fell from {was:.1f} to {now:.1f}: {self.changed[0]} decisions turned wrong and "
                f"{self.changed[1]} right, which chance doesn't explain"
            )
        if self.agreement < least:
            same = f"{100 * self.agreement:.0f} % of the decisions are the same"
            found.append(f"only {same} (at least {100 * least:g} % required)")
        if not its <= own * (1 + MAX_PERPLEXITY_RISE):
            found.append(
                f"under the original model, the exported model's answers have a perplexity of {its:.2f}, and the "
                f"original's own answers {own:.2f} (allowed: {100 * MAX_PERPLEXITY_RISE:g} % more)"
            )
        return found

    def _chance_of_loss(self) -> float:
        """Return the probability of at least this many changes for the worse if both directions are equally likely."""
        from scipy.stats import binomtest

        return float(binomtest(self.changed[0], sum(self.changed), alternative="greater").pvalue)

    def __str__(self) -> str:
        (before, after), (was, now), (own, its) = self.perplexity, self.accuracy, self.written
        return (
            f"On {self.items} questions: perplexity {before:.2f} -> {after:.2f} ({100 * (after / before - 1):+.1f} %), "
            f"accuracy {was:.1f} -> {now:.1f}, {100 * self.agreement:.0f} % of the decisions the same; perplexity of "
            f"generated answers under the original model {own:.2f} -> {its:.2f}."
        )


@dataclass(frozen=True)
class ModelOutput:
    """A model's outputs: negative log-likelihood and number of answer tokens, decisions, prompts, generated tokens."""

    nll: float
    tokens: int
    decisions: list[str]
    prompts: list[list[int]]
    generated: list[list[int]]


class Check:
    """The questions on which models are compared."""

    output, file = ModelOutput, "original.json"

    def __init__(self, examples: Sequence[Example], form: PromptFormat) -> None:
        self.form = form
        # Every second question asks for plain words, if the format has a cue for plain words.
        self.examples = [
            in_style(example, "plain") if form.plain_cue and number % 2 else example
            for number, example in enumerate(examples)
        ]

    def outputs(self, engine: Engine) -> ModelOutput:
        """Return a model's outputs for the questions."""
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
        written = dict(generate_all(engine, [GenerationRequest(prompt, WRITTEN_TOKENS) for prompt in prompts]))
        generated = [written[number].tokens for number in range(len(prompts))]
        return ModelOutput(nll, tokens, decisions, prompts, generated)

    def compare(self, before: ModelOutput, after: ModelOutput, original: Engine) -> Deviation:
        """Return the deviation of the export's outputs from the original's; `original` scores generated text."""
        right = [str(example.decision) for example in self.examples]
        was, now = ([one == truth for one, truth in zip(o.decisions, right, strict=True)] for o in (before, after))
        changes = list(zip(was, now, strict=True))
        same = sum(one == other for one, other in zip(before.decisions, after.decisions, strict=True))
        return Deviation(
            len(right),
            (math.exp(before.nll / before.tokens), math.exp(after.nll / after.tokens)),
            (100 * sum(was) / len(right), 100 * sum(now) / len(right)),
            (changes.count((True, False)), changes.count((False, True))),
            same / len(right),
            (_perplexity(original, before), _perplexity(original, after)),
        )


CLAIM_DIFFERENCE = 0.05
"""Largest allowed mean difference between the probabilities of support from a judge and from its export"""
MAX_CLAIM_TOLERANCE_FACTOR = 2.0
"""Upper limit of the factor for a judge's tolerances, even for coarse number formats"""


@dataclass(frozen=True)
class ClaimDeviation:
    """A comparison of an exported judge with the original on claims."""

    items: int
    agreement: float
    """Share of claims with the same verdict from both (supported or not, at the judge's threshold)"""
    difference: float
    """Mean absolute difference between the probabilities of support"""
    largest: float
    """Largest difference between the two probabilities of any label"""

    def problems(self, looseness: float = 1.0) -> list[str]:
        """Return a description of each value outside its tolerance. `looseness` is a factor for the tolerances."""
        found = []
        factor = min(looseness, MAX_CLAIM_TOLERANCE_FACTOR)
        difference, least = factor * CLAIM_DIFFERENCE, 1 - factor * (1 - AGREEMENT)
        if not self.difference <= difference:
            found.append(
                f"the probabilities that claims are supported differ by {self.difference:.3f} on average (allowed: "
                f"{difference:g})"
            )
        if self.agreement < least:
            found.append(
                f"only {100 * self.agreement:.0f} % of the verdicts on claims are the same (at least {100 * least:g} % "
                "required)"
            )
        return found

    def __str__(self) -> str:
        return (
            f"On {self.items} claims: {100 * self.agreement:.0f} % of the verdicts the same; mean difference in the "
            f"probability of support {self.difference:.3f}; largest difference in a label's probability "
            f"{self.largest:.3f}."
        )


@dataclass(frozen=True)
class ClaimOutput:
    """A judge's prompts for the claims, and the log-probabilities of the labels' words in the order of LABELS."""

    prompts: list[list[int]]
    logprobs: list[list[float]]


class ClaimCheck:
    """The claims on which judges are compared."""

    output, file = ClaimOutput, "original-claims.json"

    def __init__(self, examples: Sequence[Example], form: PromptFormat, correction: ClaimCorrection) -> None:
        # All labels are compared for every claim, even if its source uses only two.
        self.examples = [example.model_copy(update={"meta": {LABEL: LABELS[0]}}) for example in examples]
        self.form, self.correction = form, correction

    def outputs(self, engine: Engine) -> ClaimOutput:
        """Return a judge's outputs for the claims that fit into the prompt. As in training, others are left out."""
        encoder = Encoder(engine.tokenizer, self.form)
        items = []
        for example in self.examples:
            with suppress(QuestionTooLongError):
                items.append(encoder.supervised(example, "claim"))
        scored = [engine.score(item.prompt, [[choice] for choice in item.choices]) for item in items]
        return ClaimOutput(
            [item.prompt for item in items], [[tokens[0].logprob for tokens in labels] for labels in scored]
        )

    def compare(self, before: ClaimOutput, after: ClaimOutput, _: Engine) -> ClaimDeviation:
        """Return the deviation of the exported judge's outputs from the original's."""
        was, now = (
            [self.correction.probabilities(dict(zip(LABELS, each, strict=True))) for each in output.logprobs]
            for output in (before, after)
        )
        pairs = list(zip(was, now, strict=True))
        least = self.correction.threshold
        same = sum((one["supported"] >= least) == (other["supported"] >= least) for one, other in pairs)
        return ClaimDeviation(
            len(pairs),
            same / len(pairs),
            fmean(abs(one["supported"] - other["supported"]) for one, other in pairs),
            max(abs(one[label] - other[label]) for one, other in pairs for label in LABELS),
        )


def checks_of(place: Path, run: Path | None, form: PromptFormat) -> list[Check | ClaimCheck]:
    """Return the checks for a model: claims for a judge, questions for a model that answers them, or both."""
    correction = load_correction(place) if place.is_dir() else None
    claims = _stored(run, lambda example: bool(example.label)) if correction else []
    if not (correction and claims):
        return [Check(items(run), form)]
    answered = _stored(run, _is_answered)
    return [ClaimCheck(_some(claims), form, correction), *([Check(_some(answered), form)] if answered else [])]


def _perplexity(original: Engine, output: ModelOutput) -> float:
    total, count = 0.0, 0
    for prompt, text in zip(output.prompts, output.generated, strict=True):
        total -= sum(one.logprob for one in original.score(prompt, [text])[0])
        count += len(text)
    return math.exp(total / count) if count else math.inf


COUNT = 50
SEED = 17


def items(run: Path | None) -> list[Example]:
    """Return up to fifty examples of a run's training data or, without a run, of PubMedQA's training half.

    If neither is available, the examples come from the synthetic sample, and a message on stderr says so. Test items
    are never used.
    """
    if found := _stored(run, _is_answered):
        return _some(found)
    try:
        labelled = list(pubmedqa.read(locate_source(pubmedqa.SOURCE), Rejects()))
    except DataError:
        print(
            "PubMedQA isn't on this machine, so the export is checked on Meditune's synthetic sample.",
            file=sys.stderr,
        )
        reader = SOURCES["sample"].reader
        assert reader is not None
        return _some([example for example in reader(locate_source("sample"), Rejects()) if example.decision])
    return _some(pubmedqa.official_split(labelled)[0])


def _is_answered(example: Example) -> bool:
    return bool(example.decision and example.answer.strip())


def _stored(run: Path | None, wanted: Callable[[Example], bool]) -> list[Example]:
    if run is None or not (run / "data" / "quality.json").is_file():
        return []
    return [example for example in stored_data(run / "data").splits.train if wanted(example)]


def _some(examples: list[Example]) -> list[Example]:
    chosen = sorted(examples, key=lambda example: example.id)
    return random.Random(SEED).sample(chosen, min(COUNT, len(chosen)))
