"""Every option of a run, declared once: its name, type, default and one-line meaning.

The command line's `--set`, the YAML files, `meditune recipe show` and docs/reference/recipes.md all come from these
classes. Unknown keys are errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from meditune.config.data_options import (
    CONTEXTS,
    TASKS,
    BalanceSpec,
    DataSpec,
    Incomplete,
    PhiAction,
    PhiSpec,
    PromptFormat,
    QualityRules,
    QualitySpec,
    RetrieveSpec,
    SearchedSpec,
    SourceSpec,
    Spec,
    Style,
    Task,
    TrainRetrieveSpec,
)
from meditune.config.training_options import (
    CHANGES_NOTHING,
    CORRUPTIONS,
    VIRTUAL,
    ApiSpec,
    Corruption,
    DevMetric,
    DevSpec,
    EwcSpec,
    LoraSpec,
    MixSpec,
    ModelSpec,
    Objective,
    OptimizerName,
    PairSource,
    PreferenceSpec,
    PruneSpec,
    Quantize,
    RatedSpec,
    ReplaySpec,
    SampledSpec,
    Strategy,
    TrackerName,
    TrainSpec,
)

__all__ = [
    "CHANGES_NOTHING",
    "CONTEXTS",
    "CORRUPTIONS",
    "TASKS",
    "VIRTUAL",
    "ApiSpec",
    "BalanceSpec",
    "Corruption",
    "DataSpec",
    "DevMetric",
    "DevSpec",
    "EvaluateSpec",
    "EwcSpec",
    "Incomplete",
    "LeakKind",
    "LoraSpec",
    "MixSpec",
    "ModelSpec",
    "Objective",
    "OptimizerName",
    "PairSource",
    "PhiAction",
    "PhiSpec",
    "PreferenceSpec",
    "PromptFormat",
    "PruneSpec",
    "QualityRules",
    "QualitySpec",
    "Quantize",
    "RatedSpec",
    "Recipe",
    "ReplaySpec",
    "RetrieveSpec",
    "SampledSpec",
    "SearchedSpec",
    "SourceSpec",
    "Spec",
    "Strategy",
    "Style",
    "Task",
    "TrackerName",
    "TrainRetrieveSpec",
    "TrainSpec",
    "plain",
]


LeakKind = Literal[
    "group", "question", "context", "answer_in_prompt", "decision_in_prompt", "answer_in_index", "trained_on"
]


class EvaluateSpec(Spec):
    """What is measured before and after."""

    split: Literal["test", "dev"] = Field(
        "test", description="Items measured on: settings are chosen on dev, the test set is for the final figure."
    )
    protocol: Literal["meditune", "lm-eval"] = Field(
        "meditune",
        description="lm-eval measures decisions only, with the prompt and scoring of lm-evaluation-harness.",
    )
    answers: int | None = Field(
        200, ge=1, description="Long answers are scored on a fixed, seeded subset of this many; all when empty."
    )
    max_new_tokens: int = Field(96, ge=1, description="Longest generated answer.")
    no_repeat: int | None = Field(
        None, ge=2, description="No sequence of so many tokens comes twice in a generated answer; empty: any may."
    )
    general_tokens: int = Field(
        20_000, ge=0, description="Tokens of WikiText-2 that measure forgetting; 0 leaves it out."
    )
    technical_tokens: int = Field(
        0, ge=0, description="Tokens of Python's language reference that measure forgetting, too; 0 leaves it out."
    )
    faithfulness_model: str = Field(
        "none",
        min_length=1,
        description="Model that judges whether sources support an answer: an NLI model's folder or hub id, "
        "lettucedetect:NAME or hhem:NAME; none leaves it to the detector that needs no model.",
    )
    samples: int = Field(
        0,
        ge=0,
        description="Answers written by chance to each of some questions, for self-consistency; 0 leaves it out.",
    )
    sampled_answers: int = Field(50, ge=1, description="Questions that are answered by chance, a seeded subset.")
    choices: int = Field(
        164, ge=0, description="Questions of general knowledge, of 164, that measure forgetting; 0 leaves it out."
    )
    similarity: bool = Field(
        True, description="Similarity of answers to references in meaning, by a sentence model (84 MB, fetched once)."
    )
    closed_book: bool = Field(
        False, description="Also decide and answer without any context: what the model knows by heart."
    )
    retrieve: RetrieveSpec = Field(
        default_factory=RetrieveSpec, description="Also decide and answer from passages that are found."
    )
    written_decisions: bool = Field(
        False, description="Also let decisions be written, and read the first yes, no or maybe of the words."
    )
    calibrate: Literal["none", "temperature", "batch", "prior"] = Field(
        "none",
        description="Correct decisions by what dev shows: how sharp probabilities are (temperature), which labels the "
        "model leans to (batch, Zhou et al. 2023, arXiv:2309.17249), or that and how often each is right (prior).",
    )
    abstain_target: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Find on dev the confidence from which this share of decisions is right, and try it on the test.",
    )
    safety_messages: int = Field(
        0, ge=0, description="Messages of the safety battery, a seeded choice over its categories; 0 leaves it out."
    )
    resamples: int = Field(10_000, ge=100, description="Bootstrap resamples behind each interval.")
    batch_tokens: int = Field(1024, ge=64, description="Tokens in one forward pass.")
    allow_leakage: bool | list[LeakKind] = Field(
        False, description="Go on where test items leaked (all kinds, or these), and mark the report."
    )

    @property
    def fits_on_dev(self) -> bool:
        """Whether something is fitted to decisions on the dev split."""
        return self.calibrate != "none" or self.abstain_target is not None


class Recipe(Spec):
    """A whole run."""

    name: str = Field(min_length=1, description="Shown in the report.")
    description: str = Field("", description="One sentence on what the recipe is for.")
    seed: int = Field(17, ge=0, description="Fixes shuffles, subsets and initial adapter weights.")
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
    def needs_whole_weights(self) -> list[str]:
        """The keys with which a process must hold all weights."""
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
        """Each rule between keys that is broken, in a line of its own."""
        model = self.model
        if self.evaluate.samples and model.strategy in VIRTUAL:
            yield (
                f"evaluate.samples can't be written with model.strategy {model.strategy}, whose virtual tokens need a "
                "decoding of their own; set it to 0"
            )
        if self.prompt.answer_tokens >= self.prompt.max_tokens:
            yield "prompt.answer_tokens must be smaller than prompt.max_tokens"
        if model.strategy == "full" and model.quantize != "none":
            yield (
                f"model.quantize {model.quantize} freezes the base model, and model.strategy full trains it; take "
                "quantize none, or lora"
            )
        if model.strategy in VIRTUAL and model.top_layers is not None:
            yield (
                f"model.top_layers has no meaning with model.strategy {model.strategy}, which trains no layer; leave "
                "it empty (null)"
            )
        if model.strategy == "prefix" and self.train.gradient_checkpointing:
            yield (
                "train.gradient_checkpointing drops the cache that model.strategy prefix trains; switch it off, or "
                "take prompt"
            )
        if self.train.parallel == "fsdp" and self.needs_whole_weights:
            yield (
                "train.parallel fsdp spreads the weights, which must be whole with "
                f"{', '.join(self.needs_whole_weights)}; take ddp or auto"
            )
        if self.train.dev.keep_best and self.train.average_last:
            yield (
                "train.dev.keep_best and train.average_last both choose the weights that training ends with; set "
                "train.average_last to 0, or leave keep_best out"
            )
        if self.train.dev.patience is not None and self.train.average_last:
            yield (
                "train.dev.patience may end training before the last steps, whose weights train.average_last averages; "
                "set train.average_last to 0, or leave patience out"
            )
        if self.train.end_weight != 1 and "answer" not in self.train.tasks:
            yield "train.end_weight is of answers, which train.tasks doesn't name; set it to 1"
        if self.train.objective != "sft":
            if self.train.dev.is_on:
                yield f"train.dev has no meaning with train.objective {self.train.objective}; leave it out"
            if self.train.replay.share:
                yield f"train.replay.share has no meaning with train.objective {self.train.objective}; set it to 0"
            if self.train.prompt_share:
                yield f"train.prompt_share has no meaning with train.objective {self.train.objective}; set it to 0"
            if self.train.end_weight != 1:
                yield f"train.end_weight has no meaning with train.objective {self.train.objective}; set it to 1"
            if self.train.retrieve.share:
                yield f"train.retrieve.share has no meaning with train.objective {self.train.objective}; set it to 0"
            if self.data.balance.weights:
                yield (
                    f"data.balance.weights has no meaning with train.objective {self.train.objective}; take a cap or a "
                    "share"
                )
            if self.train.mix != MixSpec():
                yield f"train.mix has no meaning with train.objective {self.train.objective}; leave it out"
        styled = [source.name for source in self.data.sources if source.style == "plain"]
        if styled and not self.prompt.plain_cue:
            yield (
                f"data.sources {styled[0]} has the style plain, and the prompt has no cue that asks for plain words; "
                'set prompt.plain_cue, such as "In plain words:"'
            )
        cues = [self.prompt.question_cue, self.prompt.answer_cue, self.prompt.decision_cue]
        if self.prompt.plain_cue and self.prompt.plain_cue.strip() in ["", *(cue.strip() for cue in cues)]:
            yield "prompt.plain_cue must differ from the other cues, or it asks for nothing of its own"
        for name in sorted({source.name for source in self.data.sources}):
            if len({source.style for source in self.data.sources if source.name == name}) > 1:
                yield f"data.sources: all that are called {name} must have the same style"
        if self.evaluate.split == "dev" and self.evaluate.fits_on_dev:
            yield (
                "evaluate.calibrate and evaluate.abstain_target are fitted on dev, so they can't be measured there; "
                "set evaluate.split to test, or leave them out"
            )
        if self.data.fold is not None and self.evaluate.split == "dev" and self.train.dev.is_on:
            yield (
                "train.dev chooses by what evaluate.split dev measures, the fold that data.fold holds out; leave "
                "train.dev out"
            )
        weights, sources = self.train.mix.weights, {source.name for source in self.data.sources}
        if weights and weights.keys() != sources:
            yield f"train.mix.weights must have one weight for each of data.sources ({', '.join(sorted(sources))})"
        order = self.train.mix.curriculum if isinstance(self.train.mix.curriculum, list) else []
        chosen = {"train.mix.quota": list(self.train.mix.quota), "train.mix.curriculum": order}
        for key, names in (chosen | {"data.balance.sources": self.data.balance.sources}).items():
            unknown = sorted(set(names) - sources)
            if unknown:
                yield (f"{key}: {', '.join(unknown)} isn't among data.sources ({', '.join(sorted(sources))})")
        if len(set(order)) < len(order) or order == [] == self.train.mix.curriculum:
            yield "train.mix.curriculum must name sources, each once, or be shortest_first, longest_first or none"
        mixed = [key for key in ("weights", "temperature", "quota") if getattr(self.train.mix, key)]
        if self.data.balance.weights and mixed:
            yield (
                f"data.balance.weights and train.mix.{mixed[0]} both say how often rows come; leave one of them out, "
                "or take data.balance.cap or share"
            )


def plain(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as plain values, in declared order."""
    return recipe.model_dump(mode="json")


def what_counts(recipe: Recipe) -> dict[str, Any]:
    """The same without the keys that change nothing."""
    return recipe.model_dump(mode="json", exclude={"train": set(CHANGES_NOTHING)})
