"""Quality control of an article before it can be found: some of data/quality's rules, on title and abstract."""

from __future__ import annotations

from dataclasses import replace

from meditune.data.example import Example
from meditune.data.quality import mending, rules
from meditune.recipe import QualityRules, QualitySpec
from meditune.retrieve.passages.articles import Article

LEAST_WORDS = 20
"""Fewer words are no abstract ("Editorial.")."""
_OFF = dict.fromkeys(rules.ALL, "off")
_SPECS = {
    asked_for: QualitySpec(
        rules=QualityRules.model_validate(
            _OFF | {"language": "drop", "too_short": "drop", "not_medical": "off" if asked_for else "drop"}
        ),
        min_answer_words=LEAST_WORDS,
    )
    for asked_for in (True, False)
}
_MEANING = {
    "language": "abstract not in English",
    "too_short": f"abstract of fewer than {LEAST_WORDS} words",
    "not_medical": "without words of health and medicine, or hardly any",
}
REASONS = frozenset(_MEANING.values())


def passed(article: Article, asked_for: bool) -> tuple[Article, str]:
    """The article with what was decoded wrongly put right, and why it may not be found, or "".

    Whether it is about medicine isn't judged where a query `asked_for` it.
    """
    mended = replace(
        article,
        title=mending.decoded(article.title),
        parts=tuple(replace(part, text=mending.decoded(part.text)) for part in article.parts),
    )
    if not mended.parts:
        return mended, ""
    example = Example(
        id=article.id, source="pubmed", question=mended.title or article.id, answer=mended.text, group=article.pmid
    )
    kept, entries = rules.look(example, _SPECS[asked_for])
    return mended, "" if kept else _MEANING[entries[-1].rule]
