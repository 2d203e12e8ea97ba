"""Verify that an exported model gives the same outputs as the original model.

Both models are called through the common engine interface. The check compares the likelihood of long answers, the most
likely decisions, and generated text. The original also scores the text that the exported model generates, because
scores of given texts can't reveal a wrong cache, mask or stop token. For an evidence judge, the check compares the
probabilities of labels on claims. If the judge was also trained to answer questions, both checks are made. The items
come from the run's own data, beginning with those that it wasn't trained on. Decisions are compared only if the run
was trained on decisions. For a model without a run, the items come from PubMedQA or Meditune's synthetic sample.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import takewhile
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any, cast

import yaml

from meditune.chat_template import TemplateError
from meditune.config.data_options import TASKS, PromptFormat, Task
from meditune.data.balance import in_style
from meditune.data.example import DECISIONS, LABEL, LABELS, Example
from meditune.data.prepare import stored_data
from meditune.data.readers import pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.data.sources import SOURCES, locate_source
from meditune.engines.engine import Engine, GenerationRequest, generate_all
from meditune.errors import DataError, ModelError
from meditune.evidence.support_model import ClaimCorrection, load_correction
from meditune.files import read_text
from meditune.progress import Progress, track
from meditune.prompts import Encoded, Encoder, QuestionTooLongError

PERPLEXITY = 0.02
"""Largest allowed relative increase in the perplexity of reference answers; a larger one is allowed if it isn't
significantly larger"""
ACCURACY = 1.0
"""Allowed loss of decision accuracy, in percentage points; a larger loss is allowed if it isn't significant"""
CHANCE = 0.05
"""Significance level for the loss of accuracy (McNemar's exact test, one-sided) and the increase in perplexity"""
AGREEMENT = 0.9
"""Minimum share of identical decisions; decisions that differ are near ties"""
MAX_PERPLEXITY_RISE = 0.25
"""Largest allowed relative increase in perplexity from the original's generated text to the exported model's generated
text. The original model computes both perplexities."""
COUNT, MIN_DECISIONS = 50, 10
"""Number of decisions or claims to compare; and the number of decisions in a run's data below which none is compared"""
ANSWERS, ANSWER_TOKENS = 20, 32
"""Number of long answers that are scored, and of each answer's first tokens that count"""
WRITTEN_ITEMS, WRITTEN_TOKENS = 8, 48


@dataclass(frozen=True)
class Deviation:
    """A comparison of the exported model with the original."""

    items: int
    perplexity: tuple[float, float] | None
    """Perplexity of the reference answers, under the original and under the exported model; None without answers"""
    accuracy: tuple[float, float] | None
    """Accuracy of the decisions, in percent; None, like the next two values, if decisions aren't compared"""
    changed: tuple[int, int] | None
    """Number of decisions that turned from right to wrong, and from wrong to right"""
    agreement: float | None
    """Share of identical decisions"""
    written: tuple[float, float]
    """Perplexity under the original of its own generated text, and of the exported model's generated text"""
    origin: str = ""
    """Where the items come from, in words"""
    least_rise: float | None = None
    """Lower limit of the one-sided 95% interval of the relative increase in perplexity"""

    def problems(self, looseness: float = 1.0) -> list[str]:
        """Return a description of each value outside its tolerance.

        `looseness` is a factor for the tolerances of agreement and of the reference answers' perplexity.
        """
        own, its = self.written
        found = []
        if self.perplexity:
            before, after = self.perplexity
            rise, most = after / before - 1, looseness * PERPLEXITY
            if not rise <= most and (self.least_rise is None or not self.least_rise <= most):
                found.append(
                    f"the perplexity of reference answers rose from {before:.2f} to {after:.2f}, by {100 * rise:.1f}% "
                    f"(allowed: {100 * most:g}%)"
                )
        if self.accuracy and self.changed and self.agreement is not None:
            was, now = self.accuracy
            if was - now > ACCURACY and self._chance_of_loss(self.changed) < CHANCE:
                found.append(
                    f"accuracy fell from {was:.1f} to {now:.1f}: {self.changed[0]} decisions turned wrong and "
                    f"{self.changed[1]} right, which chance doesn't explain"
                )
            least = 1 - looseness * (1 - AGREEMENT)
            if self.agreement < least:
                same = f"{100 * self.agreement:.0f}% of the decisions are the same"
                found.append(f"only {same} (at least {100 * least:g}% required)")
        if not its <= own * (1 + MAX_PERPLEXITY_RISE):
            found.append(
                f"under the original model, the exported model's answers have a perplexity of {its:.2f}, and the "
                f"original's own answers {own:.2f} (allowed: {100 * MAX_PERPLEXITY_RISE:g}% more)"
            )
        return found

    @staticmethod
    def _chance_of_loss(changed: tuple[int, int]) -> float:
        """Return the probability of at least this many changes for the worse if both directions are equally likely."""
        from scipy.stats import binomtest

        return float(binomtest(changed[0], sum(changed), alternative="greater").pvalue)

    def __str__(self) -> str:
        own, its = self.written
        parts = []
        if self.perplexity:
            before, after = self.perplexity
            parts.append(f"perplexity {before:.2f} -> {after:.2f} ({100 * (after / before - 1):+.1f}%)")
        if self.accuracy and self.agreement is not None:
            parts.append(f"accuracy {self.accuracy[0]:.1f} -> {self.accuracy[1]:.1f}")
            parts.append(f"{100 * self.agreement:.0f}% of the decisions the same")
        questions = f"{self.items} question{'s' if self.items > 1 else ''}"
        return (
            f"On {questions}{f' from {self.origin}' if self.origin else ''}: {', '.join(parts)}; perplexity of "
            f"generated answers under the original model {own:.2f} -> {its:.2f}."
        )


@dataclass(frozen=True)
class ModelOutput:
    """A model's outputs: log-probabilities of the answers' tokens, decisions, prompts, generated tokens."""

    logprobs: list[float]
    decisions: list[str]
    prompts: list[list[int]]
    generated: list[list[int]]
    own: float = math.nan
    """Perplexity of the generated text under the model itself; computed only for the original"""


class Check:
    """The questions on which models are compared. Decisions are compared for those of them that are in `decided`."""

    output, file = ModelOutput, "original.json"

    def __init__(
        self, answered: Sequence[Example], decided: Sequence[Example], form: PromptFormat, origin: str
    ) -> None:
        self.form, self.origin = form, origin
        # Every second question asks for plain words, if the format has a cue for plain words.
        both = {example.id: example for example in (*answered, *decided)}.values()
        self.examples = [
            in_style(example, "plain") if form.plain_cue and number % 2 else example
            for number, example in enumerate(both)
        ]
        ids = {example.id for example in decided}
        self.decided = [example for example in self.examples if example.id in ids]
        self._answered = [example for example in self.examples if example.answer.strip()]
        self.limits = [ANSWERS, ANSWER_TOKENS, WRITTEN_ITEMS, WRITTEN_TOKENS]

    def outputs(self, engine: Engine, label: str) -> ModelOutput:
        """Return a model's outputs for the questions, and show the progress. Questions that don't fit are left out."""
        encoder = Encoder(engine.tokenizer, self.form)
        decided = _fitting(encoder, self.decided, "decision", COUNT)
        answered = _fitting(encoder, self._answered, "answer", ANSWERS)
        prompts = [item.prompt for item in _fitting(encoder, self.examples, None, WRITTEN_ITEMS)]
        if not prompts:
            raise ModelError(
                f"The export can't be checked: none of {len(self.examples)} questions from {self.origin} fits into "
                "prompt.max_tokens. Train with a larger value."
            )
        logprobs: list[float] = []
        decisions: list[str] = []
        with Progress(label, len(decided) + len(answered) + len(prompts)) as progress:
            labels = encoder.label_ids() if decided else {}
            for item in decided:
                scores = engine.score(item.prompt, [[labels[word]] for word in DECISIONS])
                decisions.append(max(zip(DECISIONS, scores, strict=True), key=lambda pair: pair[1][0].logprob)[0])
                progress.advance()
            for item in answered:
                text = _scorable(engine.tokenizer, item.target if item.answer_cut else item.target[:-1])
                logprobs += [one.logprob for one in engine.score(item.prompt, [text])[0]] if text else []
                progress.advance()
            generated: list[list[int]] = [[] for _ in prompts]
            for number, written in generate_all(engine, [GenerationRequest(each, WRITTEN_TOKENS) for each in prompts]):
                generated[number] = written.tokens
                progress.advance()
        return ModelOutput(logprobs, decisions, prompts, generated)

    def original(self, engine: Engine) -> ModelOutput:
        """Return the outputs of the original model, and its perplexity of the text that it generated."""
        output = self.outputs(engine, "Checking the original")
        return replace(output, own=_perplexity(engine, output))

    def compare(self, before: ModelOutput, after: ModelOutput, original: Engine) -> Deviation:
        """Return the deviation of the export's outputs from the original's; `original` scores generated text."""
        pair = (before, after)
        perplexity = (_exp(before.logprobs), _exp(after.logprobs)) if before.logprobs else None
        rise = _least_rise(before.logprobs, after.logprobs)
        its = before.own if before.generated == after.generated else _perplexity(original, after)
        encoder = Encoder(original.tokenizer, self.form)
        ids = [item.id for item in _fitting(encoder, self.decided, "decision", COUNT)]
        items = len({*ids, *(item.id for item in _fitting(encoder, self._answered, "answer", ANSWERS))})
        if not ids:
            return Deviation(items, perplexity, None, None, None, (before.own, its), self.origin, rise)
        truths = {example.id: str(example.decision) for example in self.decided}
        right = [truths[each] for each in ids]
        was, now = ([one == truth for one, truth in zip(o.decisions, right, strict=True)] for o in pair)
        changes = list(zip(was, now, strict=True))
        same = sum(one == other for one, other in zip(before.decisions, after.decisions, strict=True))
        return Deviation(
            items,
            perplexity,
            (100 * sum(was) / len(right), 100 * sum(now) / len(right)),
            (changes.count((True, False)), changes.count((False, True))),
            same / len(right),
            (before.own, its),
            self.origin,
            rise,
        )


def _fitting(encoder: Encoder, examples: Sequence[Example], task: Task | None, most: int) -> list[Encoded]:
    """Return the first `most` examples that fit into the prompt and that the chat template accepts, encoded.

    Without a task, the model has to write the answer.
    """
    found: list[Encoded] = []
    for example in examples:
        if len(found) == most:
            break
        with suppress(QuestionTooLongError, TemplateError):
            found.append(encoder.supervised(example, task) if task else encoder.prompt(example, "answer"))
    return found


def _scorable(tokenizer: Any, answer: list[int]) -> list[int]:
    """Return an answer's first tokens, up to one that ends inside a character, which llama.cpp scores slowly."""
    return list(takewhile(lambda token: "\ufffd" not in tokenizer.decode([token]), answer[:ANSWER_TOKENS]))


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
                f"only {100 * self.agreement:.0f}% of the verdicts on claims are the same (at least {100 * least:g}% "
                "required)"
            )
        return found

    def __str__(self) -> str:
        return (
            f"On {self.items} claims: {100 * self.agreement:.0f}% of the verdicts the same; mean difference in the "
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
        self.origin, self.limits = OWN_DATA, [COUNT]

    def outputs(self, engine: Engine, label: str) -> ClaimOutput:
        """Return a judge's outputs for the claims that fit into the prompt. As in training, others are left out."""
        items = _fitting(Encoder(engine.tokenizer, self.form), self.examples, "claim", COUNT)
        scored = [
            engine.score(item.prompt, [[choice] for choice in item.choices])
            for item in track(items, f"{label} on claims", unit="claims")
        ]
        return ClaimOutput(
            [item.prompt for item in items], [[tokens[0].logprob for tokens in labels] for labels in scored]
        )

    def original(self, engine: Engine) -> ClaimOutput:
        """Return the outputs of the original judge."""
        return self.outputs(engine, "Checking the original")

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


OWN_DATA = "the run's data"
PUBMEDQA = "PubMedQA's training half"
SAMPLE = "Meditune's synthetic sample"
SEED = 17


def checks_of(place: Path, run: Path | None, form: PromptFormat) -> list[Check | ClaimCheck]:
    """Return the checks for a model: claims for a judge, questions for a model that answers them, or both."""
    stored = _stored(run)
    correction = load_correction(place) if place.is_dir() else None
    claims = [example for example in stored if example.label][:COUNT] if correction else []
    answered = [example for example in stored if example.answer.strip()][:COUNT]
    decided = [example for example in stored if example.decision] if run and "decision" in _tasks(run) else []
    decided = decided[:COUNT] if len(decided) >= MIN_DECISIONS or not answered else []
    checks: list[Check | ClaimCheck] = []
    if correction and claims:
        checks.append(ClaimCheck(claims, form, correction))
    if answered or decided:
        checks.append(Check(answered, decided, form, OWN_DATA))
    if not checks:
        examples, origin = _public_items()
        checks.append(Check(examples[:COUNT], examples[:COUNT], form, origin))
    return checks


CALIBRATION_ROWS, CALIBRATION_TOKENS = 32, 512
"""Number of rows for calibration, and of each row's last tokens that are used"""


def calibration_rows(run: Path | None, form: PromptFormat, tokenizer: Any) -> list[list[int]]:
    """Return tokens of training rows, with which a quantizer measures activations.

    The rows are a run's training rows of all tasks; for a model without a run, rows of the public items. The checks use
    other examples if there are enough, because they begin at the other end.
    """
    stored = stored_data(run / "data").splits.train if run and _has_data(run) else []
    examples = (_shuffled(stored) or _public_items()[0])[::-1]
    encoder, rows = Encoder(tokenizer, form), []
    for example in examples:
        kinds = {"decision": example.decision, "answer": example.answer.strip(), "claim": example.label}
        for task in (task for task, given in kinds.items() if given):
            for item in _fitting(encoder, [example], cast(Task, task), 1):
                rows.append([*item.prompt, *item.target][-CALIBRATION_TOKENS:])
        if len(rows) >= CALIBRATION_ROWS:
            break
    return rows[:CALIBRATION_ROWS]


def _exp(logprobs: list[float]) -> float:
    """Return the perplexity."""
    return math.exp(-fmean(logprobs)) if logprobs else math.inf


def _least_rise(before: list[float], after: list[float]) -> float | None:
    """Return the lower limit of the one-sided interval of the relative increase in perplexity, from paired tokens."""
    losses = [was - now for was, now in zip(before, after, strict=True)]
    if len(losses) < 2 or not all(map(math.isfinite, losses)):
        return None
    error = stdev(losses) / math.sqrt(len(losses))
    return math.exp(fmean(losses) - NormalDist().inv_cdf(1 - CHANCE) * error) - 1


def _perplexity(original: Engine, output: ModelOutput) -> float:
    pairs = zip(output.prompts, output.generated, strict=True)
    return _exp([one.logprob for prompt, text in pairs for one in original.score(prompt, [text])[0]])


def _public_items() -> tuple[list[Example], str]:
    """Return PubMedQA's training half, or else the synthetic sample, in random order, and where they come from.

    If PubMedQA isn't available, a message on stderr says so. Test items are never used.
    """
    try:
        labelled = list(pubmedqa.read(locate_source(pubmedqa.SOURCE), Rejects()))
    except DataError:
        _print_once(f"PubMedQA isn't on this machine, so the export is checked on {SAMPLE}.")
        reader = SOURCES["sample"].reader
        assert reader is not None
        examples = [example for example in reader(locate_source("sample"), Rejects()) if example.decision]
        return _shuffled(examples), SAMPLE
    return _shuffled(pubmedqa.official_split(labelled)[0]), PUBMEDQA


@cache
def _print_once(text: str) -> None:
    """Write a message to stderr the first time only: one command can make several exports."""
    print(text, file=sys.stderr)


def _stored(run: Path | None) -> list[Example]:
    """Return a run's examples in random order: those for development first, then test and training examples."""
    if run is None or not _has_data(run):
        return []
    splits = stored_data(run / "data").splits
    return [example for part in (splits.dev, splits.test, splits.train) for example in _shuffled(part)]


def _has_data(run: Path) -> bool:
    return (run / "data" / "quality.json").is_file()


def _tasks(run: Path) -> Sequence[Task]:
    """Return the tasks of a run's recipe."""
    path = run / "recipe.yaml"
    recipe = (yaml.safe_load(read_text(path)) if path.is_file() else None) or {}
    found: Sequence[Task] = (recipe.get("train") or {}).get("tasks") or TASKS
    return found


def _shuffled(examples: list[Example]) -> list[Example]:
    found = sorted(examples, key=lambda example: example.id)
    random.Random(SEED).shuffle(found)
    return found
