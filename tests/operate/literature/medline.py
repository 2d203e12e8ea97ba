"""Invented articles in the layout of PubMed's XML, and update files of them."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

HEAD = (
    '<?xml version="1.0" ?>\n<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2025//EN" '
    '"https://dtd.nlm.nih.gov/ncbi/pubmed/out/pubmed_250101.dtd">\n<PubmedArticleSet>\n'
)
TAIL = "</PubmedArticleSet>\n"
METHODS = (
    "We followed {n} adults with asthma in four clinics for one year, and compared lung function, symptoms, use of "
    "reliever inhalers and visits to emergency departments between those who had the treatment and those who hadn't."
)


@dataclass(frozen=True)
class Paper:
    """What one record says."""

    pmid: int
    title: str = ""
    conclusion: str = ""
    revised: str = "2026-01-10"
    version: int = 1
    parts: Sequence[tuple[str, str, str]] | None = None
    """(label, category, text) instead of the usual sections"""
    links: Sequence[tuple[str, int, str]] = ()
    """(RefType, PubMed id or 0, reference)"""
    types: Sequence[str] = ("Journal Article",)
    language: str = "eng"
    vernacular: str = ""
    copyright: str = ""
    mesh: Sequence[str] = field(default_factory=lambda: ("Asthma",))

    @property
    def sections(self) -> Sequence[tuple[str, str, str]]:
        """As given, or the usual three."""
        if self.parts is not None:
            return self.parts
        return (
            ("METHODS", "METHODS", METHODS.format(n=self.pmid)),
            (
                "RESULTS",
                "RESULTS",
                f"Treatment {self.pmid} lowered the number of attacks by {self.pmid % 40 + 5} percent.",
            ),
            ("CONCLUSIONS", "CONCLUSIONS", self.conclusion or f"Treatment {self.pmid} lowers the number of attacks."),
        )

    def xml(self) -> str:
        """One PubmedArticle."""
        year, month, day = self.revised.split("-")
        abstract = "".join(
            "<AbstractText"
            + (f" Label={quoteattr(label)}" if label else "")
            + (f" NlmCategory={quoteattr(category)}" if category else "")
            + f">{escape(text)}</AbstractText>\n"
            for label, category, text in self.sections
        )
        if abstract:
            rights = f"<CopyrightInformation>{escape(self.copyright)}</CopyrightInformation>" if self.copyright else ""
            abstract = f"<Abstract>\n{abstract}{rights}</Abstract>\n"
        links = "".join(
            f'<CommentsCorrections RefType="{kind}"><RefSource>{escape(reference)}</RefSource>'
            + (f'<PMID Version="1">{pmid}</PMID>' if pmid else "")
            + "</CommentsCorrections>\n"
            for kind, pmid, reference in self.links
        )
        return (
            '<PubmedArticle>\n<MedlineCitation Status="MEDLINE" Owner="NLM">\n'
            f'<PMID Version="{self.version}">{self.pmid}</PMID>\n'
            f"<DateRevised><Year>{year}</Year><Month>{month}</Month><Day>{day}</Day></DateRevised>\n"
            '<Article PubModel="Print">\n<Journal><ISSN IssnType="Electronic">1234-5678</ISSN>'
            '<JournalIssue CitedMedium="Internet"><Volume>12</Volume><PubDate><Year>2025</Year><Month>Dec</Month>'
            "</PubDate></JournalIssue><Title>Journal of invented studies</Title></Journal>\n"
            f"<ArticleTitle>{escape(self.title or f'Treatment {self.pmid} reduces attacks of asthma.')}"
            "</ArticleTitle>\n"
            f"{abstract}<Language>{self.language}</Language>\n<PublicationTypeList>"
            + "".join(f'<PublicationType UI="D016428">{escape(each)}</PublicationType>' for each in self.types)
            + "</PublicationTypeList>\n"
            + (f"<VernacularTitle>{escape(self.vernacular)}</VernacularTitle>" if self.vernacular else "")
            + "</Article>\n"
            + (f"<CommentsCorrectionsList>\n{links}</CommentsCorrectionsList>\n" if links else "")
            + "<MeshHeadingList>"
            + "".join(
                f'<MeshHeading><DescriptorName UI="D1">{escape(each)}</DescriptorName></MeshHeading>'
                for each in self.mesh
            )
            + "</MeshHeadingList>\n</MedlineCitation>\n<PubmedData><PublicationStatus>ppublish</PublicationStatus>"
            f'<ArticleIdList><ArticleId IdType="pubmed">{self.pmid}</ArticleId></ArticleIdList></PubmedData>\n'
            "</PubmedArticle>\n"
        )


def deletes(*pmids: int) -> str:
    """A DeleteCitation."""
    return "<DeleteCitation>" + "".join(f'<PMID Version="1">{each}</PMID>' for each in pmids) + "</DeleteCitation>\n"


def document(*records: Paper | str) -> bytes:
    """A whole file or answer."""
    return (HEAD + "".join(each if isinstance(each, str) else each.xml() for each in records) + TAIL).encode()


def update_file(folder: Path, number: int, *records: Paper | str, year: int = 26, md5: str = "") -> Path:
    """An update file with its MD5 beside it, as NLM writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"pubmed{year}n{number:04}.xml.gz"
    path.write_bytes(gzip.compress(document(*records), mtime=0))
    digest = md5 or hashlib.md5(path.read_bytes()).hexdigest()
    path.with_name(f"{path.name}.md5").write_text(f"MD5({path.name})= {digest}\n", encoding="utf-8")
    return path


def notice(pmid: int, of: int, kind: str = "RetractionOf", revised: str = "2026-02-01") -> Paper:
    """A notice about another article: without an abstract, of a kind of its own."""
    types = {"RetractionOf": "Retraction of Publication", "ErratumFor": "Published Erratum"}
    return Paper(
        pmid,
        title=f"Notice about treatment {of}.",
        parts=(),
        revised=revised,
        types=(types.get(kind, "Journal Article"),),
        links=((kind, of, f"Journal of invented studies. 2025;12:{of}"),),
    )
