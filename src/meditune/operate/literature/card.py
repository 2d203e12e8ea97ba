"""The card beside the pairs: what they are, whose, how they were made, what was left out."""

from __future__ import annotations

from typing import Any

import yaml

from meditune.data import licences
from meditune.data.card import LARGEST, SIZES
from meditune.operate.literature.library import now
from meditune.operate.literature.pairs import FILE, LEAST_CONCLUSION, LEAST_CONTEXT, Pairs

TERMS = "https://www.nlm.nih.gov/databases/download/terms_and_conditions.html"


def card(pairs: Pairs, counts: dict[str, int], sources: list[str]) -> str:
    """Markdown with the head of the Hugging Face hub's data-set cards."""
    rows = len(pairs.examples)
    stated = {str(example.meta["licence"]) for example in pairs.examples}
    head: dict[str, Any] = {
        "pretty_name": "Questions from new medical literature",
        "language": ["en"],
        "license": "other",
        "license_name": "pubmed-terms",
        "license_link": TERMS,
        "size_categories": [next((name for most, name in SIZES if rows < most), LARGEST)],
        "task_categories": ["question-answering"],
        "configs": [{"config_name": "default", "data_files": FILE}],
    }
    decisions = ", ".join(f"{count:,} {name}" for name, count in pairs.decisions.most_common()) or "none"
    dropped = pairs.audit.dropped() if pairs.audit else {}
    sections = [
        "# Questions from new medical literature",
        f"{rows:,} questions with context and conclusion, made of {counts['there']:,} articles of PubMed by `meditune "
        f"update`; written {now()}. Decisions: {decisions}.",
        "## Source and terms",
        "The articles' titles and abstracts are courtesy of the U.S. National Library of Medicine. NLM doesn't endorse "
        "this set or what is made of it, and it may not show the newest state of PubMed: run the update again. NLM "
        f"charges nothing for the data ({TERMS}); abstracts may be protected by their publishers' copyright. Each "
        f"row's `meta` has its address and what its record says of copyright ({len(stated):,} wordings). Whether rows "
        "may be passed on must be looked up for each of them. " + licences.NO_ADVICE,
        _list(f"Taken from {each}" for each in sources),
        "## How it was made",
        "After Jin et al. 2019 (PubMedQA, https://arxiv.org/abs/1909.06146). A title that is a question is the "
        "question. A title that states something in the present tense becomes one, and has the decision yes, or no "
        "where its verb is negated, if the conclusion leaves nothing open and doesn't contradict it; otherwise there "
        "is no decision. The conclusion is the answer, the abstract's other sections are the context.",
        _list(f"{count:,} articles left out: {reason}" for reason, count in pairs.without.most_common()),
        f"Contexts have at least {LEAST_CONTEXT} words, conclusions {LEAST_CONCLUSION}. Retracted, replaced and "
        "deleted articles, and those about which their journal has expressed concern, are left out.",
        "## Quality control",
        _list(f"{count:,} dropped by the rule {rule}" for rule, count in dropped.items())
        or "No pair was dropped by a rule.",
        "All rules, with examples, are in quality.json; every row that was touched is in ledger.parquet.",
        "## Kept out of training",
        f"{len(pairs.kept_out):,} articles are test items of PubMedQA or of other prepared sets, or read nearly like "
        "one, and aren't here. The whole labelled part of PubMedQA (1,000 articles) counts as such.",
        "## Limits",
        "Decisions follow from titles, not from a reader; authors' conclusions aren't always borne out by their "
        "results. Not for advising patients.",
    ]
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{text}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _list(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines)
