"""Options under `data` and `prompt`: what is trained and measured on, and how it is put to a model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from meditune.identifiers import Kind
from meditune.recipe.spec import Spec

Task = Literal["answer", "decision"]
TASKS: tuple[Task, ...] = ("decision", "answer")


class SourceSpec(Spec):
    """One source of examples."""

    name: str = Field(min_length=1, description="pubmedqa, medquad, liveqa, mimic, sample, or own.")
    path: str | None = Field(None, description="Its files; found through MEDITUNE_DATA, cache or download when empty.")
    fields: dict[str, str] = Field(
        default_factory=dict, description="For your own files: Example field -> column (question: prompt)."
    )
    limit: int | None = Field(None, ge=1, description="Take a seeded sample of at most this many examples.")


PhiAction = Literal["report", "mask", "surrogate", "refuse", "off"]


class PhiSpec(Spec):
    """What is done with identifiers of patients (PHI) in the data. docs/phi.md says what is found and what isn't."""

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
    split: Literal["official", "group"] = Field(
        "official", description="official: the publisher's test set where there is one; group: by group, seeded."
    )
    fold: int | None = Field(
        None,
        ge=0,
        lt=10,
        description="Take this one of PubMedQA's ten published folds as dev, and the other nine to train.",
    )
    dev_share: float = Field(0.1, gt=0, lt=0.5, description="Share of the non-test examples kept for development.")
    test_share: float = Field(0.2, gt=0, lt=0.9, description="Share of the groups tested on, where split is group.")
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
    decision_cue: str = Field("Answer:", min_length=1, description="Asks for the decision.")

    @property
    def answer_room(self) -> int:
        """Tokens that a prompt leaves free for the answer, at most half of the row."""
        return min(self.answer_tokens, self.max_tokens // 2)
