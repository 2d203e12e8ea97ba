"""Training pairs from structured abstracts, as in PubMedQA (Jin et al. 2019, https://arxiv.org/abs/1909.06146).

The title is the question, the conclusion is the answer, and the other sections are the context. Articles that match a
test item, by PubMed id or by text, are excluded. A title that is a statement in the present tense (NP-VBP/VBZ) becomes
a question: "is" or "are" moves to the front, or "do" or "does" is inserted. The decision is then yes, or no if the verb
is negated (section 3 of the paper). Jin et al. found the verbs with a parser. This module uses a list of verbs instead,
and skips titles that it can't convert reliably. It assigns a decision only if the conclusion neither weakens nor
contradicts that decision.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from meditune.config.data_options import QualitySpec
from meditune.data import leakage, sources
from meditune.data.dataset_card import LARGEST_SIZE, SIZES
from meditune.data.example import Example, Passage, read_examples
from meditune.data.quality.audit import Audit
from meditune.data.readers import pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.data.sources import NO_ADVICE
from meditune.errors import DataError
from meditune.evidence.lexical_features import rarity
from meditune.files import write_jsonl
from meditune.model_registry import utc_now
from meditune.phi import name_words
from meditune.progress import track
from meditune.retrieve.documents.pubmed_articles import Article, Part

MIN_WORDS, MAX_WORDS = 4, 40


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PLAIN = _words(
    "abolish accelerate activate aggravate alleviate alter ameliorate attenuate confer contribute correlate depend "
    "determine deteriorate differ diminish enhance exacerbate exert exhibit facilitate impair improve induce inhibit "
    "interact maintain mediate modify modulate persist potentiate predict prevent prolong promote protect provide "
    "reduce regulate relieve remain require restore reveal stimulate suppress worsen"
)
_ALSO_NOUNS = _words("benefit cause decrease delay harm increase influence lead result shorten support trigger")
"""Verbs with forms that can also be nouns ("causes of", "increases in"); the next word shows which it is."""
_BASES = _PLAIN | _ALSO_NOUNS
_SINGULAR = {
    f"{base}es" if base.endswith("sh") else f"{base[:-1]}ies" if base.endswith("fy") else f"{base}s": base
    for base in _BASES
}
_FINITE = _words("is are was were has have had does do did") | {
    form for form, base in _SINGULAR.items() if base in _PLAIN
}
_NOT_AFTER_NOUNS = _words("of and or for from by on with as at during after among , ; in to")
_GOES_WITH = {"result": "in", "lead": "to"}
_COPULAS = _words("is are")
_CLAUSE = _words("that which who whose whom when while if because although though whether how why what where")
_UNSURE = _words("may might can could should would will must cannot appears appear seems seem likely")
_DENIES = _words("no not nor neither never fails fail failed lacks lack but however yet only")
_BEFORE = _words("the a an of in on for to with and or by from at as between")
_PLURALS = _words("children people patients men women bacteria data mice criteria teeth feet media")
_NO_PLURALS = _words("diabetes herpes measles mumps rabies ascites scabies")
_WORD = re.compile(r"\w[\w'’/+-]*|[,;:?]")
_DENIED = re.compile(
    r"\b(?:no|not|nor|neither|never|lacks?|lacked|failed|fails?|cannot|unable|absence)\b|n't\b", re.IGNORECASE
)
_TURNS = re.compile(r"\b(?:without|despite|however|but|although|though|whereas|while|only|except)\b", re.IGNORECASE)
_HEDGED = re.compile(
    r"\b(?:may|might|could|possibl[ey]|perhaps|potential(?:ly)?|unclear|uncertain|inconclusive|insufficient|limited|"
    r"seems?|appears?)\b|"
    r"\b(?:further|more|additional|larger|future)\b[^.]{0,60}\b(?:research|stud(?:y|ies)|trials?|evidence|investigation)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ConvertedTitle:
    """A question made from a title."""

    question: str
    decision: Literal["yes", "no"] | None
    was_question: bool


def question_of_title(title: str, article_text: str = "") -> ConvertedTitle | None:
    """Return a question made from a title, or None if the title is neither a question nor clearly a statement.

    If `article_text` contains the title's first word in lowercase, the question does, too.
    """
    text = " ".join(title.split())
    if "?" in text:
        asked = text[: text.rindex("?") + 1]
        return ConvertedTitle(asked, None, True) if len(asked.split()) >= MIN_WORDS else None
    statement = text.rstrip(". ").partition(": ")[0]
    places = [(found[0], found.start(), found.end()) for found in _WORD.finditer(statement)]
    lower = [word.casefold() for word, _, _ in places]
    if not MIN_WORDS <= len(places) <= MAX_WORDS or _CLAUSE.intersection(lower) or _UNSURE.intersection(lower):
        return None
    verb = _verb(lower)
    if verb is None:
        return None
    at, length, front, base, denied = verb
    others = {*lower[:at], *lower[at + length :]}
    if others & (_DENIES | _FINITE):
        return None
    subject = _small(statement[: places[at][1]].strip(), article_text)
    rest = statement[places[at + length - 1][2] :].strip()
    if not rest:
        return None
    return ConvertedTitle(
        f"{front} {' '.join(part for part in (subject, base, rest) if part)}?", "no" if denied else "yes", False
    )


def is_supported_by_conclusion(decision: Literal["yes", "no"], conclusion: str) -> bool:
    """Return whether a conclusion supports the decision.

    The conclusion must not be hedged. For `no`, it must contain a negation. For `yes`, it must contain neither a
    negation nor a contrast such as "however".
    """
    if _HEDGED.search(conclusion):
        return False
    if decision == "no":
        return bool(_DENIED.search(conclusion))
    return not _DENIED.search(conclusion) and not _TURNS.search(conclusion)


Verb = tuple[int, int, str, str, bool]
"""(index of the verb's first word, number of words, word moved to the front, word that stays, whether it is negated)"""


def _verb(tokens: list[str]) -> Verb | None:
    """Return the title's finite verb, or None unless there is exactly one."""
    found: list[Verb] = []
    for at in range(1, len(tokens)):
        verb = _at(tokens, at)
        if verb and (not found or at >= found[-1][0] + found[-1][1]):
            found.append(verb)
    return found[0] if len(found) == 1 else None


def _at(tokens: list[str], position: int) -> Verb | None:
    word, before, after = tokens[position], tokens[position - 1], "".join(tokens[position + 1 : position + 2])
    if before in _BEFORE or before in ",;:":
        return None
    if word in _COPULAS:
        denied = after == "not"
        return (position, 2 if denied else 1, word.capitalize(), "", denied)
    if word in ("does", "do") and after == "not" and position + 2 < len(tokens) and tokens[position + 2] in _BASES:
        return (position, 3, word.capitalize(), tokens[position + 2], True)
    plural = _is_plural(before)
    base = _SINGULAR.get(word) if not plural else None
    if base is None and word in _BASES and (plural or "and" in tokens[:position]):
        base = word
    if base is None or (base in _ALSO_NOUNS and after in _NOT_AFTER_NOUNS and _GOES_WITH.get(base) != after):
        return None
    return (position, 1, "Does" if word in _SINGULAR else "Do", base, False)


def _is_plural(word: str) -> bool:
    return word in _PLURALS or (
        word.endswith("s") and not word.endswith(("ss", "is", "us")) and word not in _NO_PLURALS
    )


def _small(subject: str, article_text: str) -> str:
    """Return the subject, with its first word in lowercase if possible.

    That is possible if the word is an English word and not a name, or if the article contains the word in lowercase.
    """
    first, separator, rest = subject.partition(" ")
    small = first[:1].lower() + first[1:]
    is_word = small.isalpha() and small.islower() and rarity(small) < 1
    is_name = small in name_words.EPONYMS | name_words.PLACES | name_words.CITIES or name_words.is_name(small)
    if (is_word and not is_name) or re.search(rf"\b{re.escape(small)}\b", article_text):
        return f"{small}{separator}{rest}"
    return subject


FILE = "pairs.jsonl"
SOURCE = "literature"
MIN_CONTEXT_WORDS, MIN_CONCLUSION_WORDS = 40, 5
CITATION = "National Library of Medicine, PubMed"
_CONCLUDES = re.compile(r"\b(?:conclusions?|concluding remarks|interpretation)\b", re.IGNORECASE)
_MIXED = re.compile(r"\b(?:results?|findings?|methods?|discussion)\b", re.IGNORECASE)
_ASIDE = re.compile(
    r"\b(?:funding|funded|registration|registered|trial number|disclosures?|copyright|keywords?|clinical"
    r"trials?\.gov|prospero|conflicts?|level of evidence)\b",
    re.IGNORECASE,
)
_REGISTERED = re.compile(
    r"\s*\((?:[^()]*(?:funded by|clinicaltrials|registration|registered|number,? NCT)[^()]*)\)\.?$", re.IGNORECASE
)


@dataclass
class Pairs:
    """Training pairs, and the reasons why other articles gave none."""

    examples: list[Example] = field(default_factory=list)
    without: Counter[str] = field(default_factory=Counter)
    """Number of articles that gave no pair, by reason"""
    kept_out: dict[str, str] = field(default_factory=dict)
    """PubMed id of each excluded article -> id of the test item that the article matches"""
    audit: Audit | None = None

    @property
    def decisions(self) -> Counter[str]:
        """Return the number of pairs with each decision; pairs without a decision are counted under "none"."""
        return Counter(example.decision or "none" for example in self.examples)


def make_pairs(articles: Iterable[Article], tests: Sequence[Example]) -> Pairs:
    """Return the training pairs made from the articles.

    Pairs that fail quality control, or that match an evaluation item in `tests`, are excluded.
    """
    pairs = Pairs()
    pmids = {example.group: example.id for example in tests if example.source == pubmedqa.SOURCE}
    examples: list[Example] = []
    for article in track(articles, "Making pairs", unit="articles"):
        found = pair_of_article(article)
        if isinstance(found, str):
            pairs.without[found] += 1
        elif article.pmid in pmids:
            pairs.kept_out[article.pmid] = pmids[article.pmid]
        else:
            examples.append(found)
    pairs.audit = Audit(_SPEC, ())
    rest, leaks = without_matches(examples, tests)
    pairs.kept_out |= {name.partition(":")[2]: test for name, test in leaks.items()}
    pairs.audit.rows({SOURCE: rest})
    pairs.examples = pairs.audit.remaining[SOURCE]
    return pairs


def pair_of_article(article: Article) -> Example | str:
    """Return the training pair made from an article, or the reason why there is none."""
    if article.has_concern:
        return "an expression of concern by the journal"
    concluding = [part for part in article.parts if _concludes(part)]
    context = [part for part in article.parts if part not in concluding and not _ASIDE.search(part.label)]
    if not concluding:
        return "no separately labelled conclusion"
    answer = _REGISTERED.sub("", " ".join(part.text for part in concluding)).strip()
    if len(answer.split()) < MIN_CONCLUSION_WORDS:
        return f"a conclusion of fewer than {MIN_CONCLUSION_WORDS} words"
    if sum(len(part.text.split()) for part in context) < MIN_CONTEXT_WORDS:
        return f"fewer than {MIN_CONTEXT_WORDS} words besides the conclusion"
    asked = question_of_title(article.title, article.text)
    if asked is None:
        return "a title that is neither a question nor clearly a statement"
    decision = asked.decision if asked.decision and is_supported_by_conclusion(asked.decision, answer) else None
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


def tests(paths: Sequence[Path]) -> list[Example]:
    """Return all items of PubMedQA's labelled part and all items of the given files.

    Raises DataError if PubMedQA or a file isn't available.
    """
    try:
        place = sources.locate_source(pubmedqa.SOURCE)
        found = list(pubmedqa.read(place, Rejects()))
    except DataError as error:
        raise DataError(
            "No training pairs were written, because PubMedQA's test items, which must be excluded, can't be read: "
            f"{error}"
        ) from error
    for path in paths:
        found += read_examples(path)
    return found


def write(path: Path, examples: Iterable[Example]) -> int:
    """Write pairs atomically to a file for the recipe source `own`; return the number of pairs."""
    columns = {"question", "context", "answer", "decision", "group", "meta"}
    return write_jsonl(path, ({"id": each.group} | each.model_dump(mode="json", include=columns) for each in examples))


def without_matches(examples: list[Example], others: Sequence[Example]) -> tuple[list[Example], dict[str, str]]:
    """Return the examples that don't match any of `others`, exactly or nearly, by group, question or context.

    The second value maps the id of each removed example to the id of the item that it matches.
    """
    removed: dict[str, str] = {}
    kinds = ("group", "question", "context")
    while leaks := {leak.train: leak.test for leak in leakage.find(examples, others) if leak.kind in kinds}:
        removed |= leaks
        examples = [example for example in examples if example.id not in leaks]
    return examples, removed


def _concludes(section: Part) -> bool:
    """Return whether a section contains only conclusions, according to its label or NLM's category."""
    if _MIXED.search(section.label) and _CONCLUDES.search(section.label):
        return False
    return section.category == "CONCLUSIONS" or bool(_CONCLUDES.search(section.label))


_SPEC = QualitySpec(rules={"truncated": "drop", "too_short": "drop"})
"""Stricter than the default rules, because a truncated conclusion isn't an answer"""


TERMS = "https://www.nlm.nih.gov/databases/download/terms_and_conditions.html"


def card(pairs: Pairs, counts: dict[str, int], sources: list[str]) -> str:
    """Return the dataset card in Markdown, with the metadata header that Hugging Face expects."""
    rows = len(pairs.examples)
    licences = {str(example.meta["licence"]) for example in pairs.examples}
    head: dict[str, Any] = {
        "pretty_name": "Questions from new medical literature",
        "language": ["en"],
        "license": "other",
        "license_name": "pubmed-terms",
        "license_link": TERMS,
        "size_categories": [next((name for most, name in SIZES if rows < most), LARGEST_SIZE)],
        "task_categories": ["question-answering"],
        "configs": [{"config_name": "default", "data_files": FILE}],
    }
    decisions = ", ".join(f"{count:,} {name}" for name, count in pairs.decisions.most_common()) or "none"
    dropped = pairs.audit.dropped() if pairs.audit else {}
    sections = [
        "# Questions from new medical literature",
        f"{rows:,} questions, each with a context and a conclusion, that `meditune update` made from "
        f"{counts['there']:,} PubMed articles; written {utc_now()}. Decisions: {decisions}.",
        "## Source and terms",
        "Titles and abstracts are courtesy of the U.S. National Library of Medicine. NLM doesn't endorse this "
        "dataset or anything made from it. The dataset may not reflect the most current data available from PubMed; "
        f"run the update again to refresh it. NLM provides the data free of charge ({TERMS}), but the publishers may "
        "hold the copyright of abstracts. Each row's `meta` contains the article's URL and copyright statement; there "
        f"are {len(licences):,} different statements. Before you share rows, check the terms of each row. " + NO_ADVICE,
        _list(f"Imported from {each}" for each in sources),
        "## How it was made",
        "The method follows Jin et al. 2019 (PubMedQA, https://arxiv.org/abs/1909.06146): the title is the question, "
        "the conclusion is the answer, and the abstract's other sections are the context. If the title is a statement, "
        "the decision is yes, or no if the verb is negated. There is no decision if the conclusion is uncertain or "
        "contradicts the title.",
        _list(f"{count:,} articles left out: {reason}" for reason, count in pairs.without.most_common()),
        _list(f"{count:,} pairs dropped by the quality rule {rule}" for rule, count in dropped.items()),
        f"{len(pairs.kept_out):,} articles are left out because they match test items exactly or nearly. The test "
        "items are PubMedQA's complete labelled part and any other evaluation files given to the update. Retracted, "
        "replaced and deleted articles are left out, too. quality.json and ledger.parquet list what quality control "
        "changed or dropped.",
        "Decisions are derived from titles and were not checked by a reader. The results of a study don't always "
        "support its authors' conclusions. Do not use this dataset to advise patients.",
    ]
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{text}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _list(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines)
