"""Readers of published claims, on small files in the publishers' layouts with invented content."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from meditune.data import leakage
from meditune.data.example import ANSWERED_QUESTION, Example
from meditune.data.readers import claims, pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.data.sources import SOURCES, has_files
from meditune.data.splits import OFFICIAL, Splits, split
from meditune.errors import DataError
from tests import layouts
from tests.layouts import jsonl


def table(path: Path, columns: list[str], rows: list[list[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return path


def reasons(rejects: Rejects) -> list[tuple[str, str]]:
    """File name with place, and the reason, of each rejected row."""
    return [(row["where"].rpartition("/")[2], row["reason"]) for row in rejects.rows()]


def document(number: int, *sentences: str) -> dict[str, Any]:
    return {"doc_id": number, "title": f"Title {number}", "abstract": list(sentences), "structured": False}


def cited(number: int, claim: str, evidence: dict[str, Any], *documents: int) -> dict[str, Any]:
    return {"id": number, "claim": claim, "evidence": evidence, "cited_doc_ids": list(documents)}


def rationale(label: str, *sentences: int) -> list[dict[str, Any]]:
    return [{"sentences": list(sentences), "label": label}]


def scifact(folder: Path) -> Path:
    corpus = [document(n, f"Study {n} was small. ", f"Zinc {n} shortened colds.") for n in (11, 12, 13, 14)]
    jsonl(folder / "data" / "corpus.jsonl", corpus)
    train = [
        cited(1, "Zinc shortens colds.", {"11": rationale("SUPPORT", 1), "12": rationale("CONTRADICT", 0)}, 11, 12),
        cited(2, "Zinc cures warts.", {}, 13, 14),
        cited(3, "Zinc is a metal.", {}, 14),
        cited(4, "Zinc is in document 99.", {"99": rationale("SUPPORT", 0)}, 99),
        cited(5, "Zinc helps.", {"11": [*rationale("SUPPORT", 0), *rationale("CONTRADICT", 1)]}, 11),
        cited(6, "", {}, 11),
        cited(7, "Zinc is heavy.", {"11": "SUPPORT"}, 11),  # type: ignore[dict-item]
        cited(8, "Zinc is light.", {}),
    ]
    jsonl(folder / "data" / "claims_train.jsonl", train)
    jsonl(folder / "data" / "claims_dev.jsonl", [cited(9, "Zinc is safe.", {"14": rationale("SUPPORT", 0)}, 14)])
    jsonl(folder / "data" / "claims_test.jsonl", [{"id": 10, "claim": "Zinc tastes bad."}])
    return folder


def test_scifact_gives_a_claim_for_each_document(tmp_path: Path) -> None:
    rejects = Rejects()
    found = list(claims.read_scifact(scifact(tmp_path), rejects))
    assert [(claim.id, claim.label, claim.group, claim.meta["split"]) for claim in found] == [
        ("scifact:1-11", "supported", "11", "train"),
        ("scifact:1-12", "refuted", "12", "train"),
        ("scifact:2-13", "not_enough_information", "13", "train"),
        ("scifact:3-14", "not_enough_information", "14", "train"),
        ("scifact:9-14", "supported", "14", "dev"),
    ]
    assert found[0].question == "Zinc shortens colds."
    assert found[0].context_text == "Study 11 was small. Zinc 11 shortened colds.", "sentences, without the title"
    assert len(found[0].labels) == 3
    assert reasons(rejects) == [
        ("claims_train.jsonl:4", claims.NOT_IN_CORPUS),
        ("claims_train.jsonl:5", "the labels of a document's rationales are unknown or differ"),
        ("claims_train.jsonl:6", claims.NO_CLAIM),
        ("claims_train.jsonl:7", claims.NO_RATIONALES),
        ("claims_train.jsonl:8", "neither evidence nor a cited document"),
    ]
    (alone,) = claims.read_scifact(tmp_path / "data" / "claims_dev.jsonl", Rejects())
    assert alone.meta["split"] == "dev"


def test_the_official_split_keeps_documents_of_the_test_split_out_of_training(tmp_path: Path) -> None:
    found = list(claims.read_scifact(scifact(tmp_path), Rejects()))
    rest, test = OFFICIAL["scifact"](found)
    assert [claim.id for claim in test] == ["scifact:9-14"]
    assert [claim.id for claim in rest] == ["scifact:1-11", "scifact:1-12", "scifact:2-13"], "3-14 cites document 14"
    with pytest.raises(DataError, match=r"^scifact: no rows of the published dev split.*data\.split=group"):
        OFFICIAL["scifact"](rest)


def test_scifact_without_its_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found no claims_train\.jsonl or claims_dev\.jsonl\. Unpack .* data\.tar\.gz"):
        list(claims.read_scifact(tmp_path, Rejects()))
    (scifact(tmp_path) / "data" / "corpus.jsonl").unlink()
    with pytest.raises(DataError, match=r"corpus\.jsonl: no such file\. This file contains the documents"):
        list(claims.read_scifact(tmp_path, Rejects()))


HEALTHVER = ["id", "evidence", "claim", "label", "topic_ip", "question"]


def test_healthver(tmp_path: Path) -> None:
    topic = [7, "does tea help against colds?"]
    rows = [
        [1, 'Tea was "hot", and nothing else.', "Tea is hot ", "Supports", *topic],
        [2, "Tea had no effect.", "Tea cures colds", "Refutes", *topic],
        [3, "Tea grows in hills.", "Tea cures colds", "Neutral", *topic],
        [4, "Tea grows in hills.", "Tea is green", "Unsure", *topic],
        [5, "", "Tea is green", "Neutral", *topic],
    ]
    table(tmp_path / "data" / "healthver_train.csv", HEALTHVER, rows)
    table(tmp_path / "data" / "healthver_test.csv", HEALTHVER, [[6, "Tea is wet.", "Tea is dry", "Refutes", *topic]])
    rejects = Rejects()
    found = list(claims.read_healthver(tmp_path, rejects))
    assert [(claim.id, claim.label) for claim in found] == [
        ("healthver:train-1", "supported"),
        ("healthver:train-2", "refuted"),
        ("healthver:train-3", "not_enough_information"),
        ("healthver:test-6", "refuted"),
    ]
    assert found[0].context_text == 'Tea was "hot", and nothing else.'
    assert found[1].group == found[2].group, "claims of the same words"
    assert found[0].meta["topic"] == "does tea help against colds?"
    assert ANSWERED_QUESTION not in found[0].meta, "a topic of many claims is no question that a claim answers"
    assert reasons(rejects) == [
        ("healthver_train.csv:5", "unknown label (not Supports, Refutes or Neutral)"),
        ("healthver_train.csv:6", claims.NO_EVIDENCE),
    ]
    rest, test = OFFICIAL["healthver"](found)
    assert ([claim.id for claim in test], len(rest)) == (["healthver:test-6"], 3)
    table(tmp_path / "data" / "healthver_train.csv", ["id", "text"], [[1, "x"]])
    with pytest.raises(DataError, match=r"healthver_train\.csv:2: no column 'evidence'\. The columns are 'id', 'text'"):
        list(claims.read_healthver(tmp_path, Rejects()))


def test_citation_integrity_with_three_classes(tmp_path: Path) -> None:
    corpus = [document(31000, "Sleep fell.", "Mood fell."), document(31001, "Rest."), document(4000, "Pain rose.")]
    jsonl(tmp_path / "corpus.jsonl", corpus)
    train = [
        cited(0, "Sleep falls [<|cit|>].", {"31000": rationale("ACCURATE", 0)}, 31000),
        cited(1, "Sleep rises [<|multi_cit|>].", {"31001": rationale("NOT_ACCURATE", 0)}, 31001),
    ]
    jsonl(tmp_path / "claims_train.jsonl", train)
    jsonl(tmp_path / "claims_test.jsonl", [cited(0, "Pain is common <|cit|>.", {}, 4000)])
    found = list(claims.read_citation_integrity(tmp_path, Rejects()))
    assert [(claim.id, claim.label, claim.group, claim.context_text) for claim in found] == [
        ("citation-integrity:train-0", "supported", "31", "Sleep fell. Mood fell."),
        ("citation-integrity:train-1", "refuted", "31", "Rest."),
        ("citation-integrity:test-0", "not_enough_information", "4", "Pain rose."),
    ]
    assert found[0].question == "Sleep falls [<|cit|>].", "the marker shows which citation is judged"
    assert [claim.id for claim in OFFICIAL["citation-integrity"](found)[1]] == ["citation-integrity:test-0"]


def test_citation_integrity_with_nine_classes(tmp_path: Path) -> None:
    folder = tmp_path / "Data" / "multivers-format"
    jsonl(folder / "corpus.jsonl", [document(51000 + n, f"Paragraph {n}.") for n in range(4)])
    everything = range(51000, 51004)
    rows = [
        cited(0, "One.", {"51001": rationale("ACCURATE", 0), "51003": rationale("INDIRECT", 0)}, *everything),
        cited(1, "Two.", {"51002": rationale("MISQUOTE", 0)}, *everything),
        cited(2, "Three.", {}, *everything),
        cited(3, "Four.", {"51002": rationale("ODD", 0)}, *everything),
    ]
    jsonl(folder / "claims-dev.jsonl", rows)
    rejects = Rejects()
    first, second = claims.read_citation_integrity(tmp_path, rejects)
    assert (first.label, first.context_text) == ("supported", "Paragraph 1. Paragraph 3.")
    assert first.meta["classes"] == ["ACCURATE", "INDIRECT"]
    assert (second.label, second.group, second.meta["split"]) == ("refuted", "51", "dev")
    assert first.labels == ("supported", "refuted")
    assert [reason for _, reason in reasons(rejects)] == [
        "no evidence, so the label isn't stated in this layout",
        f"the labels are unknown or differ (known: {', '.join(claims.CITATION_LABELS)})",
    ]


def nli4ct(folder: Path) -> Path:
    """The unpacked archive, with four trials."""
    root = folder / "Complete_dataset"
    (root / "CT json").mkdir(parents=True)
    for number in range(1, 5):
        report = {
            "Clinical Trial ID": f"NCT0000000{number}",
            "Intervention": ["INTERVENTION 1: ", f"  Drug {number}"],
            "Eligibility": ["Inclusion Criteria:", f"  Older than {number}0 years"],
            "Results": ["Outcome Measurement: ", "  Weight"],
            "Adverse Events": ["Adverse Events 1:", f"  Total: {number}/15"],
        }
        (root / "CT json" / f"NCT0000000{number}.json").write_text(json.dumps(report), encoding="utf-8")

    def item(kind: str, section: str, label: str | None, *trials: int) -> dict[str, Any]:
        names = dict(zip(("Primary_id", "Secondary_id"), (f"NCT0000000{trial}" for trial in trials), strict=False))
        stated = {"Label": label} if label else {}
        return {"Type": kind, "Section_id": section, **names, "Statement": f"{section} of {trials}.", **stated}

    train = {
        "a-1": item("Single", "Adverse events", "Entailment", 1),
        "a-2": item("Comparison", "Eligibility", "Contradiction", 2, 3),
        "a-3": item("Single", "Results", None, 1),
        "a-4": item("Single", "Results", "Entailment", 9),
        "a-5": item("Comparison", "Results", "Entailment", 1, 4),
    }
    (root / "train.json").write_text(json.dumps(train), encoding="utf-8")
    (root / "dev.json").write_text(json.dumps({"b-1": item("Single", "Intervention", "Entailment", 4)}))
    return folder


def test_nli4ct_takes_the_named_section_of_each_trial(tmp_path: Path) -> None:
    rejects = Rejects()
    found = list(claims.read_nli4ct(nli4ct(tmp_path), rejects))
    assert [(claim.id, claim.label, claim.group) for claim in found] == [
        ("nli4ct:a-1", "supported", "NCT00000001"),
        ("nli4ct:a-2", "refuted", "NCT00000002"),
        ("nli4ct:a-5", "supported", "NCT00000001"),
        ("nli4ct:b-1", "supported", "NCT00000004"),
    ]
    assert [passage.text for passage in found[1].context] == [
        "Primary trial, Eligibility:\nInclusion Criteria:\nOlder than 20 years",
        "Secondary trial, Eligibility:\nInclusion Criteria:\nOlder than 30 years",
    ]
    assert found[0].context_text.endswith("Adverse Events 1:\nTotal: 1/15"), "the section's name ignores case"
    assert found[0].labels == ("supported", "refuted")
    assert reasons(rejects) == [
        ("train.json, item a-3", "unknown label (not Entailment or Contradiction)"),
        ("train.json, item a-4", "no section 'Results' in the primary trial"),
    ]
    rest, test = OFFICIAL["nli4ct"](found)
    assert [claim.id for claim in test] == ["nli4ct:b-1"]
    assert [claim.id for claim in rest] == ["nli4ct:a-1", "nli4ct:a-2"], "a-5 compares with the trial of b-1"
    gold = {"c-1": json.loads((tmp_path / "Complete_dataset" / "dev.json").read_text())["b-1"]}
    (tmp_path / "Complete_dataset" / "Gold_test.json").write_text(json.dumps(gold))
    assert [claim.id for claim in OFFICIAL["nli4ct"](list(claims.read_nli4ct(tmp_path, Rejects())))[1]] == [
        "nli4ct:c-1"
    ]


def test_nli4ct_without_its_trials(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(DataError, match=r"no trials \(NCT\*\.json\) here\. Copy the publisher's folder 'CT json'"):
        list(claims.read_nli4ct(tmp_path, Rejects()))
    (nli4ct(tmp_path / "set") / "Complete_dataset" / "dev.json").write_text("[1]")
    with pytest.raises(DataError, match=r"dev\.json: expected an object that maps ids to statements"):
        list(claims.read_nli4ct(tmp_path / "set", Rejects()))


def hallucinated(number: int, **changes: Any) -> dict[str, Any]:
    """A row as in MedHallu's Parquet files."""
    return {
        "Question": f"Does treatment {number} help?",
        "Knowledge": [
            f"We gave treatment {number} to adults in ward {number} for a year and measured pain each week.",
            f"Of {number}00 adults, every second one had less pain at the end, and nobody left the ward before.",
        ],
        "Ground Truth": f"Treatment {number} may help.",
        "Difficulty Level": "hard",
        "Hallucinated Answer": f"Treatment {number} cures everyone.",
        "Category of Hallucination": "Incomplete Information",
    } | changes


def medhallu(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "pqa_labeled").mkdir(parents=True, exist_ok=True)
    path = folder / "pqa_labeled" / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return folder


def test_medhallu_gives_two_claims_on_the_same_evidence(tmp_path: Path) -> None:
    rejects = Rejects()
    medhallu(tmp_path, [hallucinated(1), hallucinated(2, **{"Hallucinated Answer": ""}), hallucinated(3)])
    jsonl(tmp_path / "pqa_artificial.jsonl", [hallucinated(4)])
    found = list(claims.read_medhallu(tmp_path, rejects))
    assert [(claim.id, claim.label, claim.question) for claim in found[:2]] == [
        ("medhallu:pqa_labeled-1-supported", "supported", "Treatment 1 may help."),
        ("medhallu:pqa_labeled-1-refuted", "refuted", "Treatment 1 cures everyone."),
    ]
    assert found[0].context == found[1].context
    assert found[0].group == found[1].group != found[2].group
    assert found[0].labels == ("supported", "refuted")
    assert (found[0].meta["difficulty"], found[0].meta["category"]) == ("hard", "Incomplete Information")
    assert found[0].meta[ANSWERED_QUESTION] == "Does treatment 1 help?"
    assert found[2].id == "medhallu:pqa_labeled-3-supported"
    assert reasons(rejects) == [("train-00000-of-00001.parquet, row 2", "no ground truth or no hallucinated answer")]
    (only,) = {claim.meta["split"] for claim in claims.read_medhallu(tmp_path / "pqa_artificial.jsonl", Rejects())}
    assert only == "pqa_artificial"


def test_medhallu_is_also_read_from_json_lines_with_lowercase_columns(tmp_path: Path) -> None:
    published = list(claims.read_medhallu(medhallu(tmp_path / "published", [hallucinated(1)]), Rejects()))
    names = {"Knowledge": "contexts", "Difficulty Level": "difficulty", "Category of Hallucination": "category"}
    row = {names.get(key, key.lower().replace(" ", "_")): value for key, value in hallucinated(1).items()}
    jsonl(tmp_path / "half.jsonl", [row])
    rejects = Rejects()
    converted = list(claims.read_medhallu(tmp_path / "half.jsonl", rejects))
    assert not reasons(rejects)
    for one, other in zip(converted, published, strict=True):
        assert (one.question, one.context, one.label, one.group) == (
            other.question,
            other.context,
            other.label,
            other.group,
        )
        assert {key: one.meta[key] for key in ("difficulty", "category")} == {
            key: other.meta[key] for key in ("difficulty", "category")
        }


def planted(tmp_path: Path) -> tuple[list[Example], list[Example]]:
    """MedHallu's claims, and PubMedQA items of which 1 has their abstract, 2 only their question, 3 neither."""
    row = hallucinated(1)
    abstract = {"QUESTION": "Is something else asked here?", "CONTEXTS": row["Knowledge"], "LABELS": ["METHODS"]}
    question = {"QUESTION": hallucinated(2)["Question"].upper(), "CONTEXTS": ["No word of it."], "LABELS": [""]}
    items = {"1": abstract, "2": question, "3": {"QUESTION": "Do cats sleep more than dogs in winter?"}}
    layouts.pubmedqa(tmp_path, {pmid: layouts.pubmedqa_item(int(pmid), **item) for pmid, item in items.items()})
    medhallu(tmp_path / "medhallu", [row, hallucinated(2, Knowledge=["Another short abstract."])])
    found = list(claims.read_medhallu(tmp_path / "medhallu", Rejects()))
    return found, list(pubmedqa.read(tmp_path / "ori_pqal.json", Rejects()))


def test_leakage_finds_the_pubmedqa_test_items_in_medhallu(tmp_path: Path) -> None:
    found, items = planted(tmp_path)
    checked = leakage.check(Splits(train=found, dev=[], test=items, test_set="pubmedqa"), "test", "a-model")
    assert {(kind, leak["test"]) for kind, row in checked["found"].items() for leak in row["leaks"]} == {
        ("context", "pubmedqa:1"),
        ("question", "pubmedqa:2"),
    }
    with pytest.raises(DataError, match=r"Leakage: .*pubmedqa:2 = medhallu:pqa_labeled-2-supported"):
        leakage.refuse(checked, False, tmp_path)
    record = leakage.record(found)
    assert {leak.test for leak in leakage.known_test_items([record], [], items)} == {"pubmedqa:1", "pubmedqa:2"}


def test_leakage_finds_medhallu_test_items_in_pubmedqa_once_each(tmp_path: Path) -> None:
    found, items = planted(tmp_path)
    leaks = leakage.find(items, found)
    assert Counter((leak.kind, leak.test.rpartition("-")[0], leak.train) for leak in leaks) == {
        ("context", "medhallu:pqa_labeled-1", "pubmedqa:1"): 2,
        ("question", "medhallu:pqa_labeled-2", "pubmedqa:2"): 2,
    }


@pytest.mark.parametrize("name", [*claims.LICENCES, "evidence-inference"])
def test_the_sources_are_never_downloaded(tmp_path: Path, name: str) -> None:
    source = SOURCES[name]
    assert not source.download
    assert source.how
    assert not has_files(source, tmp_path)


def test_a_run_with_several_sources_of_claims(tmp_path: Path) -> None:
    parts = split(
        {
            "scifact": list(claims.read_scifact(scifact(tmp_path / "s"), Rejects())),
            "nli4ct": list(claims.read_nli4ct(nli4ct(tmp_path / "n"), Rejects())),
        },
        official=True,
        test_share=0.2,
        dev_share=0.5,
        seed=1,
    )
    assert parts.test_set == "scifact-official-1+nli4ct-official-1"
    assert {example.id for example in parts.test} == {"scifact:9-14", "nli4ct:b-1"}
