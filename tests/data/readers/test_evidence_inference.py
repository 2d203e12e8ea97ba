"""The reader of Evidence Inference 2.0, on small files in the publisher's layout with invented content."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from meditune.data.readers import evidence_inference
from meditune.data.readers.evidence_inference import (
    DECREASED,
    DIRECTIONS,
    INCREASED,
    NO_DIFFERENCE,
    claim_text,
    stated_result,
    widened,
)
from meditune.data.readers.tables import Rejects
from meditune.data.splits import OFFICIAL
from meditune.errors import DataError
from tests.data.readers.test_claims import reasons, table
from tests.layouts import jsonl

ARTICLE = (
    "TITLE: A trial of tea\n\n  ABSTRACT.RESULTS:\nTea was liked. Sleep rose more with tea (P < 0.01). Nobody fell.\n\n"
    "BODY.RESULTS:\nPain was the same in both groups (P = 0.6).\n"
)
SLEEP, PAIN = "leep rose more with tea (P < 0.01)", "Pain was the same in both groups"
PROMPTS = ["PromptID", "PMCID", "Outcome", "Intervention", "Comparator"]
ANNOTATIONS = [
    *("UserID", "PromptID", "PMCID", "Valid Label", "Valid Reasoning", "Label", "Annotations", "Label Code"),
    *("In Abstract", "Evidence Start", "Evidence End"),
]


def judged(
    prompt: int, code: int, quotation: str, *, valid: bool = True, user: int = 0, start: int | None = None
) -> Any:
    """A row of annotations_merged.csv."""
    begin = ARTICLE.find(quotation) if start is None else start
    end = begin + len(quotation) if begin >= 0 else -1
    label = DIRECTIONS[code]
    return [user, prompt, 77, str(valid), str(valid), label, quotation, code, "UNK", begin, end]


def published(folder: Path, prompts: list[list[Any]], annotations: list[list[Any]]) -> Path:
    root = folder / "annotations"
    table(root / "prompts_merged.csv", PROMPTS, prompts)
    table(root / "annotations_merged.csv", ANNOTATIONS, annotations)
    (root / "txt_files").mkdir(exist_ok=True)
    (root / "txt_files" / "PMC77.txt").write_text(ARTICLE, encoding="utf-8")
    (root / "splits").mkdir(exist_ok=True)
    for name, ids in (("train", "77"), ("validation", "78"), ("test", "79\n80")):
        (root / "splits" / f"{name}_article_ids.txt").write_text(ids + "\n", encoding="utf-8")
    return folder


def test_prompts_become_claims_with_widened_evidence(tmp_path: Path) -> None:
    prompts = [
        [1, 77, "sleep ", "tea", " hot water "],
        [2, 77, "pain.", "Tea", "water"],
        [3, 77, "pain", "tea", "water"],
        [4, 77, "pain", "tea", "water"],
        [5, 77, "pain", "", "water"],
        [911, 77, "pain", "tea", "water"],
        [6, 79, "hunger", "tea", "water"],
    ]
    annotations = [
        judged(1, 1, SLEEP),
        judged(1, 1, "Sleep rose more", user=3),
        judged(2, 0, PAIN),
        judged(2, -1, PAIN, valid=False, user=3),
        judged(3, 0, PAIN),
        judged(3, 1, PAIN, user=3),
        judged(911, 0, PAIN),
        judged(6, -1, "Hunger fell, says a table."),
    ]
    rejects = Rejects()
    found = list(evidence_inference.read(published(tmp_path, prompts, annotations), rejects))
    assert [(claim.id, claim.group, claim.meta["split"]) for claim in found] == [
        ("evidence-inference:1", "PMC77", "train"),
        ("evidence-inference:2", "PMC77", "train"),
        ("evidence-inference:6", "PMC79", "test"),
    ]
    assert [claim.meta["result"] for claim in found] == [INCREASED, NO_DIFFERENCE, DECREASED]
    assert [claim.context_text for claim in found] == [
        "Tea was liked. Sleep rose more with tea (P < 0.01). Nobody fell.",
        "Pain was the same in both groups (P = 0.6).",
        "Hunger fell, says a table.",
    ]
    for claim in found:
        stated = stated_result(claim.id.partition(":")[2], claim.meta["result"])
        assert claim.label == ("supported" if stated == claim.meta["result"] else "refuted")
        assert claim.question == claim_text(
            stated, *(claim.meta[part] for part in ("outcome", "intervention", "comparator"))
        )
    assert [reason for _, reason in reasons(rejects)] == [
        "the annotators disagree",
        "no valid annotation",
        evidence_inference.NO_PARTS,
        "listed as incorrect by the publisher",
    ]
    assert [claim.id for claim in OFFICIAL["evidence-inference"](found)[1]] == ["evidence-inference:6"]


def test_the_sentences() -> None:
    parts = {"outcome": "sleep", "intervention": "tea with milk", "comparator": "hot water"}
    assert claim_text(INCREASED, **parts) == "Tea with milk significantly increased sleep compared with hot water."
    assert claim_text(DECREASED, **parts) == "Tea with milk significantly decreased sleep compared with hot water."
    assert claim_text(NO_DIFFERENCE, **parts) == (
        "There was no significant difference between tea with milk and hot water in sleep."
    )
    assert claim_text(INCREASED, "sleep", "rhBMP-2", "tea").startswith("rhBMP-2 "), "names keep their capitals"


@pytest.mark.parametrize("result", DIRECTIONS)
def test_half_of_the_claims_are_true_and_the_others_alternate(result: str) -> None:
    counts = Counter(stated_result(str(number), result) for number in range(4000))
    assert counts[result] == pytest.approx(2000, abs=150)
    assert all(counts[other] == pytest.approx(1000, abs=150) for other in DIRECTIONS if other != result)


LONG = " ".join(f"Sentence {number} says that nothing happened in group {number} at all." for number in range(60))


@pytest.mark.parametrize(
    ("quotation", "start", "expected"),
    [
        ("Sentence 30 says that nothing happened", LONG.find("Sentence 30"), (29, 30, 31)),
        ("Sentence 0 says that", LONG.find("Sentence 0"), (0, 1)),
        ("Sentence 59 says that", LONG.find("Sentence 59"), (58, 59)),
        ("Sentence 30 says that nothing happened", -1, (29, 30, 31)),
        ("Sentence 30 says that nothing happened", 10**9, (29, 30, 31)),
    ],
)
def test_in_a_long_paragraph_the_neighbouring_sentences(quotation: str, start: int, expected: tuple[int, ...]) -> None:
    text = widened(f"HEAD:\n{LONG}\n\nNext.", quotation, start + 6 if start >= 0 else start, start + 6 + len(quotation))
    sentences = [f"Sentence {number} says that nothing happened in group {number} at all." for number in expected]
    assert text == " ".join(sentences)


def test_wrong_offsets_are_not_used() -> None:
    other = ARTICLE.find("Nobody")
    assert widened(ARTICLE, PAIN, other, other + 9) == "Pain was the same in both groups (P = 0.6)."
    assert widened(ARTICLE, "Tea is not mentioned so.", 0, 9) == "Tea is not mentioned so."


def test_missing_files_and_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found no prompts\.jsonl or prompts_merged\.csv\. Unpack .* v2\.0\.tar\.gz"):
        list(evidence_inference.read(tmp_path, Rejects()))
    root = published(tmp_path, [[1, 77, "sleep", "tea", "water"]], [judged(1, 1, SLEEP)]) / "annotations"
    table(root / "annotations_merged.csv", ["PromptID", "PMCID"], [[1, 77]])
    with pytest.raises(DataError, match=r"annotations_merged\.csv:2: no column 'Valid Label'"):
        list(evidence_inference.read(tmp_path, Rejects()))
    (root / "annotations_merged.csv").unlink()
    with pytest.raises(DataError, match=r"annotations_merged\.csv: no such file\. This file contains the annotators'"):
        list(evidence_inference.read(tmp_path, Rejects()))


def test_without_articles_and_splits_the_quotation_is_the_evidence(tmp_path: Path) -> None:
    root = published(tmp_path, [[1, 77, "sleep", "tea", "water"]], [judged(1, 1, SLEEP)]) / "annotations"
    (root / "txt_files" / "PMC77.txt").unlink()
    for file in (root / "splits").iterdir():
        file.unlink()
    (claim,) = evidence_inference.read(tmp_path, Rejects())
    assert claim.context_text == SLEEP
    assert "split" not in claim.meta
    with pytest.raises(DataError, match="no rows of the published test split"):
        OFFICIAL["evidence-inference"]([claim])


def test_prompts_and_abstracts_given_as_json_lines(tmp_path: Path) -> None:
    def prompt(number: int, **changes: Any) -> dict[str, Any]:
        row = {"prompt_id": str(number), "pmcid": "PMC77", "pmid": "7", "license": "CC BY 4.0", "split": "train"}
        parts = {"outcome": "sleep", "intervention": "tea", "comparator": "water", "label": INCREASED}
        return row | parts | {"evidence": "Sleep rose.", "evidence_in_abstract": False} | changes

    rows = [prompt(1), prompt(2, evidence_in_abstract=True), prompt(3, label="better"), prompt(4, evidence="")]
    rows.append(prompt(5, pmcid="PMC78", evidence_in_abstract=True))
    jsonl(tmp_path / "prompts.jsonl", rows)
    abstract = [{"label": "METHODS", "text": "We gave tea."}, {"label": "RESULTS", "text": "Sleep rose."}]
    jsonl(tmp_path / "abstracts.jsonl", [{"pmcid": "PMC77", "title": "Tea", "abstract": abstract}])
    rejects = Rejects()
    first, second = evidence_inference.read(tmp_path, rejects)
    assert (first.context_text, second.context_text) == ("Sleep rose.", "We gave tea. Sleep rose.")
    assert [passage.label for passage in second.context] == ["METHODS", "RESULTS"]
    assert (first.group, first.meta["split"], first.meta["licence"]) == ("PMC77", "train", "CC BY 4.0")
    assert reasons(rejects) == [
        ("prompts.jsonl:3", f"unknown label (not {', '.join(DIRECTIONS)})"),
        ("prompts.jsonl:4", "no evidence"),
        ("prompts.jsonl:5", "no abstract of PMC78 in abstracts.jsonl"),
    ]
    (tmp_path / "prompts.jsonl").write_text(json.dumps(prompt(1))[:-5], encoding="utf-8")
    with pytest.raises(DataError, match=r"prompts\.jsonl, line 1: not valid JSON"):
        list(evidence_inference.read(tmp_path, Rejects()))


@pytest.mark.real
def test_the_given_files(real_data: Path) -> None:
    rejects = Rejects()
    found = list(evidence_inference.read(real_data / "evidence-inference", rejects))
    assert len(rejects) == 0
    assert Counter(claim.label for claim in found) == {"supported": 549, "refuted": 512}
    assert Counter(claim.meta["split"] for claim in found) == {"train": 868, "test": 108, "validation": 85}
    rest, test = OFFICIAL["evidence-inference"](found)
    assert (len(rest), len(test)) == (953, 108)
