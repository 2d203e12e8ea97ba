"""Structured abstracts as questions with context and conclusion, checked as any training data are.

As PubMedQA was made (Jin et al. 2019, https://arxiv.org/abs/1909.06146): the title is the question or is made one, the
sections but for the conclusion are the context, the conclusion is the answer. Test items that a model may be measured
on are kept out, by PubMed id and by text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meditune.data import leakage, locate, pubmedqa
from meditune.data.example import Example, Passage, read_examples
from meditune.data.quality.audit import Audit
from meditune.data.rejects import Rejects
from meditune.errors import DataError
from meditune.files import write_jsonl
from meditune.operate.literature import questions
from meditune.progress import track
from meditune.recipe import QualityRules, QualitySpec
from meditune.retrieve.passages.articles import Article, Part

FILE = "pairs.jsonl"
SOURCE = "literature"
LEAST_CONTEXT, LEAST_CONCLUSION = 40, 5
"""Words"""
CITATION = "National Library of Medicine, PubMed"
_CONCLUDES = re.compile(r"\b(?:conclusions?|concluding remarks|interpretation)\b", re.IGNORECASE)
_MIXED = re.compile(r"\b(?:results?|findings?|methods?|discussion)\b", re.IGNORECASE)
_ASIDE = re.compile(
    r"\b(?:funding|funded|registration|registered|trial number|disclosures?|copyright|keywords?|clinical"
    r"trials?\.gov|prospero|conflicts?|level of evidence)\b",
    re.IGNORECASE,
)
"""Labels of what is neither context nor conclusion"""
_REGISTERED = re.compile(
    r"\s*\((?:[^()]*(?:funded by|clinicaltrials|registration|registered|number,? NCT)[^()]*)\)\.?$", re.IGNORECASE
)


@dataclass
class Pairs:
    """Training pairs, and what became of the articles that gave none."""

    examples: list[Example] = field(default_factory=list)
    without: Counter[str] = field(default_factory=Counter)
    """Articles by the reason why they gave none"""
    kept_out: dict[str, str] = field(default_factory=dict)
    """PubMed id -> the test item that it is, or is like"""
    audit: Audit | None = None

    @property
    def decisions(self) -> Counter[str]:
        """How often each decision is there; "none" for those without."""
        return Counter(example.decision or "none" for example in self.examples)


def make(articles: Iterable[Article], tests: Sequence[Example]) -> Pairs:
    """The pairs of the articles, without those that `tests` (items that are measured on) would be given away by."""
    made = Pairs()
    pmids = {example.group: example.id for example in tests if example.source == pubmedqa.SOURCE}
    examples: list[Example] = []
    for article in track(articles, "Making pairs", unit="articles"):
        found = pair(article)
        if isinstance(found, str):
            made.without[found] += 1
        elif article.pmid in pmids:
            made.kept_out[article.pmid] = pmids[article.pmid]
        else:
            examples.append(found)
    examples = _without_tests(examples, tests, made.kept_out)
    made.audit = Audit(_SPEC, ())
    made.audit.rows({SOURCE: examples})
    made.examples = made.audit.left[SOURCE]
    return made


def pair(article: Article) -> Example | str:
    """The article as an Example, or why it is none."""
    if article.has_concern:
        return "its journal has expressed concern"
    concluding = [part for part in article.parts if _concludes(part)]
    context = [part for part in article.parts if part not in concluding and not _ASIDE.search(part.label)]
    if not concluding:
        return "no conclusion under a label of its own"
    answer = _REGISTERED.sub("", " ".join(part.text for part in concluding)).strip()
    if len(answer.split()) < LEAST_CONCLUSION:
        return f"a conclusion of fewer than {LEAST_CONCLUSION} words"
    if sum(len(part.text.split()) for part in context) < LEAST_CONTEXT:
        return f"fewer than {LEAST_CONTEXT} words beside the conclusion"
    asked = questions.of_title(article.title, article.text)
    if asked is None:
        return "a title that is neither a question nor surely a statement"
    decision = asked.decision if asked.decision and questions.borne_out(asked.decision, answer) else None
    return Example(
        id=f"{SOURCE}:{article.pmid}",
        source=SOURCE,
        question=asked.question,
        context=tuple(Passage(text=part.text, label=part.label) for part in context),
        answer=answer,
        decision=decision,
        group=article.pmid,
        meta={
            "url": article.url,
            "licence": article.licence,
            "citation": CITATION,
            "title": article.title,
            "question_from": "title" if asked.was_question else "statement",
            "journal": article.journal,
            "year": int(article.date[:4]) if article.date[:4].isdecimal() else None,
            "mesh": list(article.mesh),
        },
    )


def tests(given: Sequence[Path]) -> list[Example]:
    """All items of PubMedQA's labelled part, and those of the files given (prepared splits, such as a run's
    data/test.jsonl). Raises DataError where PubMedQA can't be had.
    """
    try:
        place = locate.locate(pubmedqa.SOURCE)
        found = list(pubmedqa.read(place, Rejects()))
    except DataError as error:
        raise DataError(
            f"No training pairs were written, because PubMedQA's test items can't be told from them: {error}"
        ) from error
    for path in given:
        found += read_examples(path)
    return found


def write(path: Path, examples: Iterable[Example]) -> int:
    """Write pairs as a file for a source `own` of a recipe, whole or not at all; how many."""
    return write_jsonl(path, map(_row, examples))


def _row(example: Example) -> dict[str, Any]:
    row = example.model_dump(mode="json")
    return {"id": example.group} | {
        key: row[key] for key in ("question", "context", "answer", "decision", "group", "meta")
    }


def _without_tests(examples: list[Example], tests: Sequence[Example], kept_out: dict[str, str]) -> list[Example]:
    """Without those that ask or hold what a test item does, word for word or nearly."""
    while leaks := {
        leak.train: leak.test for leak in leakage.find(examples, tests) if leak.kind in ("group", "question", "context")
    }:
        kept_out |= {name.partition(":")[2]: test for name, test in leaks.items()}
        examples = [example for example in examples if example.id not in leaks]
    return examples


def _concludes(part: Part) -> bool:
    """Whether NLM or the journal files a section under conclusions, and under nothing else."""
    if _MIXED.search(part.label) and _CONCLUDES.search(part.label):
        return False
    return part.category == "CONCLUSIONS" or bool(_CONCLUDES.search(part.label))


_SPEC = QualitySpec(rules=QualityRules.model_validate({"truncated": "drop", "too_short": "drop"}))
"""Beyond the defaults: a conclusion that breaks off is no answer."""
