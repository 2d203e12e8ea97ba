"""`meditune update` as a user meets it: against servers on loopback, with a tiny embedding model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from meditune.operate.literature import indexing, polite
from meditune.retrieve.index import Index
from tests.commands import Result, meditune, read_rows
from tests.data import layouts
from tests.operate.literature import pubmed_server
from tests.operate.literature.medline import METHODS, Paper, deletes, document, notice, update_file
from tests.operate.literature.pubmed_server import PubMed
from tests.retrieve import corpus

pytest.importorskip("lancedb")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PubMed]:
    """Servers, a PubMedQA of invented items, and no waiting."""
    (tmp_path / "files").mkdir()
    items = {str(20_000_000 + number): layouts.pubmedqa_item(number) for number in range(4)}
    layouts.pubmedqa(tmp_path / "data" / "pubmedqa", items)
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MEDITUNE_OFFLINE", "1")
    monkeypatch.delenv("MEDITUNE_CONTACT", raising=False)
    monkeypatch.delenv("NCBI_API_KEY", raising=False)
    monkeypatch.setattr(polite, "INTERVAL", 0.0)
    monkeypatch.setattr(polite, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(polite, "SLOWEST", 0.02)
    monkeypatch.setattr(indexing, "embedder", lambda _: corpus.TINY)
    with pubmed_server.serving(tmp_path / "files") as made:
        yield made


def ask(served: PubMed, folder: Path, *words: object, query: str = "all") -> Result:
    """An update by query."""
    eutils = f"{served.url}/entrez/eutils"
    return meditune(
        "update", folder / "library", "--query", query, "--email", "me@clinic.org", "--eutils", eutils, *words
    )


def found(folder: Path, question: str) -> list[str]:
    """The documents that a search finds."""
    return [hit.passage.document for hit in Index.open(folder / "index", corpus.TINY).search(question).hits]


def row(folder: Path, name: str) -> list[dict]:
    return read_rows(folder / "library" / name)


def test_articles_are_added_then_corrected_then_retracted(served: PubMed, tmp_path: Path) -> None:
    served.add(*(Paper(pmid) for pmid in range(101, 106)))
    result = ask(served, tmp_path, "--index", tmp_path / "index")
    assert result.code == 0, result
    assert "5 articles added or revised" in result.out
    assert "5 new" in result.out
    assert "pubmed:103" in found(tmp_path, "treatment 103")
    assert {each["id"] for each in row(tmp_path, "pairs.jsonl")} == {"101", "102", "103", "104", "105"}

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
    result = ask(served, tmp_path, "--index", tmp_path / "index")
    assert result.code == 0, result
    assert "RETRACTED: PMID 103 (notice: PMID 901): Treatment 103 reduces attacks of asthma." in result.out
    assert "1 changed" in result.out
    assert "pubmed:103" not in found(tmp_path, "treatment 103")
    pairs = {each["id"]: each for each in row(tmp_path, "pairs.jsonl")}
    assert sorted(pairs) == ["101", "102", "104", "105"]
    assert pairs["102"]["answer"] == "Treatment 102 raises the number of attacks."
    (gone,) = row(tmp_path, "retracted.jsonl")
    assert (gone["pmid"], gone["notice"]) == ("103", "901")

    # A record that is as new, without the notice, takes the retraction back.
    served.add(Paper(103, revised="2026-03-01"))
    result = ask(served, tmp_path, "--index", tmp_path / "index")
    assert "1 no longer retracted" in result.out
    assert "pubmed:103" in found(tmp_path, "treatment 103")
    assert row(tmp_path, "retracted.jsonl") == []


def test_answers_that_cite_a_retracted_article_are_flagged(served: PubMed, tmp_path: Path) -> None:
    from meditune.serve.outcomes import facts_of
    from meditune.store.answers import Answer, Answers
    from meditune.store.base import Base

    kept = Answers(Base(tmp_path / "store"))
    for name, pmid in (("one", 101), ("two", 102)):
        facts = facts_of({"sources": [{"id": f"pubmed:{pmid}#0", "restricted": False}], "sentences": []})
        kept.keep(Answer(name, "", "/v1/ask", "tiny 1", facts=facts))
    served.add(Paper(101), Paper(102, types=("Retracted Publication",)))
    result = ask(served, tmp_path, "--store", tmp_path / "store")
    assert result.code == 0, result
    assert "FLAGGED: 1 kept answers" in result.out
    assert "Answer two cites PMID 102" in result.out
    assert [each["answer"] for each in row(tmp_path, "flagged.jsonl")] == ["two"]
    assert ask(served, tmp_path, "--store", tmp_path / "nothing").code == 0


def test_only_what_changed_is_asked_for_and_embedded(served: PubMed, tmp_path: Path, monkeypatch) -> None:
    served.clock = 1_780_000_000.0  # 2026-05-28
    served.add(Paper(101, revised="2026-05-01"), Paper(102, revised="2026-05-28"))
    assert ask(served, tmp_path, "--index", tmp_path / "index").code == 0
    counting = corpus.Counting()
    monkeypatch.setattr(indexing, "embedder", lambda _: counting.embedder)
    served.add(Paper(103, revised="2026-05-28"))
    # The machine's clock jumps; only the server's counts.
    monkeypatch.setattr("time.time", lambda: 4e9)
    result = ask(served, tmp_path, "--index", tmp_path / "index")
    assert result.code == 0, result
    assert "2 articles added or revised" in result.out
    assert all("103" in text for text in counting.texts)
    assert counting.texts
    searches = [each for each in served.asked_of("esearch") if each["term"] == "all"]
    assert [each["mindate"] for each in searches] == ["1900/01/01", "2026/05/26"]


def test_every_request_says_who_asks_and_keeps_the_pace(served: PubMed, tmp_path: Path, monkeypatch) -> None:
    served.add(Paper(101))
    assert ask(served, tmp_path).code == 0
    monkeypatch.setattr(polite, "INTERVAL_WITH_KEY", 0.05)
    monkeypatch.setenv("NCBI_API_KEY", "secret-key")
    served.asked.clear(), served.times.clear()
    assert ask(served, tmp_path).code == 0
    assert all(each["tool"] == "meditune" and each["email"] == "me@clinic.org" for _, each in served.asked)
    assert all(each["api_key"] == "secret-key" for _, each in served.asked)
    assert any("mailto:me@clinic.org" in agent for agent in served.agents)
    gaps = [after - before for before, after in zip(served.times, served.times[1:], strict=False)]
    assert gaps
    assert min(gaps) > 0.045
    refused = meditune("update", tmp_path / "library", "--query", "all")
    refused.refused(3, "NCBI asks for an address", "--email")
    meditune("update", tmp_path / "library", "--query", "all", "--email", "nobody").refused(3, "'nobody' is no address")


@pytest.mark.parametrize(
    "faults",
    [
        ["429:0"],
        ["429", "429:0"],
        ["500", "503"],
        ["cut"],
        ["half"],
        ["html"],
        ["200-limit"],
        ["error:Backend busy"],
        ["slow"],
    ],
    ids=lambda each: "-".join(each),
)
def test_what_passes_is_waited_for(served: PubMed, tmp_path: Path, faults: list[str], monkeypatch) -> None:
    if faults == ["slow"]:
        monkeypatch.setattr(polite, "READ_SECONDS", 0.3)
    served.add(*(Paper(pmid) for pmid in range(101, 104)))
    served.fail("esearch", *faults)
    served.fail("efetch", *faults)
    result = ask(served, tmp_path)
    assert result.code == 0, result
    assert "3 new" in result.out
    assert row(tmp_path, "rejects.jsonl") == []


def test_what_doesnt_pass_is_said_and_the_rest_is_kept(served: PubMed, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("NCBI_API_KEY", "secret-key")
    served.add(Paper(101))
    served.fail("esearch", *["error:Search Backend failed: cannot parse ((( for secret-key"] * 6)
    result = ask(served, tmp_path)
    assert result.code == 3
    assert "Search Backend failed: cannot parse (((" in result.err
    assert "6 attempts were made" in result.err
    assert "secret-key" not in result.err
    assert "Library:" in result.out  # what is there is still looked after
    served.fail("esearch", "429:9999")
    assert "asks to come back in 9999 seconds" in ask(served, tmp_path).err
    assert "1 new" in ask(served, tmp_path).out
    warned = ask(served, tmp_path, query="nosuchword")
    assert warned.code == 0
    assert "PubMed says of 'nosuchword': nosuchword." in warned.err


def test_a_stopped_query_goes_on_at_its_page_and_survives_a_lost_history(
    served: PubMed, tmp_path: Path, monkeypatch
) -> None:
    from meditune.operate.literature import searching

    monkeypatch.setattr(searching, "PAGE", 2)
    served.add(*(Paper(pmid) for pmid in range(101, 108)))
    served.fail("efetch", "", *["500"] * 6)
    result = ask(served, tmp_path, "--index", tmp_path / "index")
    assert result.code == 3
    assert "goes on from here" in result.err
    assert "2 new" in result.out
    assert "pubmed:107" in found(tmp_path, "treatment 107")  # what came is indexed
    served.asked.clear()
    assert "5 new" in ask(served, tmp_path, "--index", tmp_path / "index").out
    assert [each["retstart"] for each in served.asked_of("efetch") if "retstart" in each] == ["2", "4", "6"]

    served.add(*(Paper(pmid) for pmid in range(201, 204)))
    served.fail("efetch", "", *["500"] * 6)
    assert ask(served, tmp_path).code == 3
    served.searches.clear()  # forgotten overnight
    result = ask(served, tmp_path)
    assert result.code == 0, result
    assert {each["id"] for each in row(tmp_path, "pairs.jsonl")} >= {"201", "202", "203"}


def test_a_search_with_too_many_articles_is_cut_by_dates(served: PubMed, tmp_path: Path, monkeypatch) -> None:
    from meditune.operate.literature import searching

    monkeypatch.setattr(searching, "MOST", 3)
    served.clock = 1_780_000_000.0
    served.add(*(Paper(100 + day, revised=f"2026-01-{day:02}") for day in range(1, 9)))
    result = ask(served, tmp_path, "--since", "2026-01-01")
    assert result.code == 0, result
    assert "8 new" in result.out
    served.add(*(Paper(200 + number, revised="2026-05-28") for number in range(5)))
    result = ask(served, tmp_path)
    assert result.code == 3
    assert "more than 3 articles of 'all' that changed on 2026/05/28" in result.err
    assert "--files" in result.err


def test_a_page_with_too_few_articles_is_asked_for_again(served: PubMed, tmp_path: Path) -> None:
    served.add(Paper(101), Paper(102))
    served.papers[103] = ""  # found, but never sent
    result = ask(served, tmp_path)
    assert result.code == 0
    assert "Set aside: 1 not delivered by PubMed" in result.out
    assert len([each for each in served.asked_of("efetch") if "WebEnv" in each]) == 3


def test_a_malformed_record_is_named_and_the_rest_goes_on(served: PubMed, tmp_path: Path) -> None:
    bad = Paper(102).xml().replace("<Language>", "<Langu age>")
    never = Paper(104).xml().replace("</PubmedArticle>", "")
    none = Paper(105).xml().replace('<PMID Version="1">105</PMID>', "")
    update_file(served.folder, 1340, Paper(101), bad, Paper(103), never, none, Paper(106))
    result = meditune("update", tmp_path / "library", "--files", served.folder)
    assert result.code == 0, result
    assert "3 new" in result.out
    rejects = row(tmp_path, "rejects.jsonl")
    places = [each["where"].rpartition("/")[2] for each in rejects]
    assert [place.partition(",")[0] for place in places] == ["pubmed26n1340.xml.gz"] * 3
    assert "PMID 102" in places[0]
    before = document(Paper(101)).decode().splitlines()
    assert f"line {len(before)}, PMID 102" in places[0]
    assert "malformed XML" in rejects[0]["reason"]
    assert "no </PubmedArticle> before the next record" in rejects[1]["reason"]
    assert rejects[2]["reason"] == "no PubMed id"


def test_update_files_are_applied_once_and_in_order(served: PubMed, tmp_path: Path) -> None:
    folder = served.folder
    update_file(folder, 1340, Paper(101), Paper(102), deletes(103, 102))  # a deletion before its article comes
    update_file(folder, 1341, Paper(103), Paper(101, revised="2026-01-05"))  # and a duplicate that is older
    result = meditune("update", tmp_path / "library", "--files", folder, "--index", tmp_path / "index")
    assert result.code == 0, result
    assert "Update files applied: 2 (pubmed26n1340.xml.gz to pubmed26n1341.xml.gz)" in result.out
    assert "1 older than what is there" in result.out
    assert {each["id"] for each in row(tmp_path, "pairs.jsonl")} == {"101", "103"}
    assert sorted(set(found(tmp_path, "treatment"))) == ["pubmed:101", "pubmed:103"]

    update_file(folder, 1342, Paper(101), deletes(103))
    again = meditune("update", tmp_path / "library", "--files", folder, "--index", tmp_path / "index")
    assert "Update files applied: 1 (pubmed26n1342.xml.gz)" in again.out
    assert found(tmp_path, "treatment") == ["pubmed:101"]
    nothing = meditune("update", tmp_path / "library", "--files", folder, "--index", tmp_path / "index")
    assert nothing.code == 0
    assert "Update files" not in nothing.out

    update_file(folder, 1344, Paper(110))
    gap = meditune("update", tmp_path / "library", "--files", folder)
    assert gap.code == 3
    assert "pubmed26n1343.xml.gz is missing" in gap.err
    assert meditune("update", tmp_path / "library", "--files", folder, "--first", "pubmed26n1344.xml.gz").code == 0
    update_file(folder, 1, Paper(111), year=27)
    assert meditune("update", tmp_path / "library", "--files", folder).code == 0


def test_a_file_that_isnt_what_was_published_stops_the_row(served: PubMed, tmp_path: Path) -> None:
    folder = served.folder
    update_file(folder, 1340, Paper(101))
    cut = update_file(folder, 1341, Paper(102))
    cut.write_bytes(cut.read_bytes()[:-30])
    update_file(folder, 1342, Paper(103))
    result = meditune("update", tmp_path / "library", "--files", folder)
    assert result.code == 3
    assert "pubmed26n1341.xml.gz: its MD5 is" in result.err
    assert "1 new" in result.out
    cut.with_name(f"{cut.name}.md5").unlink()
    assert "no pubmed26n1341.xml.gz.md5 beside it" in meditune("update", tmp_path / "library", "--files", folder).err
    # Published damaged: what can be read is taken, the rest said.
    update_file(folder, 1341, Paper(102))
    broken = cut.read_bytes()[:-30]
    cut.write_bytes(broken)
    import hashlib

    cut.with_name(f"{cut.name}.md5").write_text(f"{hashlib.md5(broken).hexdigest()}  {cut.name}\n")
    result = meditune("update", tmp_path / "library", "--files", folder)
    assert result.code == 0, result
    assert "breaks off" in result.out
    assert "Update files applied: 2" in result.out


def test_update_files_come_from_a_server_and_go_on_where_they_broke_off(served: PubMed, tmp_path: Path) -> None:
    update_file(served.folder, 1340, *(Paper(pmid) for pmid in range(101, 131)))
    (served.folder / "pubmed26n1340_stats.html").write_text("<html></html>")
    served.fail("file", "cut", "500", "", "damaged")
    served.fail("md5", "html", "503")
    words = ("update", tmp_path / "library", "--files", f"{served.url}/updatefiles/", "--email", "me@clinic.org")
    result = meditune(*words)
    assert result.code == 3  # a page for people isn't an MD5
    assert "no MD5 in it" in result.err
    result = meditune(*words)
    assert result.code == 0, result
    assert "30 new" in result.out
    assert served.ranges, "the rest was asked for, not the whole file"
    assert not list((tmp_path / "library" / "fetched").iterdir())

    update_file(served.folder, 1341, Paper(140), md5="0" * 32)
    result = meditune(*words)
    assert result.code == 3
    assert "it came 3 times with the MD5" in result.err
    update_file(served.folder, 1341, Paper(140))
    served.fail("file", "cut", "no-range")
    assert "1 new" in meditune(*words).out


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
    result = meditune("update", tmp_path / "library", "--files", served.folder, "--index", tmp_path / "index")
    assert result.code == 0, result
    assert [each["pmid"] for each in row(tmp_path, "retracted.jsonl")] == ["101", "102"]
    assert {each["notice"] for each in row(tmp_path, "retracted.jsonl")} == {"901", "902"}
    assert sorted(set(found(tmp_path, "treatment"))) == ["pubmed:105", "pubmed:107"]
    hits = Index.open(tmp_path / "index", corpus.TINY).search("treatment 107").hits
    assert any(hit.passage.title.startswith("[Expression of concern] ") for hit in hits)
    assert [each["id"] for each in row(tmp_path, "pairs.jsonl")] == ["105"]
    # The newer version goes; the older one stands again.
    update_file(served.folder, 1342, deletes(105))
    meditune("update", tmp_path / "library", "--files", served.folder, "--index", tmp_path / "index")
    assert sorted(set(found(tmp_path, "treatment"))) == ["pubmed:103", "pubmed:107"]


def test_retractions_reach_what_an_index_holds_from_elsewhere(served: PubMed, tmp_path: Path) -> None:
    from meditune.retrieve import collections
    from meditune.retrieve.build import build, update
    from meditune.retrieve.place import place

    old = corpus.articles(tmp_path / "old.xml", corpus.article(501, "Old", "An old article about gout."))
    build(place(tmp_path / "index"), [collections.named("pubmedqa"), collections.pubmed_files(str(old))], corpus.TINY)
    assert "pubmedqa:20000001" in found(tmp_path, "treatment 1")
    retracted = {"types": ("Retracted Publication",), "links": [("RetractionIn", 900, "J. 2026;1:3")]}
    served.add(Paper(20_000_001, **retracted), Paper(501, **retracted), Paper(777, **retracted), Paper(101))
    result = ask(served, tmp_path, "--index", tmp_path / "index", query="nothing fits")
    assert result.code == 0, result
    assert "RETRACTED: PMID 20000001" in result.out
    assert [each["pmid"] for each in row(tmp_path, "retracted.jsonl")] == ["20000001", "501"]
    assert not {"pubmedqa:20000001", "pubmed:501"} & set(found(tmp_path, "treatment 1 gout"))
    # And they stay away when all sources are read again.
    update(place(tmp_path / "index"), [], corpus.TINY)
    assert not {"pubmedqa:20000001", "pubmed:501"} & set(found(tmp_path, "treatment 1 gout"))
    assert "pubmedqa:20000002" in found(tmp_path, "treatment 2")


def test_a_notice_makes_its_article_be_read_again(served: PubMed, tmp_path: Path) -> None:
    served.add(Paper(101, title="Gout is painful in adults."), Paper(102))
    assert ask(served, tmp_path, query="gout").code == 0
    served.add(
        Paper(
            101,
            title="Gout is painful in adults.",
            conclusion="Corrected: it hurts a great deal.",
            revised="2025-01-01",
        ),
        notice(900, of=101, kind="ErratumFor"),
    )
    served.papers[101] = Paper(101, title="Pain is common.", conclusion="It hurts a great deal.", revised="2026-01-11")
    result = ask(served, tmp_path, query="notice")
    assert result.code == 0, result
    assert any(each.get("id") == "101" for each in served.asked_of("efetch"))
    assert "1 changed" in result.out


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
    result = meditune("update", tmp_path / "library", "--files", served.folder, "--index", tmp_path / "index")
    assert result.code == 0, result
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


def test_test_items_are_kept_out_of_the_pairs(served: PubMed, tmp_path: Path) -> None:
    item = layouts.pubmedqa_item(1)
    sections = [
        ("METHODS", "METHODS", f"{' '.join(item['CONTEXTS'])} {METHODS.format(n=200)}"),
        ("CONCLUSIONS", "CONCLUSIONS", "The treatment lowers pain in adults of both groups."),
    ]
    served.add(
        Paper(20_000_000),  # by id
        Paper(301, title=item["QUESTION"], parts=sections),  # by its question
        Paper(302),
    )
    result = ask(served, tmp_path)
    assert result.code == 0, result
    assert [each["id"] for each in row(tmp_path, "pairs.jsonl")] == ["302"]
    assert "2 kept out as test items" in result.out
    card = (tmp_path / "library" / "README.md").read_text()
    assert "2 articles are test items of PubMedQA" in card
    assert "National Library of Medicine" in card


def test_without_pubmedqa_no_pairs_are_written(served: PubMed, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MEDITUNE_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("MEDITUNE_CACHE", str(tmp_path / "nothing"))
    served.add(Paper(101))
    result = ask(served, tmp_path, "--index", tmp_path / "index")
    assert result.code == 3
    assert "No training pairs were written" in result.err
    assert not (tmp_path / "library" / "pairs.jsonl").exists()
    assert "pubmed:101" in found(tmp_path, "treatment 101")


def test_guidelines_come_from_a_folder(served: PubMed, tmp_path: Path) -> None:
    corpus.folder(tmp_path / "guidelines", {"gout.md": "# Gout\n\nColchicine calms an attack.\n", "x.pdf": "no pdf"})
    served.add(Paper(101))
    words = ("--documents", f"guidelines={tmp_path / 'guidelines'}", "--index", tmp_path / "index")
    result = ask(served, tmp_path, *words)
    assert result.code == 0, result
    assert "Not indexed of guidelines: 1" in result.out
    assert found(tmp_path, "colchicine attack")[0] == "guidelines:gout.md"
    (tmp_path / "guidelines" / "gout.md").write_text("# Gout\n\nCold packs help.\n", encoding="utf-8")
    assert "1 changed" in ask(served, tmp_path, *words).out
    meditune("update", tmp_path / "library", "--documents", tmp_path / "guidelines").refused(3, "--index")


def test_a_second_update_is_told(served: PubMed, tmp_path: Path) -> None:
    from meditune.operate.literature import library

    with library.opened(tmp_path / "library"):
        ask(served, tmp_path).refused(3, "another update of this library is at work")
    meditune("update", tmp_path / "new").refused(3, "Nothing to take in is named")
    ask(served, tmp_path, "--since", "yesterday").refused(3, "2026-01-31")
    (tmp_path / "library" / "library.sqlite").write_text("this is no database at all")
    ask(served, tmp_path).refused(3, "not a readable library")


def test_the_pairs_are_a_source_that_a_recipe_reads(served: PubMed, tmp_path: Path) -> None:
    from meditune.data import own
    from meditune.data.rejects import Rejects

    served.add(
        Paper(101, copyright="(c) 2025 The Authors."),
        Paper(102, title="Does treatment 102 reduce attacks? A trial."),
        Paper(
            103, title="Treatment 103 does not reduce attacks.", conclusion="Attacks were not less frequent after it."
        ),
        Paper(104, conclusion="Treatment 104 may lower the number of attacks."),
    )
    assert ask(served, tmp_path).code == 0
    rejects = Rejects()
    examples = {each.group: each for each in own.read(tmp_path / "library" / "pairs.jsonl", rejects)}
    assert len(rejects) == 0
    assert {pmid: example.decision for pmid, example in examples.items()} == {
        "101": "yes",
        "102": None,
        "103": "no",
        "104": None,
    }
    assert examples["103"].question == "Does treatment 103 reduce attacks?"
    assert examples["102"].question == "Does treatment 102 reduce attacks?"
    assert [passage.label for passage in examples["101"].context] == ["METHODS", "RESULTS"]
    assert examples["101"].meta["licence"] == "(c) 2025 The Authors."
    assert "lowers the number" not in " ".join(passage.text for passage in examples["101"].context)
    assert json.loads((tmp_path / "library" / "quality.json").read_text())["rows"] == 4
