"""Options under `data` and `prompt`: what is trained and measured on, and how it is put to a model.

Options under `data.quality`: what is done with rows in which a rule finds something.

Options under `evaluate.retrieve` and `train.retrieve`: passages that are found, in place of those that are given.

What every group of options has in common.

The kinds of what tells who a patient is: named in recipes, found by `phi`.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Spec(BaseModel):
    """A group of options."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Drop = Literal["drop", "flag", "off"]
Mend = Literal["mend", "drop", "flag", "off"]
Repeated = Literal["keep", "group", "merge", "off"]


class QualityRules(Spec):
    """What becomes of a row in which the rule of that name finds something.

    `drop` leaves it out, `mend` corrects it, `flag` keeps and counts it, `off` doesn't look. The rules are applied in
    this order. An official test item is never dropped nor changed, whatever is found in it.
    """

    encoding: Mend = Field("mend", description="Text that was decoded wrongly somewhere on its way (Ã© for é).")
    layout: Mend = Field(
        "mend", description="Residue of a page's layout: broken lines, lists run together, stray blanks."
    )
    boilerplate: Mend = Field("mend", description='Words of a web page around the answer ("Key Points", "click here").')
    language: Drop = Field("drop", description="An answer in none of data.quality.languages.")
    not_a_question: Drop = Field("flag", description="A question that asks for nothing.")
    not_medical: Drop = Field("flag", description="A row without words of health and medicine.")
    too_short: Drop = Field("flag", description="An answer of fewer words than data.quality.min_answer_words.")
    too_long: Drop = Field("flag", description="An answer of more words than data.quality.max_answer_words.")
    truncated: Drop = Field("flag", description="An answer that breaks off.")
    off_topic: Drop = Field("flag", description="An answer that has no word of what was asked about.")
    exact_duplicate: Drop = Field(
        "drop", description="A row of the same source that says the same, letter case and punctuation aside."
    )
    near_duplicate: Drop = Field(
        "drop", description="A row of the same source that asks the same and says nearly the same."
    )
    cross_source: Drop = Field(
        "drop", description="A row that says the same, or nearly, as one of a source named earlier."
    )
    cross_split: Drop = Field(
        "drop", description="A row to train on that says the same, or nearly, as a test or development item."
    )
    repeated_question: Repeated = Field(
        "keep",
        description="A question asked before with another answer: kept, put into that row's group, or merged with it.",
    )


class QualitySpec(Spec):
    """Quality control of the rows that were read, before they are split."""

    rules: QualityRules = Field(default_factory=QualityRules, description="What each rule does.")
    alike: float = Field(
        0.7, ge=0.5, le=1, description="From this share of common words and word pairs on, rows say nearly the same."
    )
    languages: list[str] = Field(
        default_factory=lambda: ["en"], min_length=1, description="Languages of answers, as ISO 639-1 codes."
    )
    min_answer_words: int = Field(3, ge=1, description="Fewest words of a written answer.")
    max_answer_words: int = Field(2000, ge=1, description="Most words of an answer.")
    keep: list[str] = Field(
        default_factory=list, description="Ids of rows that are left as they were read, whatever is found in them."
    )


CONTEXTS = "contexts"
"""In place of an index: the contexts of the run's own examples"""


class SearchedSpec(Spec):
    """What is searched, and how much of it is shown."""

    index: str | None = Field(
        None,
        min_length=1,
        description="What is searched: the place of an index (`meditune index build`), or contexts: those of the run's "
        "own examples, by BM25 in memory.",
    )
    sources: list[str] = Field(default_factory=list, description="Only these sources of the index; all when empty.")
    words: int = Field(
        400,
        ge=0,
        description="Of each document that is found, so many words around the passage, which is any abstract as a "
        "whole; 0: the passage alone.",
    )

    @property
    def searched(self) -> dict[str, Any]:
        """What decides which passages are found."""
        return self.model_dump(mode="json")


class RetrieveSpec(SearchedSpec):
    """Measuring with passages that are found for each item, beside what it is given; off while index is empty."""

    k: int = Field(5, ge=1, le=100, description="Documents that are shown, the best first, as far as there is room.")


class TrainRetrieveSpec(SearchedSpec):
    """Training with passages that were found: an example's own one among others that don't bear on it.

    After RAFT (Zhang et al. 2024, arXiv:2403.10131). With index empty the contexts are searched. Nothing of a dev or
    test item is shown.
    """

    share: float = Field(
        0.0, ge=0, le=1, description="Share of the training examples that are shown found passages; 0 is off."
    )
    passages: int = Field(3, ge=1, le=20, description="Passages that such an example is shown, in random order.")
    missing: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Share of these examples whose own passage isn't among them; they learn their answer all the same.",
    )


Kind = Literal[
    "name",
    "date",
    "age",
    "phone",
    "fax",
    "email",
    "url",
    "ip",
    "ssn",
    "mrn",
    "health_plan",
    "account",
    "licence",
    "vehicle",
    "device",
    "address",
    "city",
    "zip",
    "hospital",
    "id",
    "bracket",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Safe Harbor's identifiers (45 CFR 164.514(b)(2)) as far as text has them, hospitals, and MIMIC's brackets."""


Task = Literal["answer", "decision"]
Incomplete = Literal["keep", "drop"]
Style = Literal["plain", "expert"]
Trait = Literal["source", "decision", "question_type"]
TASKS: tuple[Task, ...] = ("decision", "answer")
BalanceBy = Literal[
    "source", "collection", "decision", "question_type", "focus", "subject", "semantic_type", "year", "reading_grade"
]
"""Dimensions of meditune.data.diversity"""


class SourceSpec(Spec):
    """One source of examples."""

    name: str = Field(min_length=1, description="pubmedqa, medquad, liveqa, mimic, sample, or own.")
    path: str | None = Field(None, description="Its files; found through MEDITUNE_DATA, cache or download when empty.")
    fields: dict[str, str] = Field(
        default_factory=dict, description="For your own files: Example field -> column (question: prompt)."
    )
    limit: int | None = Field(None, ge=1, description="Take a seeded sample of at most this many examples.")
    licence: str | None = Field(
        None, description="Licence of your own files (CC BY 4.0); a column licence of theirs stands above it."
    )
    citation: str | None = Field(None, description="How to cite them, or where they are published.")
    style: Style = Field(
        "expert",
        description="plain: its questions are asked with prompt.plain_cue, which only answers up to data.plain_grade "
        "are learnt after; harder ones are learnt after prompt.answer_cue, as an expert's.",
    )
    restricted: bool = Field(
        False, description="Their rows may not leave this machine: no API, no upload. MIMIC-III is restricted anyway."
    )


class BalanceSpec(Spec):
    """Training examples rebalanced by group: large groups capped, or small ones read more often."""

    by: BalanceBy | None = Field(None, description="What makes a group; nothing is rebalanced when empty.")
    cap: int | None = Field(None, ge=1, description="Keep at most this many training examples of each group, seeded.")
    share: float | None = Field(
        None, gt=0, lt=1, description="Keep so many of each group that none has more than this share of the rows."
    )
    sources: list[str] = Field(
        default_factory=list, description="Only rows of these sources are in groups; all are when empty."
    )
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="Group -> how often its rows come in an epoch, relative to rows of groups that aren't named; no "
        "row is dropped.",
    )

    @model_validator(mode="after")
    def _rule_is_whole(self) -> BalanceSpec:
        given = [name for name in ("cap", "share", "weights") if getattr(self, name)]
        if (given or self.sources) and self.by is None:
            raise ValueError(
                f"data.balance.{[*given, 'sources'][0]} needs data.balance.by: source, decision, question_type ..."
            )
        if self.by is not None and not given:
            raise ValueError("data.balance.by needs a cap, a share or weights")
        if self.cap is not None and self.share is not None:
            raise ValueError("data.balance.share computes the cap; give it or data.balance.cap, not both")
        if any(weight <= 0 for weight in self.weights.values()):
            raise ValueError("data.balance.weights must be above 0; take a cap, or leave the source out, instead")
        return self

    @property
    def caps(self) -> bool:
        """Whether rows are dropped."""
        return self.cap is not None or self.share is not None


PhiAction = Literal["report", "mask", "surrogate", "refuse", "off"]


class PhiSpec(Spec):
    """What is done with identifiers of patients (PHI) in the data. docs/how-to/find-identifiers.md says what is found
    and what isn't."""

    action: PhiAction = Field(
        "report",
        description="report: count them; mask: placeholders such as [NAME]; surrogate: invented ones; refuse: an "
        "error; off: don't look.",
    )
    kinds: list[Kind] = Field(default_factory=list, description="Only these kinds; all of them when empty.")
    engine: Literal["rules", "presidio"] = Field(
        "rules", description="What looks for them; presidio needs the extra `phi` and is much slower."
    )


class DataSpec(Spec):
    """What is trained and tested on."""

    sources: list[SourceSpec] = Field(
        default_factory=lambda: [SourceSpec(name="pubmedqa")], min_length=1, description="Where examples come from."
    )
    split: Literal["official", "group", "newest"] = Field(
        "official",
        description="official: the publisher's test set where there is one; group: by group, seeded; newest: the test "
        "is what was published last, by year.",
    )
    stratify: list[Trait] = Field(
        default_factory=lambda: list[Trait](("source", "decision")),
        description="The splits have about the same shares of these: source, decision, question_type.",
    )
    fold: int | None = Field(
        None,
        ge=0,
        lt=10,
        description="Take this one of PubMedQA's ten published folds as dev, and the other nine to train.",
    )
    dev_share: float = Field(0.1, gt=0, lt=0.5, description="Share of the non-test examples kept for development.")
    test_share: float = Field(0.2, gt=0, lt=0.9, description="Share tested on, where split is group or newest.")
    quality: QualitySpec = Field(default_factory=QualitySpec, description="Quality control.")
    max_reading_grade: float | None = Field(
        None,
        ge=0,
        description="Train on no answer with a higher Flesch-Kincaid grade; dev and test stay as they are. Such rows "
        "are dropped, or keep only their decision where they have one.",
    )
    plain_grade: float = Field(
        9.0, ge=0, description="Flesch-Kincaid grade up to which answers of sources in the plain style are plain."
    )
    balance: BalanceSpec = Field(default_factory=BalanceSpec, description="Rebalancing of the training examples.")
    decisions: str | None = Field(
        None, description="What people decided about rows: a file of `meditune annotate import`. Never test items."
    )
    incomplete: Incomplete = Field(
        "keep", description="Rows that decisions found incomplete: keep them, marked in their meta, or drop them."
    )
    fallback_to_sample: bool = Field(
        False, description="Use the synthetic sample that ships with Meditune where the sources can't be had."
    )
    phi: PhiSpec = Field(default_factory=PhiSpec, description="Identifiers of patients in the data.")


class PromptFormat(Spec):
    """Wording and token budget of the prompt. Saved beside every model as `prompt.json`."""

    max_tokens: int = Field(512, ge=32, description="Longest row in tokens: prompt, answer and end token together.")
    answer_tokens: int = Field(128, ge=8, description="Tokens kept free for the answer when the context is fitted.")
    context_head: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Where context must be shortened, the share of its room for its first sentences; the last ones get "
        "the rest.",
    )
    question_cue: str = Field("Question:", min_length=1, description="Stands before the question.")
    answer_cue: str = Field("Conclusion:", min_length=1, description="Asks for the long answer.")
    plain_cue: str | None = Field(
        None, min_length=1, description="Asks for it in plain words, where a source has that style."
    )
    decision_cue: str = Field("Answer:", min_length=1, description="Asks for the decision.")
    quoted: bool = Field(
        False,
        description='Begin every line of context with "> ", as mail quotes text, so that no passage can pass for a '
        "part of the prompt. Tuned models keep what prompt.json says; untuned ones read an index's passages quoted.",
    )

    @property
    def answer_room(self) -> int:
        """Tokens that a prompt leaves free for the answer, at most half of the row."""
        return min(self.answer_tokens, self.max_tokens // 2)
