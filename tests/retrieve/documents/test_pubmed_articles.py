"""PubMed's XML: articles, broken files, withdrawn articles."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from meditune.retrieve import collections
from meditune.retrieve.documents import pubmed_articles
from tests.data import layouts
from tests.retrieve import corpus


def test_an_article_has_sections_date_and_address(tmp_path: Path) -> None:
    file = corpus.articles(
        tmp_path / "a.xml", corpus.article(7, "A <i>new</i> drug", "It  helped\n<sub>2</sub>.", "1999 Jan-Feb")
    )
    (found,) = pubmed_articles.read(file, Rejects())
    assert (found.id, found.title, found.url) == ("pubmed:7", "A new drug", "https://pubmed.ncbi.nlm.nih.gov/7/")
    assert [(each.heading, each.text) for each in found.sections] == [("Results", "It helped 2.")]


def test_gz_broken_off_and_without_abstract(tmp_path: Path) -> None:
    whole = corpus.articles(tmp_path / "a.xml", corpus.article(1, "A", "First."), corpus.article(2, "B", ""))
    (tmp_path / "b.xml.gz").write_bytes(gzip.compress(whole.read_bytes().replace(b">1<", b">3<")))
    (tmp_path / "c.xml").write_bytes(whole.read_bytes().replace(b">1<", b">4<")[:-60])
    (tmp_path / "d.xml.gz").write_bytes(gzip.compress(whole.read_bytes())[:40])
    rejects = Rejects()
    assert [each.id for each in pubmed_articles.read(tmp_path, rejects)] == ["pubmed:1", "pubmed:3", "pubmed:4"]
    reasons = [row["reason"] for row in rejects.rows()]
    assert reasons.count("no abstract") == 2
    assert sum("is truncated" in reason for reason in reasons) == 2
    with pytest.raises(DataError, match=r"no \.xml or \.xml\.gz file"):
        list(pubmed_articles.read(tmp_path / "none", Rejects()))


def test_entities_that_grow_without_bound_are_stopped(tmp_path: Path) -> None:
    lines = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    corpus.articles(tmp_path / "a.xml", "<PubmedArticle>&l11;</PubmedArticle>")
    whole = (tmp_path / "a.xml").read_text()
    (tmp_path / "a.xml").write_text(whole.replace("?>", f'?><!DOCTYPE x [<!ENTITY l0 "lol">{lines}]>'))
    rejects = Rejects()
    assert list(pubmed_articles.read(tmp_path / "a.xml", rejects)) == []
    assert len(rejects) == 1


def test_each_malformed_record_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    """Also where records lie across the pieces in which a file is read."""
    good = [corpus.article(number, f"Title {number}", "It helped. " * 400) for number in range(1, 201)]
    good[50] = good[50].replace("</ArticleTitle>", "</ArticleTitel>")
    good[120] = good[120].replace("</PubmedArticle>", "")
    file = corpus.articles(tmp_path / "a.xml", *(f"{each}\n" for each in good))
    rejects = Rejects()
    assert len(list(pubmed_articles.read(file, rejects))) == 198
    one, two = rejects.rows()
    assert one["where"] == f"{file}, line 51, PMID 51"
    assert "malformed XML: mismatched tag" in one["reason"]
    assert two["where"] == f"{file}, line 121, PMID 121"
    assert "before the next record" in two["reason"]


def test_retracted_articles_are_left_out_and_leave(tmp_path: Path) -> None:
    marked = corpus.article(1, "A", "First.").replace(
        "</MedlineCitation>",
        '<CommentsCorrectionsList><CommentsCorrections RefType="RetractionIn"><RefSource>J</RefSource><PMID>9</PMID>'
        "</CommentsCorrections></CommentsCorrectionsList></MedlineCitation>",
    )
    corpus.articles(tmp_path / "1.xml", corpus.article(1, "A", "First."), corpus.article(2, "B", "Second."))
    corpus.articles(tmp_path / "2.xml", marked)
    withdrawn: set[str] = set()
    rejects = Rejects()
    assert [each.id for each in pubmed_articles.read(tmp_path, rejects, withdrawn)] == ["pubmed:1", "pubmed:2"]
    assert withdrawn == {"pubmed:1"}
    assert [row["reason"] for row in rejects.rows()] == ["retracted"]


def test_contexts_of_pubmedqa_are_without_the_conclusion(tmp_path: Path) -> None:
    layouts.pubmedqa(tmp_path, {"11": layouts.pubmedqa_item(1)})
    (found,) = pubmed_articles.read_contexts(tmp_path, Rejects())
    assert [each.heading for each in found.sections] == ["Background", "Results"]
    assert (found.date, found.group) == ("2011", "11")
    assert "may help some patients" not in str(found)


@pytest.mark.real
def test_the_publishers_files(real_data: Path) -> None:
    rejects = Rejects()
    judged = list(collections.read_judged(real_data / "medquad-judged", rejects))
    assert len(judged) + len(rejects) == 2479
    assert len(rejects) < 10
    (article,) = pubmed_articles.read(real_data / "pubmed", rejects)
    assert article.date == "2018-05-17"
    assert [each.heading for each in article.sections] == ["Background", "Methods", "Results", "Conclusions"]
