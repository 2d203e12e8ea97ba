"""Recipe options under `data`, `prompt`, `train.retrieve` and `evaluate.retrieve`, and the base class of all groups."""

from __future__ import annotations

import difflib
from typing import Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Spec(BaseModel):
    """A group of recipe options. Each option is described in its Field or in the docstring after it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


_DROP = ("drop", "flag", "off")
_MEND = ("mend", *_DROP)
_REPEATED = ("keep", "group", "merge", "off")


class QualityRule(NamedTuple):
    """A rule of quality control: its default action, its allowed actions and its description."""

    default: str
    actions: tuple[str, ...]
    description: str


QUALITY_RULES: dict[str, QualityRule] = {
    "encoding": QualityRule("mend", _MEND, "Wrongly decoded text (Ã© for é)."),
    "layout": QualityRule("mend", _MEND, "Leftovers of page layout: broken lines, merged lists, stray spaces."),
    "boilerplate": QualityRule("mend", _MEND, 'Web page text around the answer ("Key Points", "click here").'),
    "language": QualityRule("drop", _DROP, "An answer in a language that isn't in data.quality.languages."),
    "not_a_question": QualityRule("flag", _DROP, "A question that asks nothing."),
    "not_medical": QualityRule("flag", _DROP, "A row without medical terms."),
    "too_short": QualityRule("flag", _DROP, "An answer of fewer than 3 words."),
    "too_long": QualityRule("flag", _DROP, "An answer of more than 2,000 words."),
    "truncated": QualityRule("flag", _DROP, "An answer that ends mid-sentence."),
    "off_topic": QualityRule("flag", _DROP, "An answer that shares no content word with its question."),
    "exact_duplicate": QualityRule("drop", _DROP, "A row that equals another row, apart from case and punctuation."),
    "near_duplicate": QualityRule(
        "drop", _DROP, "A row with the same question and nearly the same answer as another row."
    ),
    "cross_source": QualityRule("drop", _DROP, "A row that (nearly) repeats a row of a source listed earlier."),
    "cross_split": QualityRule("drop", _DROP, "A training row that (nearly) repeats a test or development item."),
    "repeated_question": QualityRule(
        "keep", _REPEATED, "A question that occurs in several rows, with different answers."
    ),
}
"""Rules of quality control by name, in the order in which they are applied"""


class QualitySpec(Spec):
    """Quality control of the rows before they are split."""

    rules: dict[str, str] = Field(default_factory=dict)
    """Actions to use instead of the rules' default actions, for example {too_short: drop}. The actions are drop (leave
    the row out), mend (correct it), flag (keep and count it) and off (disable the rule), and, for repeated_question,
    keep, group, merge and off. docs/explanation/data-preparation.md lists the rules with their actions."""
    languages: list[str] = Field(default_factory=lambda: ["en"], min_length=1)
    """Allowed languages of answers, as ISO 639-1 codes."""
    keep: list[str] = Field(default_factory=list)
    """Ids of rows that quality control neither drops nor changes."""

    @field_validator("rules")
    @classmethod
    def _are_known(cls, rules: dict[str, str]) -> dict[str, str]:
        """Return the actions that differ from the default, in the order of QUALITY_RULES."""
        for name, action in rules.items():
            if name not in QUALITY_RULES:
                near = difflib.get_close_matches(name, QUALITY_RULES, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"the rules are {', '.join(QUALITY_RULES)}"
                raise ValueError(f"data.quality.rules.{name}: there is no such rule; {hint}")
            if action not in QUALITY_RULES[name].actions:
                allowed = ", ".join(QUALITY_RULES[name].actions)
                raise ValueError(f"data.quality.rules.{name}: expected one of {allowed}, found {action!r}")
        return {
            name: rules[name] for name, rule in QUALITY_RULES.items() if rules.get(name, rule.default) != rule.default
        }

    def action(self, rule: str) -> str:
        """Return the action for rows to which the rule applies."""
        return self.rules.get(rule, QUALITY_RULES[rule].default)


CONTEXTS = "contexts"  # the value of `index` for searching the contexts of the run's own examples


class SearchedSpec(Spec):
    """The collection to search."""

    index: str | None = Field(None, min_length=1)
    """Index to search: an index built by `meditune index build`, or contexts. With contexts, BM25 searches the contexts
    of the run's own examples in memory."""


class RetrieveSpec(SearchedSpec):
    """Additional evaluation with retrieved passages; off if `index` is null."""

    k: int = Field(5, ge=1, le=100, description="Maximum number of retrieved documents in the prompt.")


class TrainRetrieveSpec(SearchedSpec):
    """Training with retrieved passages: an example's own passage among irrelevant passages.

    The method follows RAFT (Zhang et al. 2024, arXiv:2403.10131): the prompt of an example with retrieved passages
    contains three passages in random order. In a fifth of these prompts, the example's own passage is missing. If
    `index` is null, Meditune searches the contexts of the run's examples. It never uses passages of dev and test items.
    """

    share: float = Field(0.0, ge=0, le=1, description="Share of training examples that get retrieved passages; 0: off.")


Kind = Literal[
    "name", "date", "age", "phone", "fax", "email", "url", "ip", "ssn", "mrn", "health_plan", "account", "licence",
    "vehicle", "device", "address", "city", "zip", "hospital", "organization", "id", "bracket",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
"""The textual identifiers of Safe Harbor (45 CFR 164.514(b)(2)), names of hospitals and other organizations, and
MIMIC's brackets"""


Task = Literal["answer", "decision", "claim"]
Style = Literal["plain", "expert"]
Thoughts = Literal["strip", "keep"]
TASKS: tuple[Task, ...] = ("decision", "answer", "claim")
BalanceBy = Literal[
    "source",
    "collection",
    "decision",
    "label",
    "question_type",
    "focus",
    "subject",
    "semantic_type",
    "year",
    "reading_grade",
]
"""Dimensions of `meditune.data.diversity`"""


class SourceSpec(Spec):
    """One source of examples. N is its position in the list, counted from 0."""

    name: str = Field(min_length=1)
    """Name of a known source, such as pubmedqa or scifact; or own, for your own file. If you have several files, name
    them own/NAME, for example own/trials."""
    path: str | None = None
    """File or folder of the source. null: read the source from the folder that the environment variable MEDITUNE_DATA
    names or from the cache, or download it."""
    fields: dict[str, str] = Field(default_factory=dict)
    """For your own files: the column from which each field of an example is read. For example, {question: prompt} reads
    the question from the column prompt."""
    labels: dict[str, Literal["supported", "refuted", "not_enough_information"]] = Field(default_factory=dict)
    """For your own files of claims: the meaning of each label in the file, for example {SUPPORTS: supported}."""
    split: Literal["train", "dev", "test"] | None = None
    """Split for all rows of this source; null: data.split decides."""
    limit: int | None = Field(None, ge=1, description="Use a random sample of at most this many examples; null: all.")
    licence: str | None = None
    """Licence of your own files, for example CC BY 4.0; a column named licence takes precedence."""
    citation: str | None = Field(None, description="Citation or address of your own files.")
    style: Style = "expert"
    """Cue before the answers of this source. expert: always prompt.answer_cue. plain: in the evaluation,
    prompt.plain_cue; in training, prompt.plain_cue before answers up to the reading grade data.plain_grade, and
    prompt.answer_cue before harder answers."""
    thoughts: Thoughts = "strip"
    """For your own conversations: strip or keep the text between `<think>` and `</think>` in assistant turns."""
    restricted: bool = False
    """Never send this source's rows to an API, and never upload them. MIMIC-III is always restricted."""

    @property
    def is_own(self) -> bool:
        """Return whether the source is the user's own file or a data set on the hub."""
        return self.name == "own" or self.name.startswith("own/")


class BalanceSpec(Spec):
    """Rebalancing of the training examples with a maximum number of examples per group."""

    by: BalanceBy | None = Field(None, description="Property that defines the groups; null: nothing is rebalanced.")
    cap: int | None = Field(None, ge=1)
    """Maximum number of training examples per group. From a larger group, a random sample is used."""
    sources: list[str] = Field(
        default_factory=list, description="Sources to rebalance; if the list is empty, all sources."
    )

    @model_validator(mode="after")
    def _is_complete(self) -> BalanceSpec:
        if self.by is None and (self.cap or self.sources):
            raise ValueError(
                f"data.balance.{'cap' if self.cap else 'sources'} needs data.balance.by: source, decision, "
                "question_type ..."
            )
        if self.by is not None and self.cap is None:
            raise ValueError("data.balance.by needs data.balance.cap")
        return self


PhiAction = Literal["report", "mask", "surrogate", "refuse", "off"]


class PhiSpec(Spec):
    """How patients' identifiers (PHI) in the data are found and treated.

    docs/how-to/find-identifiers.md describes which identifiers are found.
    """

    action: PhiAction = "report"
    """report: count identifiers; mask: replace them with placeholders such as [NAME]; surrogate: replace them with
    invented identifiers; refuse: stop with an error; off: don't search for identifiers."""
    kinds: list[Kind] = Field(
        default_factory=list, description="Kinds of identifiers to search for; if the list is empty, all kinds."
    )
    engine: Literal["rules", "presidio"] = "rules"
    """Detector of identifiers; presidio needs the installation extra `phi` and is much slower."""


class DataSpec(Spec):
    """The data for training and testing."""

    sources: list[SourceSpec] = Field(default_factory=lambda: [SourceSpec(name="pubmedqa")], min_length=1)
    """Sources of examples."""
    split: Literal["official", "group", "newest"] = "official"
    """official: each source's published test set, or, for sources without one, the split group; group: a random split
    that keeps related examples together; newest: test on the publications of the most recent years."""
    fold: int | None = Field(None, ge=0, lt=10)
    """Number (0 to 9) of PubMedQA's fold to use as the dev split; the other nine folds are the training split."""
    dev_share: float = Field(0.1, ge=0, lt=0.5)
    """Share of the non-test examples to use as the dev split; 0: no dev split, so training uses these examples, too."""
    test_share: float = Field(0.2, gt=0, lt=0.9)
    """Share of the examples to use for testing; if split is official, it has no effect on sources with an official test
    set."""
    quality: QualitySpec = Field(default_factory=QualitySpec, description="Quality control.")
    max_reading_grade: float | None = Field(None, ge=0)
    """Maximum Flesch-Kincaid grade of training answers; null: no limit. A row with a harder answer keeps only its
    decision, or is dropped if it has no decision. The dev and test splits don't change."""
    plain_grade: float = Field(9.0, ge=0)
    """Maximum Flesch-Kincaid grade of plain answers, for sources whose style is plain."""
    balance: BalanceSpec = Field(default_factory=BalanceSpec, description="Rebalancing of the training examples.")
    decisions: str | None = None
    """File of people's decisions about rows, written by `meditune annotate import`. The decisions never change test
    items."""
    fallback_to_sample: bool = False
    """If a source is unavailable, use Meditune's synthetic sample instead of all sources. If a source has a path, or if
    data.fold is set, this key has no effect."""
    phi: PhiSpec = Field(default_factory=PhiSpec, description="Identifiers of patients in the data.")

    @property
    def fixed_splits(self) -> dict[str, str]:
        """Return the split of each source whose rows all belong to the same split."""
        return {source.name: source.split for source in self.sources if source.split}


class PromptFormat(Spec):
    """Wording and token budget of the prompt, saved with every model as `prompt.json`."""

    format: Literal["chat", "plain"] | None = None
    """chat: the base model's chat template, with training on assistant turns only; plain: the cues below; null: chat if
    the data contain conversations and the base model has a chat template, otherwise plain."""
    thinking: bool = False
    """For thinking models in the chat format: leave room for thoughts before the answer. If false, the model is trained
    and prompted to answer at once."""
    max_tokens: int = Field(512, ge=32, description="Maximum length of a row in tokens: prompt, answer and end token.")
    answer_tokens: int = Field(
        128, ge=8, description="Number of tokens to reserve for the answer when the context is shortened."
    )
    context_head: float = Field(0.0, ge=0, lt=1)
    """If a context is shortened: share of the remaining tokens that come from its beginning; the others come from its
    end."""
    question_cue: str = Field("Question:", min_length=1, description="Text before the question.")
    answer_cue: str = Field("Conclusion:", min_length=1, description="Text that asks for a long answer.")
    plain_cue: str | None = Field(None, min_length=1)
    """Text that asks for a long answer in plain words, for sources whose style is plain."""
    decision_cue: str = Field("Answer:", min_length=1, description="Text that asks for a decision: yes, no or maybe.")
    quoted: bool = False
    """Begin every line of context with "> " so that no passage can imitate a part of the prompt. Tuned models use the
    value in their prompt.json; for untuned models, passages from an index are always quoted."""

    @property
    def is_chat(self) -> bool:
        """Return whether prompts are rendered with the model's chat template."""
        return self.format == "chat"

    @property
    def answer_room(self) -> int:
        """Return the number of tokens reserved for the answer: answer_tokens, but at most half of max_tokens."""
        return min(self.answer_tokens, self.max_tokens // 2)
