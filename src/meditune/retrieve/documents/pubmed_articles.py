"""PubMed abstracts: articles in the XML of MEDLINE and efetch.

NLM's terms allow abstracts to be indexed and shown with their source; the publishers keep their copyright
(https://www.nlm.nih.gov/databases/download/terms_and_conditions.html). NLM describes the XML elements in
https://www.nlm.nih.gov/bsd/licensee/elements_descriptions.html and notices, such as retractions, in
https://www.nlm.nih.gov/bsd/policy/errata.html.
Each record is found by its tags and parsed separately, so that a malformed record doesn't affect others, and entities
that a file declares are never expanded.
"""

from __future__ import annotations

import gzip
import re
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from meditune.progress import Progress
from meditune.retrieve.documents.document import Document, Section, UnreadableError
from meditune.retrieve.documents.pdf_docx_text import with_caret

SOURCE = "pubmed"
LICENCE = "PubMed abstract; its publisher's copyright may apply"
RETRACTED_IN = ("RetractionIn", "RetractedandRepublishedIn")  # RefTypes of notices that retract an article
REPLACED_IN = ("CorrectedandRepublishedIn",)  # RefTypes of notices that replace an article with a corrected one
CONCERN_IN = "ExpressionOfConcernIn"
UPDATED_IN = "UpdateIn"
NOTICE_OF = {
    "RetractionOf": "RetractionIn",
    "RetractedandRepublishedFrom": "RetractedandRepublishedIn",
    "CorrectedandRepublishedFrom": "CorrectedandRepublishedIn",
    "ErratumFor": "ErratumIn",
    "ExpressionOfConcernFor": "ExpressionOfConcernIn",
    "UpdateOf": "UpdateIn",
}  # RefType in the record of a notice -> RefType in the record of the article that the notice is about
NO_RESEARCH = frozenset(
    ("retraction of publication", "retraction notice", "published erratum", "expression of concern", "duplicate notice")
)  # PublicationTypes of notices that are only about another publication
CONCERN = "[Expression of concern] "  # Prefix of an article's title if its journal has published such a notice
_NO_TITLE = {"", "[not available]", "[not available]."}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


@dataclass(frozen=True)
class Part:
    """A part of an abstract. If the abstract has only one part, the part has no label."""

    text: str
    label: str = ""  # As given by the journal, for example "MAIN OUTCOME MEASURES"
    category: str = ""  # As assigned by NLM: BACKGROUND, OBJECTIVE, METHODS, RESULTS, CONCLUSIONS, UNASSIGNED, or empty


@dataclass(frozen=True)
class Link:
    """A link to a publication that corrects, retracts, updates or discusses this one, or is the subject of this one."""

    kind: str  # RefType, such as RetractionIn
    pmid: str
    reference: str  # Journal, year, pages


@dataclass(frozen=True)
class Article:
    """The stored content of a PubMed record."""

    pmid: str
    version: int
    revised: str  # DateRevised in ISO 8601, or empty
    title: str
    parts: tuple[Part, ...]
    language: str  # ISO 639-2 code of the article's language; titles and abstracts are in English
    types: tuple[str, ...]
    links: tuple[Link, ...]
    mesh: tuple[str, ...]
    journal: str
    date: str
    licence: str

    @property
    def id(self) -> str:
        """The id of the article's document in an index."""
        return f"{SOURCE}:{self.pmid}"

    @property
    def url(self) -> str:
        """The URL of the article's page in PubMed."""
        return f"https://pubmed.ncbi.nlm.nih.gov/{self.pmid}/"

    @property
    def is_notice(self) -> bool:
        """True if the record is a notice that is only about another publication."""
        return any(each.casefold() in NO_RESEARCH for each in self.types)

    @property
    def retraction(self) -> Link | None:
        """A link to the notice that retracts the article, or None if there is no retraction.

        The link's PubMed id and reference are empty if only the publication type shows the retraction.
        """
        found = [link for link in self.links if link.kind in RETRACTED_IN]
        marked = any(each.casefold() == "retracted publication" for each in self.types)
        return found[0] if found else Link(RETRACTED_IN[0], "", "") if marked else None

    @property
    def has_concern(self) -> bool:
        """True if the article's journal has published an expression of concern."""
        return any(link.kind == CONCERN_IN for link in self.links)

    @property
    def text(self) -> str:
        """The complete abstract."""
        return " ".join(part.text for part in self.parts)

    def document(self) -> Document:
        """Return the article as a document to index."""
        return Document(
            id=self.id,
            source=SOURCE,
            sections=[Section(part.text, part.label.capitalize()) for part in self.parts],
            title=f"{CONCERN if self.has_concern else ''}{self.title}",
            url=self.url,
            licence=self.licence,
            date=self.date,
            group=self.pmid,
        )


ARTICLE = TypeAdapter(Article)
"""Converts articles to JSON and back"""


def _article(element: ET.Element) -> Article:
    """Return the article in a PubmedArticle element. Raises UnreadableError with the reason if it has none."""
    citation, version = element.find("./MedlineCitation"), element.find("./MedlineCitation/PMID")
    pmid = _text(version)
    if citation is None or not pmid:
        raise UnreadableError("no PubMed id")
    if not pmid.isascii() or not pmid.isdigit() or len(pmid) > 12:
        raise UnreadableError(f"{pmid[:40]!r} is not a PubMed id")
    article = citation.find("./Article")
    if article is None:
        raise UnreadableError("contains no Article")
    number = version.get("Version", "1") if version is not None else "1"
    return Article(
        pmid=pmid,
        version=int(number) if number.isascii() and number.isdigit() and len(number) < 7 else 1,
        revised=_day(citation.find("./DateRevised")),
        title=_title(article),
        parts=tuple(
            Part(text, each.get("Label", ""), each.get("NlmCategory", ""))
            for each in article.findall("./Abstract/AbstractText")
            if (text := _text(each))
        ),
        language=_text(article.find("./Language")),
        types=tuple(map(_text, article.findall("./PublicationTypeList/PublicationType"))),
        links=tuple(
            Link(each.get("RefType", ""), _text(each.find("PMID")), _text(each.find("RefSource")))
            for each in citation.findall("./CommentsCorrectionsList/CommentsCorrections")
        ),
        mesh=tuple(map(_text, citation.findall("./MeshHeadingList/MeshHeading/DescriptorName"))),
        journal=_text(article.find("./Journal/Title")),
        # The date of the journal's issue, or else the date of electronic publication
        date=_day(article.find("./Journal/JournalIssue/PubDate")) or _day(article.find("./ArticleDate")),
        licence=_text(article.find("./Abstract/CopyrightInformation")) or LICENCE,
    )


def _title(article: ET.Element) -> str:
    """Return the English title without the brackets that mark a translation, or else the original title."""
    title, original = (_text(article.find(name)) for name in ("ArticleTitle", "VernacularTitle"))
    if title.casefold() in _NO_TITLE:
        return original
    bare = title.removesuffix(".")
    return f"{bare[1:-1].removesuffix('.')}." if bare.startswith("[") and bare.endswith("]") else title


def _day(date: ET.Element | None) -> str:
    """Return a date in ISO 8601, as precise as known, or "" if the year is unknown."""
    if date is None:
        return ""
    year = _text(date.find("Year")) or _text(date.find("MedlineDate"))[:4]
    month, day = (_text(date.find(name)) for name in ("Month", "Day"))
    name = month[:3].lower()
    number = int(month) if month.isdecimal() else _MONTHS.index(name) + 1 if name in _MONTHS else 0
    if not year.isdecimal():
        return ""
    if not 1 <= number <= 12:
        return year
    return f"{year}-{number:02}" + (f"-{int(day):02}" if day.isdecimal() and 1 <= int(day) <= 31 else "")


def _text(element: ET.Element | None) -> str:
    return "" if element is None else " ".join("".join(_pieces(element)).split())


def _pieces(element: ET.Element) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        inner = "".join(_pieces(child))
        yield (with_caret(inner) if child.tag == "sup" else inner) + (child.tail or "")


BOOK, DELETED = "PubmedBookArticle", "DeleteCitation"
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)  # Errors from reading a damaged gzip file
_OPENING = re.compile(rb"<(PubmedArticle|PubmedBookArticle|DeleteCitation)(?=[\s>])")
_PMID = re.compile(rb"<PMID[^>]*>\s*(\d{1,12})\s*</PMID>")
_TRUNCATED = "the file is truncated"


@dataclass(frozen=True)
class Record:
    """The XML of a record in a file."""

    kind: str
    line: int  # The line (1-based) where the record begins
    xml: bytes
    problem: str = ""  # Why the record is incomplete; empty if it is complete

    @property
    def pmid(self) -> str:
        """The first PubMed id in the record, even if the record is malformed; empty if there is no id."""
        found = _PMID.search(self.xml)
        return found[1].decode() if found else ""


def of_file(file: Path, progress: Progress | None = None) -> Iterator[Record]:
    """Yield the records of a file, which may be compressed with gzip; `progress` counts the megabytes read."""
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except DAMAGED as error:
        yield Record("", 1, b"", f"{_TRUNCATED}: {error}")
        return
    share = file.stat().st_size / 1e6 / max(len(data), 1)
    for record in records(data):
        yield record
        if progress:
            progress.advance(len(record.xml) * share)


def records(data: bytes) -> Iterator[Record]:
    """Yield the records in the bytes of a file. If the file is truncated, the last record has a `problem`."""
    openings = list(_OPENING.finditer(data))
    ends = [*(opening.start() for opening in openings[1:]), len(data)]
    line, counted, problem = 1, 0, ""
    for opening, following in zip(openings, ends, strict=False):
        start, closing = opening.start(), b"</%b>" % opening[1]
        line, counted = line + data.count(b"\n", counted, start), start
        end, problem = data.find(closing, start, following) + len(closing), ""
        if end < len(closing):
            is_last = following == len(data)
            problem = f"{_TRUNCATED} inside the record" if is_last else f"no {closing.decode()} before the next record"
            end = following
        yield Record(opening[1].decode(), line, data[start:end], problem)
    if data.rfind(b"<PubmedArticleSet") > data.rfind(b"</PubmedArticleSet") and not problem:
        yield Record("", line + data.count(b"\n", counted), b"", f"{_TRUNCATED}: its last tag is missing")


ENDINGS = (".xml", ".xml.gz")
RETRACTED = "retracted"


def read(path: Path, rejects: Rejects, withdrawn: set[str] | None = None) -> Iterator[Document]:
    """Yield a document for each article with an abstract, from a file or from all files under a folder.

    Ids of articles that a file deletes (DeleteCitation) or that are retracted are added to `withdrawn`. Malformed
    records, truncated files, and articles that are retracted or have no abstract are listed in `rejects`, and reading
    continues. Raises DataError if there are no files.
    """
    withdrawn = set() if withdrawn is None else withdrawn
    for file in files_of(path):
        for found in pubmed_of_file(file, rejects):
            if isinstance(found, str):
                withdrawn.add(f"{SOURCE}:{found}")
            elif found.retraction:
                withdrawn.add(found.id)
                rejects.add(SOURCE, f"{file}, PMID {found.pmid}", RETRACTED, "")
            elif not found.parts:
                rejects.add(SOURCE, f"{file}, PMID {found.pmid}", "no abstract", "")
            else:
                withdrawn.discard(found.id)
                yield found.document()


def pubmed_of_file(file: Path, rejects: Rejects, progress: Progress | None = None) -> Iterator[Article | str]:
    """Yield each article of a file and the PubMed id of each deleted article, in order; list the rest in `rejects`."""
    for record in of_file(file, progress):
        yield from of_record(record, str(file), rejects)


def of_record(record: Record, file: str, rejects: Rejects) -> Iterator[Article | str]:
    """Yield the content of a record: an article, or the PubMed ids of deleted articles. Books are only counted."""
    if record.kind == BOOK:
        rejects.count_only(SOURCE, "a book, not an article")
        return
    found: list[Article | str] = []
    problem = record.problem
    if not problem:
        try:
            element = ET.fromstring(record.xml)
            is_deletion = record.kind == DELETED
            found = list(filter(None, map(_text, element.iter("PMID")))) if is_deletion else [_article(element)]
        except (ET.ParseError, ValueError) as error:
            problem = f"malformed XML: {error}"
        except UnreadableError as error:
            problem = str(error)
    if problem:
        pmid = f", PMID {record.pmid}" if record.pmid else ""
        rejects.add(SOURCE, f"{file}, line {record.line}{pmid}", problem, record.xml[:500].decode(errors="replace"))
    yield from found


def files_of(path: Path) -> list[Path]:
    """Return `path`, or the XML files under it. Raises DataError if there are none."""
    if path.is_file() and path.name.endswith(ENDINGS):
        return [path]
    found = sorted(each for each in path.rglob("*.xml*") if each.name.endswith(ENDINGS)) if path.is_dir() else []
    if not found:
        raise DataError(f"{path}: no .xml or .xml.gz file. Specify files from PubMed's efetch or its annual baseline.")
    return found
