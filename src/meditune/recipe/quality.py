"""Options under `data.quality`: what is done with rows in which a rule finds something."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from meditune.recipe.spec import Spec

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
