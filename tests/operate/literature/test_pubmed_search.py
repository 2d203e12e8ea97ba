"""Articles by a PubMed query: polite, page by page, whatever the server does wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from meditune.operate.literature import literature_update, pubmed_search
from tests import corpus
from tests.commands import meditune
from tests.operate.literature.pubmed_server import Paper, PubMed, documents_found, library_rows, notice, update_by_query

pytest.importorskip("lancedb")


def test_only_what_changed_is_asked_for_and_embedded(served: PubMed, tmp_path: Path, monkeypatch) -> None:
    served.clock = 1_780_000_000.0  # 2026-05-28
    served.add(Paper(101, revised="2026-05-01"), Paper(102, revised="2026-05-28"))
    update_by_query(served, tmp_path, "--index", tmp_path / "index").ok()
    counting = corpus.Counting()
    monkeypatch.setattr(literature_update, "load_encoder", lambda _: counting.encoder)
    served.add(Paper(103, revised="2026-05-28"))
    # The machine's clock jumps; only the server's counts.
    monkeypatch.setattr("time.time", lambda: 4e9)
    result = update_by_query(served, tmp_path, "--index", tmp_path / "index").ok()
    assert "2 articles added or revised" in result.out
    assert all("103" in text for text in counting.texts)
    assert counting.texts
    searches = [each for each in served.asked_of("esearch") if each["term"] == "all"]
    assert [each["mindate"] for each in searches] == ["1900/01/01", "2026/05/26"]


def test_every_request_says_who_asks_and_keeps_the_pace(served: PubMed, tmp_path: Path, monkeypatch) -> None:
    served.add(Paper(101))
    update_by_query(served, tmp_path).ok()
    monkeypatch.setattr(pubmed_search, "INTERVAL_WITH_KEY", 0.3)
    monkeypatch.setenv("NCBI_API_KEY", "secret-key")
    served.asked.clear(), served.times.clear()
    update_by_query(served, tmp_path).ok()
    assert all(each["tool"] == "meditune" and each["email"] == "me@clinic.org" for _, each in served.asked)
    assert all(each["api_key"] == "secret-key" for _, each in served.asked)
    assert any("mailto:me@clinic.org" in agent for agent in served.agents)
    gaps = [after - before for before, after in zip(served.times, served.times[1:], strict=False)]
    assert gaps
    assert min(gaps) > 0.15
    refused = meditune("update", tmp_path / "library", "--query", "all")
    refused.refused(3, "NCBI requires an email address", "--email")
    meditune("update", tmp_path / "library", "--query", "all", "--email", "nobody").refused(
        3, "'nobody' is not an email address"
    )


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
        ["drip"],
    ],
    ids=lambda each: "-".join(each),
)
def test_what_passes_is_waited_for(served: PubMed, tmp_path: Path, faults: list[str], monkeypatch) -> None:
    if faults == ["slow"]:
        monkeypatch.setattr(pubmed_search, "READ_SECONDS", 0.3)
    if faults == ["drip"]:
        monkeypatch.setattr(pubmed_search, "RESPONSE_TIMEOUT_SECONDS", 0.2)
    served.add(*(Paper(pmid) for pmid in range(101, 104)))
    served.fail("esearch", *faults)
    served.fail("efetch", *faults)
    result = update_by_query(served, tmp_path).ok()
    assert "3 new" in result.out
    assert library_rows(tmp_path, "rejects.jsonl") == []


def test_what_doesnt_pass_is_said_and_the_rest_is_kept(served: PubMed, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("NCBI_API_KEY", "secret-key")
    served.add(Paper(101))
    served.fail("esearch", *["error:Search Backend failed: cannot parse ((( for secret-key"] * 6)
    result = update_by_query(served, tmp_path)
    assert result.code == 3
    assert "Search Backend failed: cannot parse (((" in result.err
    assert "gave up after 6 attempts" in result.err
    assert "secret-key" not in result.err
    assert "Literature folder:" in result.out  # what is there is still looked after
    served.fail("esearch", "429:9999")
    assert "asks for a pause of 9999 seconds" in update_by_query(served, tmp_path).err
    assert "1 new" in update_by_query(served, tmp_path).out
    served.fail("esearch", "400-key")
    assert "rejects the API key. Correct NCBI_API_KEY, or unset it." in update_by_query(served, tmp_path).err
    long = " OR ".join(["reduces"] * 300)
    update_by_query(served, tmp_path, query=long).ok()
    assert served.asked_of("esearch")[-2]["term"] == long
    warned = update_by_query(served, tmp_path, query="nosuchword").ok()
    assert "PubMed reports for 'nosuchword': nosuchword." in warned.err


def test_a_stopped_query_goes_on_at_its_page_and_survives_a_lost_history(
    served: PubMed, tmp_path: Path, monkeypatch
) -> None:
    from meditune.operate.literature import pubmed_search

    monkeypatch.setattr(pubmed_search, "PAGE", 2)
    served.add(*(Paper(pmid) for pmid in range(101, 108)))
    served.fail("efetch", "", *["500"] * 6)
    result = update_by_query(served, tmp_path, "--index", tmp_path / "index")
    assert result.code == 3
    assert "Run the same command later to resume" in result.err
    assert "2 new" in result.out
    assert "pubmed:107" in documents_found(tmp_path, "treatment 107")  # what came is indexed
    served.asked.clear()
    assert "5 new" in update_by_query(served, tmp_path, "--index", tmp_path / "index").out
    assert [each["retstart"] for each in served.asked_of("efetch") if "retstart" in each] == ["2", "4", "6"]

    served.add(*(Paper(pmid) for pmid in range(201, 204)))
    served.fail("efetch", "", *["500"] * 6)
    assert update_by_query(served, tmp_path).code == 3
    served.searches.clear()  # forgotten overnight
    update_by_query(served, tmp_path).ok()
    assert {each["id"] for each in library_rows(tmp_path, "pairs.jsonl")} >= {"201", "202", "203"}


def test_a_search_with_too_many_articles_is_cut_by_dates(served: PubMed, tmp_path: Path, monkeypatch) -> None:
    from meditune.operate.literature import pubmed_search

    monkeypatch.setattr(pubmed_search, "MAX_ARTICLES", 3)
    served.clock = 1_780_000_000.0
    served.add(*(Paper(100 + day, revised=f"2026-01-{day:02}") for day in range(1, 9)))
    result = update_by_query(served, tmp_path, "--since", "2026-01-01").ok()
    assert "8 new" in result.out
    served.add(*(Paper(200 + number, revised="2026-05-28") for number in range(5)))
    result = update_by_query(served, tmp_path)
    assert result.code == 3
    assert "more than 3 articles for 'all' that changed on 2026/05/28" in result.err
    assert "--update-files" in result.err


def test_a_page_with_too_few_articles_is_asked_for_again(served: PubMed, tmp_path: Path) -> None:
    served.add(Paper(101), Paper(102))
    served.papers[103] = ""  # found, but never sent
    result = update_by_query(served, tmp_path).ok()
    assert "Set aside: 1 not delivered by PubMed" in result.out
    assert len([each for each in served.asked_of("efetch") if "WebEnv" in each]) == 3


def test_a_notice_makes_its_article_be_read_again(served: PubMed, tmp_path: Path) -> None:
    served.add(Paper(101, title="Gout is painful in adults."), Paper(102))
    update_by_query(served, tmp_path, query="gout").ok()
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
    result = update_by_query(served, tmp_path, query="notice").ok()
    assert any(each.get("id") == "101" for each in served.asked_of("efetch"))
    assert "1 changed" in result.out


def test_a_corrected_article_that_isnt_sent_stays_in_the_queue(served: PubMed, tmp_path: Path) -> None:
    served.add(Paper(101, title="Gout is painful in adults."))
    update_by_query(served, tmp_path, query="gout").ok()
    del served.papers[101]
    served.add(notice(900, of=101, kind="ErratumFor"))
    assert "Set aside: 1 not delivered by PubMed" in update_by_query(served, tmp_path, query="notice").ok().out
    served.add(Paper(101, title="Pain is common.", conclusion="It hurts a great deal.", revised="2026-01-11"))
    assert "1 changed" in update_by_query(served, tmp_path, query="notice").ok().out
