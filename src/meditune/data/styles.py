"""For whom an example's answer is written: in plain words or an expert's, where its source has both.

Which of the two a text is, its reading grade says; the prompt's cue then tells the model (conditional training, Keskar
et al. 2019, arXiv:1909.05858), so one model learns from hard answers and can be asked for easy ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from meditune.data.diversity.dimensions import grade
from meditune.data.example import STYLE, Example
from meditune.data.splits import Splits
from meditune.recipe import DataSpec, Style


def styled(splits: Splits, spec: DataSpec) -> Splits:
    """The splits with a style in the meta of each row whose source is in the plain style.

    Training examples have the style that their answer is in. What is measured is asked for plain words, however hard
    its reference is.
    """
    names = {source.name for source in spec.sources if source.style == "plain"}
    if not names:
        return splits

    def each(examples: Sequence[Example], style: Callable[[Example], Style]) -> list[Example]:
        return [asked_for(one, style(one)) if one.source in names else one for one in examples]

    def asked(_: Example) -> Style:
        return "plain"

    def written(example: Example) -> Style:
        found = grade(example.answer)
        return "plain" if found is not None and found <= spec.plain_grade else "expert"

    train, dev, test = each(splits.train, written), each(splits.dev, asked), each(splits.test, asked)
    return replace(splits, train=train, dev=dev, test=test)


def asked_for(example: Example, style: Style) -> Example:
    """The example, to be answered in this style."""
    return example.model_copy(update={"meta": {**example.meta, STYLE: style}})


def counted(splits: Splits) -> dict[str, dict[str, int]]:
    """How many examples of each split have each style; nothing where no source has two."""
    found = {name: Counter(each.style for each in examples if each.style) for name, examples in splits.named().items()}
    return {name: dict(sorted(counts.items())) for name, counts in found.items()} if any(found.values()) else {}
