"""`meditune update` as a user meets it: what becomes of articles, index, answers and guidelines.

Stored answers that cite what was retracted since.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meditune.operate.literature import article_library, literature_update
from meditune.retrieve.index import Index
from tests import corpus
from tests.commands import meditune
from tests.operate.literature.pubmed_server import (
    Paper,
    PubMed,
    deletes,
    documents_found,
    library_rows,
    notice,
    update_by_query,
    update_file,
)

pytest.importorskip("lancedb")


def test_articles_are_added_then_corrected_then_retracted(served: PubMed, tmp_path: Path) -> None:
    served.add(*(Paper(pmid) for pmid in range(101, 106)))
    result = update_by_query(served, tmp_path, "--index", tmp_path / "index").ok()
    assert "5 articles added or revised" in result.out
    assert "5 new" in result.out
    assert "pubmed:103" in documents_found(tmp_path, "treatment 103")
    assert {each["id"] for each in library_rows(tmp_path, "pairs.jsonl")} == {"101", "102", "103", "104", "105"}

    served.add(
        Paper(
            102,
            conclusion="Treatment 102 raises the number of attacks.",
            revised="2026-02-01",
            links=[("ErratumIn", 900, "J. 2026;1:2")],
        ),
        Paper(
            103,
            revised="2026-02-01",
            types=("Journal Article", "Retracted Publication"),
            links=[("RetractionIn", 901, "J. 2026;1:3")],
        ),
    )
    served.clock += 86_400
    result = update_by_query(served, tmp_path, "--index", tmp_path / "index").ok()
    assert "RETRACTED: PMID 103 (notice: PMID 901): Treatment 103 reduces attacks of asthma." in result.out
    assert "1 changed" in result.out
    assert "pubmed:103" not in documents_found(tmp_path, "treatment 103")
    pairs = {each["id"]: each for each in library_rows(tmp_path, "pairs.jsonl")}
    assert sorted(pairs) == ["101", "102", "104", "105"]
    assert pairs["102"]["answer"] == "Treatment 102 raises the number of attacks."
    (gone,) = library_rows(tmp_path, "retracted.jsonl")
    assert (gone["pmid"], gone["notice"]) == ("103", "901")
    said = json.loads((tmp_path / "library" / "update.json").read_text())
    assert said["counts"] == {"as they were": 3, "changed": 1, "retracted": 1}
    assert [each["pmid"] for each in said["retracted"]] == ["103"]
    assert said["changes"]["removed"] > 0

    # A record that is as new, without the notice, takes the retraction back.
    served.add(Paper(103, revised="2026-03-01"))
    result = update_by_query(served, tmp_path, "--index", tmp_path / "index")
    assert "1 no longer retracted" in result.out
    assert "pubmed:103" in documents_found(tmp_path, "treatment 103")
    assert library_rows(tmp_path, "retracted.jsonl") == []


def test_answers_that_cite_a_retracted_article_are_flagged(served: PubMed, tmp_path: Path) -> None:
    from meditune.serve.metrics import facts_of
    from meditune.store.answers import Answer, Answers
    from meditune.store.database import SQLiteDatabase

    kept = Answers(SQLiteDatabase(tmp_path / "store"))
    for name, pmid in (("one", 101), ("two", 102)):
        facts = facts_of({"sources": [{"id": f"pubmed:{pmid}#0", "restricted": False}], "sentences": []})
        kept.keep(Answer(name, "", "/v1/ask", "tiny 1", facts=facts))
    served.add(Paper(101), Paper(102, types=("Retracted Publication",)))
    result = update_by_query(served, tmp_path, "--store", tmp_path / "store").ok()
    assert "FLAGGED: 1 stored answer cited" in result.out
    assert "Answer two cites PMID 102" in result.out
    assert [each["answer"] for each in library_rows(tmp_path, "flagged.jsonl")] == ["two"]
    update_by_query(served, tmp_path, "--store", tmp_path / "nothing").ok()


def test_notices_count_before_and_after_their_article(served: PubMed, tmp_path: Path) -> None:
    update_file(served.folder, 1340, Paper(101), notice(901, of=102), Paper(103), Paper(104))
    update_file(
        served.folder,
        1341,
        Paper(102),
        notice(902, of=101, revised="2026-02-02"),
        Paper(105, links=[("UpdateOf", 103, "J. 2025;1:1")]),
        Paper(104, revised="2026-02-02", links=[("CorrectedandRepublishedIn", 106, "J. 2026;1:1")]),
        Paper(107, revised="2026-02-02", links=[("ExpressionOfConcernIn", 903, "J. 2026;1:1")]),
    )
    meditune("update", tmp_path / "library", "--update-files", served.folder, "--index", tmp_path / "index").ok()
    assert [each["pmid"] for each in library_rows(tmp_path, "retracted.jsonl")] == ["102", "101"]
    assert {each["notice"] for each in library_rows(tmp_path, "retracted.jsonl")} == {"901", "902"}
    assert sorted(set(documents_found(tmp_path, "treatment"))) == ["pubmed:105", "pubmed:107"]
    hits = Index.open(tmp_path / "index", corpus.TINY).search("treatment 107").hits
    assert any(hit.passage.title.startswith("[Expression of concern] ") for hit in hits)
    assert [each["id"] for each in library_rows(tmp_path, "pairs.jsonl")] == ["105"]
    # The newer version goes; the older one stands again.
    update_file(served.folder, 1342, deletes(105))
    meditune("update", tmp_path / "library", "--update-files", served.folder, "--index", tmp_path / "index")
    assert sorted(set(documents_found(tmp_path, "treatment"))) == ["pubmed:103", "pubmed:107"]


def test_retractions_reach_what_an_index_holds_from_elsewhere(served: PubMed, tmp_path: Path) -> None:
    from meditune.retrieve import collections
    from meditune.retrieve.build_index import build, update
    from meditune.retrieve.storage import index_storage

    old = corpus.articles(tmp_path / "old.xml", corpus.article(501, "Old", "An old article about gout."))
    build(
        index_storage(tmp_path / "index"),
        [collections.collection_named("pubmedqa"), collections.pubmed_files(str(old))],
        corpus.TINY,
    )
    assert "pubmedqa:20000001" in documents_found(tmp_path, "treatment 1")
    retracted = {"types": ("Retracted Publication",), "links": [("RetractionIn", 900, "J. 2026;1:3")]}
    served.add(Paper(20_000_001, **retracted), Paper(501, **retracted), Paper(777, **retracted), Paper(101))
    result = update_by_query(served, tmp_path, "--index", tmp_path / "index", query="nothing fits").ok()
    assert "RETRACTED: PMID 20000001" in result.out
    assert [each["pmid"] for each in library_rows(tmp_path, "retracted.jsonl")] == ["20000001", "501"]
    assert not {"pubmedqa:20000001", "pubmed:501"} & set(documents_found(tmp_path, "treatment 1 gout"))
    # What comes into the index later is looked for among what was listed before.
    late = corpus.articles(tmp_path / "late.xml", corpus.article(777, "Late", "A late article about gout."))
    update(index_storage(tmp_path / "index"), [collections.pubmed_files(str(late))], corpus.TINY)
    assert "pubmed:777" in documents_found(tmp_path, "late article gout")
    assert (
        "RETRACTED: PMID 777"
        in update_by_query(served, tmp_path, "--index", tmp_path / "index", query="nothing fits").out
    )
    assert "pubmed:777" not in documents_found(tmp_path, "late article gout")
    # And they stay away when one source is read again, or all are.
    update(index_storage(tmp_path / "index"), [collections.collection_named("pubmedqa")], corpus.TINY)
    assert "pubmedqa:20000001" not in documents_found(tmp_path, "treatment 1")
    update(index_storage(tmp_path / "index"), [], corpus.TINY)
    assert not {"pubmedqa:20000001", "pubmed:501", "pubmed:777"} & set(documents_found(tmp_path, "treatment 1 gout"))
    assert "pubmedqa:20000002" in documents_found(tmp_path, "treatment 2")


def test_of_two_that_say_the_same_one_stands(served: PubMed, tmp_path: Path) -> None:
    served.add(Paper(101), Paper(102, parts=Paper(101).sections))
    assert "Left out: 1 says the same as" in update_by_query(served, tmp_path).out
    (stands,) = library_rows(tmp_path, "pairs.jsonl")
    # The one that stands is worded anew, so that the other one stands too.
    served.add(Paper(int(stands["id"]), conclusion="It lowers them a great deal.", revised="2026-02-01"))
    update_by_query(served, tmp_path).ok()
    assert sorted(each["id"] for each in library_rows(tmp_path, "pairs.jsonl")) == ["101", "102"]


def test_what_isnt_fit_is_left_out_with_the_reason(served: PubMed, tmp_path: Path) -> None:
    french = (
        "Nous avons suivi deux cents malades pendant un an et nous avons compare les crises dans les deux groupes, " * 3
    )
    physics = (
        "We measured the velocity of neutrinos in a tunnel below the mountain with two arrays of scintillators " * 3
    )
    same = Paper(101).sections
    update_file(
        served.folder,
        1340,
        Paper(101),
        Paper(102, parts=same),
        Paper(103, parts=[("", "", french)]),
        Paper(104, parts=[("", "", physics)], title="Neutrino velocity.", mesh=()),
        Paper(105, parts=[]),
        Paper(106, parts=[("", "", "Too short.")]),
        Paper(107, title="[Not Available].", vernacular="Asthme et sport.", language="fre"),
        Paper(
            108,
            parts=[
                (
                    "",
                    "",
                    "caf\u00c3\u00a9 drinkers with asthma were followed for a year in the clinic and their "
                    "attacks were counted by nurses every week until the end of the study.",
                )
            ],
        ),
    )
    result = meditune(
        "update", tmp_path / "library", "--update-files", served.folder, "--index", tmp_path / "index"
    ).ok()
    for reason in (
        "1 says the same as",
        "1 abstract not in English",
        "1 without words of health and medicine",
        "1 no abstract",
        "1 abstract of fewer than 20 words",
    ):
        assert f"Left out: {reason}" in result.out
    hits = Index.open(tmp_path / "index", corpus.TINY).search("café drinkers", k=20).hits
    assert any("café drinkers" in hit.passage.text for hit in hits)
    assert any(hit.passage.title == "Asthme et sport." for hit in hits)


def test_guidelines_come_from_a_folder(served: PubMed, tmp_path: Path) -> None:
    corpus.folder(tmp_path / "guidelines", {"gout.md": "# Gout\n\nColchicine calms an attack.\n", "x.pdf": "no pdf"})
    served.add(Paper(101))
    words = ("--documents", f"guidelines={tmp_path / 'guidelines'}", "--index", tmp_path / "index")
    result = update_by_query(served, tmp_path, *words).ok()
    assert "Not indexed from guidelines: 1" in result.out
    assert documents_found(tmp_path, "colchicine attack")[0] == "guidelines:gout.md"
    (tmp_path / "guidelines" / "gout.md").write_text("# Gout\n\nCold packs help.\n", encoding="utf-8")
    assert "1 changed" in update_by_query(served, tmp_path, *words).out
    meditune("update", tmp_path / "library", "--documents", tmp_path / "guidelines").refused(3, "--index")


def test_a_second_update_is_told(served: PubMed, tmp_path: Path) -> None:
    with article_library.opened(tmp_path / "library"):
        update_by_query(served, tmp_path).refused(3, "another process is updating this literature folder")
    meditune("update", tmp_path / "new").refused(3, "Nothing to import")
    update_by_query(served, tmp_path, "--since", "yesterday").refused(3, "2026-01-31")
    (tmp_path / "library" / "library.sqlite").write_text("this is no database at all")
    update_by_query(served, tmp_path).refused(3, "not a readable database of articles")


def test_a_full_disk_is_said_and_nothing_is_half(served: PubMed, tmp_path: Path, monkeypatch) -> None:
    served.add(Paper(101))
    update_by_query(served, tmp_path).ok()
    real = article_library._base

    def small(file):
        base = real(file)
        base.execute("PRAGMA max_page_count = 1")  # no page more than there is
        return base

    monkeypatch.setattr(article_library, "_base", small)
    served.add(*(Paper(pmid, revised="2026-02-01") for pmid in range(201, 260)))
    result = update_by_query(served, tmp_path)
    assert result.code == 1
    assert "The disk is full" in result.err
    monkeypatch.setattr(article_library, "_base", real)
    assert "59 new" in update_by_query(served, tmp_path).out


def test_answers_are_flagged_by_what_they_cited() -> None:
    row = {"pmid": "103", "title": "T", "when": "2026-02-01T00:00:00+00:00", "notice": "901", "reference": "J."}
    answers = [
        ("a", ["pubmed:101#0", "pubmed:103#2", "pubmed:103#2"]),
        ("b", ["medquad:103#0", "pubmed:1030#0", "documents:pubmed:103"]),
        ("c", ["pubmedqa:103#0"]),
    ]
    found = list(literature_update.flag(answers, {"103": row}))
    assert [(each.answer, each.passage) for each in found] == [("a", "pubmed:103#2"), ("c", "pubmedqa:103#0")]
    assert "Answer a cites PMID 103" in found[0].sentence
    assert "notice: PMID 901" in found[0].sentence
