"""Evidence Inference 2.0: experts' judgements of the results of randomized trials, read as claims with evidence.

DeYoung et al., "Evidence Inference 2.0: More Data, Better Models", BioNLP 2020 (https://arxiv.org/abs/2005.04177). The
layout is that of `annotations/README.md` and of `evidence_inference/preprocess/preprocessor.py` in
https://github.com/jayded/evidence-inference. Prompts and abstracts can also be JSON Lines (`prompts.jsonl`,
`abstracts.jsonl`).
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from meditune.data.example import Example, Label, Passage, problem_in_text
from meditune.data.readers.claims import NO_EVIDENCE, claim_of, labelled, with_columns
from meditune.data.readers.tables import Rejects, find_files, rows
from meditune.data.readers.user_files import cell, is_empty, passages
from meditune.errors import DataError
from meditune.files import read_text

SOURCE = "evidence-inference"
LICENCE = "MIT (annotations); each article has its own licence"
NO_DIFFERENCE, INCREASED, DECREASED = DIRECTIONS = (
    "no significant difference",
    "significantly increased",
    "significantly decreased",
)
_RESULTS = {
    **dict.fromkeys(("0", "0.0"), NO_DIFFERENCE),
    **dict.fromkeys(("1", "1.0"), INCREASED),
    **dict.fromkeys(("-1", "-1.0"), DECREASED),
}
PARAGRAPH_CHARACTERS = 1200
"""If a paragraph is longer, only the sentences around the quotation are evidence"""
MAX_CHARACTERS = 2 * PARAGRAPH_CHARACTERS
"""Maximum length of evidence from one paragraph; a table without full stops can have thousands of characters"""
SAME_WORDS = 0.5
"""Minimum share of a quotation's words that the article must contain at the published offsets, because some offsets are
imprecise or wrong"""

_PROMPT_COLUMNS = ("PromptID", "PMCID", "Outcome", "Intervention", "Comparator")
_ANNOTATION_COLUMNS = (
    *("PromptID", "Valid Label", "Valid Reasoning", "Label", "Annotations", "Label Code"),
    *("Evidence Start", "Evidence End"),
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z(])")
_INCORRECT = (
    "911 912 1262 1261 3044 3248 3111 3620 4308 4490 4491 4324 4325 4492 4824 5000 5001 5002 5046 5047 4948 5639 5710 "
    "5752 5775 5782 5841 5843 5861 5862 5863 5964 5965 5966 5975 4807 5776 5777 5778 5779 5780 5781 6034 6065 6066 "
    "6666 6667 6668 6669 7040 7042 7944 8590 8605 8606 8639 8640 8745 8747 8749 8877 8878 8593 8631 8635 8884 8886 "
    "8773 10032 10035 8876 8875 8885 8917 8921 8118 10885 10886 10887 10888 10889 10890"
)
"""Ids of the prompts that the publisher's README lists as incorrect"""


def read(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield one claim for each prompt, such as "Drug A significantly increased weight compared with placebo.".

    A hash of the prompt's id decides whether the claim states the annotators' result (supported) or another result
    (refuted), so that about half of the claims are true. The evidence is the annotators' quotation with the rest of its
    paragraph, or with the sentences around it. With `prompts.jsonl`, the evidence is only the quotation, or the
    abstract if that contains the quotation. The group is the article. Raises DataError if files or columns are missing.
    """
    needed = "Unpack Evidence Inference's v2.0.tar.gz there."
    file = find_files(path, ("prompts.jsonl", "prompts_merged.csv"), needed)[0]
    yield from _read_json_lines(file, rejects) if file.suffix == ".jsonl" else _read_published(file, rejects)


def stated_result(prompt_id: str, result: str) -> str:
    """Return the result that the claim states: `result` for half of the ids, another result for the rest."""
    digest = int.from_bytes(hashlib.sha256(f"{SOURCE}:{prompt_id}".encode()).digest())
    others = [each for each in DIRECTIONS if each != result]
    return result if digest % 2 == 0 else others[digest // 2 % 2]


def claim_text(result: str, outcome: str, intervention: str, comparator: str) -> str:
    """Return the sentence that states `result`, one of DIRECTIONS."""
    if result == NO_DIFFERENCE:
        return f"There was no significant difference between {intervention} and {comparator} in {outcome}."
    first, _, rest = intervention.partition(" ")
    begin = f"{first.capitalize()} {rest}".strip() if first.isalpha() and first.islower() else intervention
    return f"{begin} {result} {outcome} compared with {comparator}."


def _claim(
    prompt_id: str, pmcid: str, result: str, parts: Sequence[str], evidence: Sequence[Passage], **meta: Any
) -> list[Example]:
    """Return the claim about a prompt; `parts` are outcome, intervention and comparator."""
    outcome, intervention, comparator = (" ".join(part.split()).rstrip(".") for part in parts)
    stated = stated_result(prompt_id, result)
    claim = claim_text(stated, outcome, intervention, comparator)
    url = f"https://pmc.ncbi.nlm.nih.gov/articles/{pmcid}/"
    facts = {"pmcid": pmcid, "outcome": outcome, "intervention": intervention, "comparator": comparator}
    label: Label = "supported" if stated == result else "refuted"
    return [claim_of(SOURCE, prompt_id, claim, evidence, label, pmcid, **facts, result=result, url=url, **meta)]


NO_PARTS = "no id, outcome, intervention or comparator"


def _read_published(file: Path, rejects: Rejects) -> list[Example]:
    folder = file.parent
    annotations: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    if not (folder / "annotations_merged.csv").is_file():
        raise DataError(
            f"{folder / 'annotations_merged.csv'}: no such file. This file contains the annotators' judgements: "
            "unpack v2.0.tar.gz again."
        )
    for _, row in with_columns(folder / "annotations_merged.csv", SOURCE, _ANNOTATION_COLUMNS, rejects):
        if _is_valid(row):
            annotations[cell(row["PromptID"])].append(row)
    splits = {
        identifier.upper().removeprefix("PMC"): name
        for name in ("train", "validation", "test")
        if (folder / "splits" / f"{name}_article_ids.txt").is_file()
        for identifier in read_text(folder / "splits" / f"{name}_article_ids.txt").split()
    }

    @functools.lru_cache(maxsize=8)
    def article(pmcid: str) -> str:
        found = folder / "txt_files" / f"PMC{pmcid}.txt"
        return read_text(found) if found.is_file() else ""

    def make(row: Mapping[str, Any]) -> list[Example] | str:
        prompt_id, pmcid, *parts = (cell(row[column]) for column in _PROMPT_COLUMNS)
        if not all((prompt_id, pmcid, *parts)):
            return NO_PARTS
        if prompt_id in _INCORRECT.split():
            return "listed as incorrect by the publisher"
        judged = annotations.get(prompt_id, [])
        results = {_RESULTS[cell(each["Label Code"])] for each in judged}
        if len(results) != 1:
            return "the annotators disagree" if results else "no valid annotation"
        pmcid = pmcid.upper().removeprefix("PMC")
        text = "" if problem_in_text(article(pmcid)) else article(pmcid)
        evidence = _quoted(text, judged)
        if not evidence:
            return NO_EVIDENCE
        meta = {"split": splits.get(pmcid), "licence": LICENCE}
        return _claim(prompt_id, f"PMC{pmcid}", results.pop(), parts, evidence, **meta)

    return labelled(SOURCE, with_columns(file, SOURCE, _PROMPT_COLUMNS, rejects), make, rejects)


def _is_valid(row: Mapping[str, Any]) -> bool:
    """Return True if the verifier accepted the label and the quotation, and the label is known."""
    checks = all(cell(row[column]).casefold() in {"true", "1"} for column in ("Valid Label", "Valid Reasoning"))
    return checks and cell(row["Label Code"]) in _RESULTS and cell(row["Label"]) != "invalid prompt"


def _quoted(article: str, judged: Sequence[Mapping[str, Any]]) -> list[Passage]:
    """Return the quotations with their surroundings, without those that another of these passages contains."""
    found: list[str] = []
    for row in judged:
        quotation = str(row["Annotations"]).strip()
        if is_empty(quotation) or problem_in_text(quotation):
            continue
        text = widened(article, quotation, _offset(row["Evidence Start"]), _offset(row["Evidence End"]))
        if not any(text in other for other in found):
            found = [*(other for other in found if other not in text), text]
    return [Passage(text=text) for text in found]


def _offset(value: Any) -> int:
    text = cell(value)
    return int(float(text)) if re.fullmatch(r"-?\d+(\.0+)?", text) else -1


def widened(article: str, quotation: str, start: int, end: int) -> str:
    """Return a quotation with the rest of its paragraph, or with the sentences around it if the paragraph is long.

    `start` and `end` are the publisher's offsets. If the quotation is nowhere in the article, it is returned unchanged.
    """
    there = article[start:end] if 0 <= start < end <= len(article) else ""
    words, article_words = (set(re.findall(r"\w+", text.casefold())) for text in (quotation, there))
    if not words or len(words & article_words) < SAME_WORDS * len(words):
        start = article.find(quotation)
        end = start + len(quotation)
        if start < 0:
            return quotation
    first, last = article.rfind("\n", 0, start) + 1, article.find("\n", end)
    paragraph = article[first : last if last >= 0 else len(article)]
    if len(paragraph) <= PARAGRAPH_CHARACTERS:
        return paragraph.strip()
    begins = [0, *(match.end() for match in _SENTENCE_END.finditer(paragraph)), len(paragraph)]
    touched = [
        index for index in range(len(begins) - 1) if begins[index] < end - first and begins[index + 1] > start - first
    ]
    text = paragraph[begins[max(touched[0] - 1, 0)] : begins[min(touched[-1] + 2, len(begins) - 1)]].strip()
    return text if len(text) <= max(MAX_CHARACTERS, len(quotation)) else quotation


def _read_json_lines(file: Path, rejects: Rejects) -> list[Example]:
    abstracts = {}
    if (file.parent / "abstracts.jsonl").is_file():
        found = rows(file.parent / "abstracts.jsonl", SOURCE, rejects)
        abstracts = {cell(row.get("pmcid")): passages(row.get("abstract")) for _, row in found}

    def make(row: Mapping[str, Any]) -> list[Example] | str:
        prompt_id, pmcid, *parts = (
            cell(row.get(column)) for column in ("prompt_id", "pmcid", "outcome", "intervention", "comparator")
        )
        result = cell(row.get("label"))
        if not all((prompt_id, pmcid, *parts)):
            return NO_PARTS
        if result not in DIRECTIONS:
            return f"unknown label (not {', '.join(DIRECTIONS)})"
        if prompt_id in _INCORRECT.split():
            return "listed as incorrect by the publisher"
        in_abstract = row.get("evidence_in_abstract")
        evidence = abstracts.get(pmcid) if in_abstract else passages(row.get("evidence"))
        if not evidence:
            return f"no abstract of {pmcid} in abstracts.jsonl" if in_abstract else NO_EVIDENCE
        meta = {
            "split": cell(row.get("split")) or None,
            "pmid": cell(row.get("pmid")) or None,
            "licence": cell(row.get("license")) or LICENCE,
        }
        return _claim(prompt_id, pmcid, result, parts, evidence, **meta)

    return labelled(SOURCE, rows(file, SOURCE, rejects), make, rejects)
