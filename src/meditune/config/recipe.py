"""The recipe: every option of a run with its name, type, default and description. Unknown keys are errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from meditune.config.data_options import DataSpec, PromptFormat, RetrieveSpec, Spec
from meditune.config.training_options import (
    RESULT_NEUTRAL,
    VIRTUAL,
    AddressSpec,
    DevSpec,
    MixSpec,
    ModelSpec,
    TrainSpec,
)

LeakKind = Literal[
    "group", "question", "context", "answer_in_prompt", "decision_in_prompt", "answer_in_index", "trained_on"
]

SuiteName = Literal[
    "medqa", "medmcqa", "mmlu-medical", "pubmedqa", "bioasq-yesno", "medhallu", "k-qa", "medicationqa", "healthbench"
]
SUITE_NAMES: tuple[SuiteName, ...] = get_args(SuiteName)
OPEN_SUITES: tuple[SuiteName, ...] = ("k-qa", "medicationqa", "healthbench")
"""Suites in which the model writes answers, and a judge grades these answers"""
SUITE_TOKENS = 400  # maximum length of an answer in OPEN_SUITES, in tokens


class SuiteSpec(Spec):
    """A public medical test, evaluated in addition to the run's own items. `medqa` is short for `{name: medqa}`."""

    name: SuiteName = Field(description="Name of the suite. docs/how-to/medical-suites.md describes the suites.")
    path: str | None = Field(None, min_length=1)
    """The publisher's file or folder, or a Hugging Face id; null: the folder with the suite's name in the folder that
    MEDITUNE_DATA names, or in the cache."""
    limit: int | None = Field(
        None, ge=1, description="Evaluate on a random sample of at most this many items; null: all."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in SUITE_NAMES:
            near = difflib.get_close_matches(value.lower().replace("_", "-"), SUITE_NAMES, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"the suites are {', '.join(SUITE_NAMES)}"
            raise ValueError(f"there is no suite {value!r}; {hint}")
        return {"name": value}


class EvaluateSpec(Spec):
    """The evaluation before and after training."""

    split: Literal["test", "dev"] = "test"
    """Items to evaluate on: use dev to choose settings, and test for the final result."""
    protocol: Literal["meditune", "lm-eval"] = "meditune"
    """meditune: Meditune's own prompts and metrics; lm-eval: only decisions, with the prompt and scoring of
    lm-evaluation-harness."""
    answers: int | None = Field(200, ge=1, description="Number of long answers to score (a fixed sample); null: all.")
    max_new_tokens: int = Field(96, ge=1, description="Maximum length of a generated answer in tokens.")
    no_repeat: int | None = Field(None, ge=2)
    """Length of token sequences that a generated answer never contains twice; null: off."""
    general_tokens: int = Field(20_000, ge=0)
    """Number of WikiText-2 tokens for measuring forgetting; 0: off."""
    technical_tokens: int = Field(0, ge=0)
    """Number of tokens of Python's language reference for measuring forgetting; 0: off."""
    faithfulness_model: str = Field("none", min_length=1)
    """Model that judges whether sources support an answer: the run of an evidence judge, an NLI model's folder or
    Hugging Face id, minicheck:NAME, hhem:NAME or lettucedetect:NAME. none: the lexical detector, which needs no
    model."""
    samples: int = Field(0, ge=0)
    """Number of answers to sample for each of 50 questions, to measure self-consistency; 0: off."""
    choices: int = Field(164, ge=0)
    """Number of general-knowledge questions (at most 164) for measuring forgetting; 0: off."""
    similarity: bool = True
    """Measure the semantic similarity of answers to references with a sentence model (a download of 84 MB)."""
    closed_book: bool = Field(False, description="Also evaluate without any context.")
    retrieve: RetrieveSpec = Field(default_factory=RetrieveSpec, description="Also evaluate with retrieved passages.")
    written_decisions: bool = False
    """Also generate decisions as text, and take the first yes, no or maybe in the text."""
    calibrate: Literal["none", "temperature", "bcts", "batch", "prior"] = "none"
    """Method for calibrating decisions, on the dev split or with calibration_folds. temperature scales the confidence;
    bcts adds a bias to each label, too (Alexandari et al. 2020, arXiv:1901.06852); batch removes the model's bias
    towards certain labels (Zhou et al. 2023, arXiv:2309.17249); prior does the same, and also uses the labels'
    frequencies."""
    calibration_folds: int = Field(0, ge=0)
    """Number of folds for fitting calibration and abstention to cross-validated decisions on the training items instead
    of the dev split. For each fold, a further model is trained, without the items of the fold. 0: off."""
    abstain_target: float | None = Field(None, gt=0, le=1)
    """Share of decisions that should be correct. On the dev split, Meditune determines the confidence above which this
    share of the decisions is correct. On the test split, the model abstains below this confidence. null: off."""
    safety_messages: int = Field(0, ge=0)
    """Number of messages of the safety test set, sampled from all of its categories; 0: off."""
    suites: list[SuiteSpec] = Field(default_factory=list)
    """Public medical tests to add, as names ([medqa, pubmedqa]) or as groups with the keys name, path and limit."""
    suite_judge: str | None = Field(None, min_length=1)
    """Judge of the answers to k-qa, medicationqa and healthbench: api:NAME, or a model like those of
    faithfulness_model. Only api:NAME works for healthbench."""
    suite_judge_api: AddressSpec = Field(default_factory=AddressSpec)
    """Address and prices of the suite_judge, if it is behind an API."""
    resamples: int = Field(10_000, ge=100, description="Number of bootstrap resamples for each interval.")
    allow_leakage: bool | list[LeakKind] = False
    """Continue although test items leaked, and say so in the report. true: allow all kinds of leakage; a list: allow
    only these kinds."""

    @property
    def fits_decisions(self) -> bool:
        """Return whether calibration or a threshold is fitted to decisions."""
        return self.calibrate != "none" or self.abstain_target is not None

    @property
    def fits_on_dev(self) -> bool:
        """Return whether calibration or a threshold is fitted to decisions on the dev split."""
        return self.fits_decisions and not self.calibration_folds

    @property
    def needed_splits(self) -> set[str]:
        """Return the splits without which a model can't be measured."""
        fitted_on = "train" if self.calibration_folds else "dev"
        return {self.split, *([fitted_on] if self.fits_decisions else [])}

    @property
    def open_suites(self) -> list[SuiteName]:
        """Return the recipe's suites in which the model writes answers."""
        return [suite.name for suite in self.suites if suite.name in OPEN_SUITES]

    @property
    def longest_answer(self) -> int:
        """Return the maximum length of a generated answer in tokens, including the answers to suites."""
        return max(self.max_new_tokens, SUITE_TOKENS if self.open_suites else 0)

    def suite_conflicts(self) -> Iterator[str]:
        """Yield a message for each conflict between the keys of the suites."""
        names, judge, open_suites = [suite.name for suite in self.suites], self.suite_judge, ", ".join(self.open_suites)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            yield f"evaluate.suites names {', '.join(twice)} twice; name each suite once"
        if names and self.protocol == "lm-eval":
            yield "evaluate.suites always use the prompts of lm-evaluation-harness; set evaluate.protocol to meditune"
        if open_suites and judge is None:
            yield (
                f"evaluate.suite_judge is missing: {open_suites} need{'' if ',' in open_suites else 's'} a judge of "
                "the answers; set it to the run of an evidence judge (`meditune run evidence`) or to api:NAME"
            )
        if judge is not None and not open_suites:
            yield f"evaluate.suite_judge has no effect without {', '.join(OPEN_SUITES)}; leave it out"
        if judge == "api:":
            yield "evaluate.suite_judge: add the model's name in the API after api:, for example api:gpt-4.1-mini"
        if "healthbench" in names and judge is not None and not judge.startswith("api:"):
            yield (
                "evaluate.suite_judge must be api:NAME for healthbench, because its criteria describe an answer, and "
                "an evidence judge only decides whether an answer contains a statement"
            )


class Recipe(Spec):
    """Options at the top level of a recipe."""

    name: str = Field(min_length=1, description="Name of the run in the report.")
    description: str = Field("", description="Purpose of the recipe in one sentence.")
    seed: int = Field(17, ge=0, lt=2**63)
    """Random seed for shuffling, subsets and initial adapter weights. It also selects the dev items, the test items of
    sources without an official test set (such as your own files), and the answers to score (evaluate.answers)."""
    model: ModelSpec = Field(default_factory=ModelSpec, description="Base model and adapter.")
    data: DataSpec = Field(default_factory=DataSpec, description="Training and test data.")
    prompt: PromptFormat = Field(default_factory=PromptFormat, description="Prompt wording and token budget.")
    train: TrainSpec = Field(default_factory=TrainSpec, description="Training.")
    evaluate: EvaluateSpec = Field(default_factory=EvaluateSpec, description="Evaluation.")

    @model_validator(mode="after")
    def _keys_fit_together(self) -> Recipe:
        problems = list(self._conflicts())
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def needed_splits(self) -> set[str]:
        """Return the splits without which a model can't be tuned and measured."""
        return {"train", self.evaluate.split, *([] if self._has_no_dev else ["dev"])}

    @property
    def _has_no_dev(self) -> bool:
        data = self.data
        return data.dev_share == 0 and data.fold is None and "dev" not in data.fixed_splits.values()

    @property
    def needs_full_weights(self) -> list[str]:
        """Return the recipe's settings that require all weights in each process."""
        asked = {
            f"model.strategy {self.model.strategy}": self.model.strategy in VIRTUAL,
            f"model.quantize {self.model.quantize}": self.model.quantize != "none",
            f"train.optimizer {self.train.optimizer}": self.train.optimizer != "adamw",
            "train.dev": self.train.dev.is_on,
            "train.average_last": self.train.average_last > 0,
            "train.l2_sp": self.train.l2_sp > 0,
            "train.ewc.strength": self.train.ewc.strength > 0,
        }
        return [key for key, given in asked.items() if given]

    def _conflicts(self) -> Iterator[str]:
        """Yield a message for each conflict between keys."""
        model, prompt, train, evaluate = self.model, self.prompt, self.train, self.evaluate
        yield from evaluate.suite_conflicts()
        if evaluate.samples and model.strategy in VIRTUAL:
            yield f"evaluate.samples doesn't work with the virtual tokens of {model.strategy}; set it to 0"
        if prompt.answer_tokens >= prompt.max_tokens:
            yield "prompt.answer_tokens must be smaller than prompt.max_tokens"
        if model.strategy == "full" and model.quantize != "none":
            yield (
                f"model.quantize {model.quantize} freezes the base model, but model.strategy full trains it; use "
                "model.quantize none or model.strategy lora"
            )
        if model.strategy in VIRTUAL and model.top_layers is not None:
            yield f"model.top_layers has no effect with model.strategy {model.strategy}; leave it empty (null)"
        if model.strategy == "prefix" and train.gradient_checkpointing:
            yield "train.gradient_checkpointing drops the cache that model.strategy prefix trains; set it to false"
        if train.parallel == "fsdp" and self.needs_full_weights:
            yield (
                "train.parallel fsdp shards the weights, but each process needs all of them with "
                f"{', '.join(self.needs_full_weights)}; use ddp or auto"
            )
        choosing = [name for name, on in (("keep_best", train.dev.keep_best), ("patience", train.dev.patience)) if on]
        if choosing and train.average_last:
            yield f"train.dev.{choosing[0]} can't be combined with train.average_last; set train.average_last to 0"
        if train.end_weight != 1 and "answer" not in train.tasks:
            yield "train.end_weight is for answers, but train.tasks doesn't contain answer; set train.end_weight to 1"
        if train.claim_share is not None and not {"claim"} < set(train.tasks):
            yield (
                "train.claim_share divides the loss between claims and other tasks, but train.tasks is "
                f"[{', '.join(train.tasks)}]; add the missing tasks, or leave train.claim_share out"
            )
        if train.retrieve.index is not None and not train.retrieve.share:
            yield (
                "train.retrieve.index has no effect with train.retrieve.share 0; raise train.retrieve.share, or leave "
                "train.retrieve.index out"
            )
        watched = [name for name in ("metric", "every_steps") if getattr(train.dev, name) != getattr(DevSpec(), name)]
        if watched and not train.dev.is_on:
            yield (
                f"train.dev.{watched[0]} has no effect without train.dev.patience and train.dev.keep_best; set one of "
                f"them, or leave train.dev.{watched[0]} out"
            )
        if train.objective == "sft" and train.preference.path is not None:
            yield (
                "train.preference.path has no effect with train.objective sft; set train.objective to dpo or kto, or "
                "leave train.preference.path out"
            )
        if train.objective != "sft":
            without_effect = {
                "train.dev": (train.dev.is_on, "leave it out"),
                "train.replay.share": (train.replay.share, "set it to 0"),
                "train.prompt_share": (train.prompt_share, "set it to 0"),
                "train.claim_share": (train.claim_share, "leave it out"),
                "train.end_weight": (train.end_weight != 1, "set it to 1"),
                "train.retrieve.share": (train.retrieve.share, "set it to 0"),
                "train.mix": (train.mix != MixSpec(), "leave it out"),
            }
            for key, (given, advice) in without_effect.items():
                if given:
                    yield f"{key} has no effect with train.objective {train.objective}; {advice}"
        if train.objective == "kto" and train.batch_size * train.accumulation < 2:
            yield (
                "train.objective kto compares each prompt with another row's answer, so a step needs at least two "
                "rows; raise train.batch_size or train.accumulation"
            )
        styled = [source.name for source in self.data.sources if source.style == "plain"]
        if styled and not prompt.plain_cue:
            yield f'data.sources {styled[0]} has style plain; set prompt.plain_cue, for example "In plain words:"'
        cues = {cue.strip() for cue in (prompt.question_cue, prompt.answer_cue, prompt.decision_cue)}
        if prompt.plain_cue and prompt.plain_cue.strip() in {"", *cues}:
            yield "prompt.plain_cue must differ from the other cues"
        sources = {source.name for source in self.data.sources}
        named = ", ".join(sorted(sources))
        for name in sorted(sources):
            if len({source.style for source in self.data.sources if source.name == name}) > 1:
                yield f"data.sources: all sources named {name} must have the same style"
        if evaluate.split == "dev" and evaluate.fits_on_dev:
            yield (
                "evaluate.calibrate and evaluate.abstain_target are fitted on dev, so dev can't evaluate them; "
                "set evaluate.split to test, or leave them out"
            )
        yield from self._split_conflicts()
        if self.data.fold is not None and evaluate.split == "dev" and train.dev.is_on:
            yield "train.dev would choose weights on data.fold, which evaluate.split dev evaluates; leave train.dev out"
        if train.mix.weights and train.mix.weights.keys() != sources:
            yield f"train.mix.weights must have one weight for each of data.sources ({named})"
        if unknown := sorted(set(self.data.balance.sources) - sources):
            yield f"data.balance.sources: {', '.join(unknown)} isn't among data.sources ({named})"

    def _split_conflicts(self) -> Iterator[str]:
        """Yield a message for each setting that needs a dev split or decisions that the recipe doesn't have."""
        train, evaluate = self.train, self.evaluate
        folds = evaluate.calibration_folds
        if self._has_no_dev:
            needing = {
                "train.dev": train.dev.is_on,
                "evaluate.split dev": evaluate.split == "dev",
                "the correction of claims (train.tasks)": "claim" in train.tasks,
                "evaluate.calibrate or evaluate.abstain_target without evaluate.calibration_folds": (
                    evaluate.fits_on_dev
                ),
            }
            for key in (key for key, given in needing.items() if given):
                yield f"data.dev_share is 0, so there is no dev split for {key}; raise data.dev_share"
        if folds == 1:
            yield "evaluate.calibration_folds must be 0 or at least 2"
        if folds and not evaluate.fits_decisions:
            yield (
                "evaluate.calibration_folds has no effect without evaluate.calibrate and evaluate.abstain_target; "
                "leave it out"
            )
        if folds and (train.objective != "sft" or "decision" not in train.tasks):
            yield (
                "evaluate.calibration_folds needs training on decisions: train.objective sft, and decision in "
                "train.tasks; set it to 0"
            )
        if folds and self.data.balance.by == "decision":
            yield (
                "evaluate.calibration_folds can't be combined with data.balance.by decision, which changes how "
                "frequent each decision is; set evaluate.calibration_folds to 0"
            )
        if folds and evaluate.protocol == "lm-eval":
            yield "evaluate.calibration_folds has no effect with evaluate.protocol lm-eval; leave it out"


API_NEUTRAL = frozenset({"prices", "concurrency"})  # keys of an API's address that don't affect the result
NEUTRAL = frozenset(
    [
        ("description",),
        *(("train", name) for name in RESULT_NEUTRAL),
        *((*group, name) for group in (("model", "api"), ("evaluate", "suite_judge_api")) for name in API_NEUTRAL),
    ]
)
"""The keys that don't affect the result"""


def what_counts(recipe: Recipe) -> dict[str, Any]:
    """Return the resolved recipe as plain values, without keys that don't affect the result."""
    excluded: dict[str, Any] = {}
    for *groups, name in NEUTRAL:
        within = excluded
        for group in groups:
            within = within.setdefault(group, {})
        within[name] = True
    return recipe.model_dump(mode="json", exclude=excluded)
