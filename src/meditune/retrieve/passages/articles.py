"""One article as PubMed tells of it: text, kind, version, and the notices that correct or retract it.

The elements: https://www.nlm.nih.gov/bsd/licensee/elements_descriptions.html. What links an article with its notices:
https://www.nlm.nih.gov/bsd/policy/errata.html. Versions of a citation share its PubMed id, and the newest one counts:
https://www.nlm.nih.gov/pubs/techbull/jf12/jf12_pm_versioning.html.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass
from typing import Any

from meditune.retrieve.passages.passage import Document, Section

SOURCE = "pubmed"
LICENCE = "PubMed abstract; its publisher's copyright may apply"
RETRACTED_IN = ("RetractionIn", "RetractedandRepublishedIn")
"""Kinds of notices (RefType) by which an article is withdrawn by its journal"""
REPLACED_IN = ("CorrectedandRepublishedIn",)
"""... and by which a corrected one stands in its place"""
CONCERN_IN = "ExpressionOfConcernIn"
UPDATED_IN = "UpdateIn"
NOTICE_OF = {
    "RetractionOf": "RetractionIn",
    "RetractedandRepublishedFrom": "RetractedandRepublishedIn",
    "CorrectedandRepublishedFrom": "CorrectedandRepublishedIn",
    "ErratumFor": "ErratumIn",
    "ExpressionOfConcernFor": "ExpressionOfConcernIn",
    "UpdateOf": "UpdateIn",
}
"""What a notice says of an article -> how that article's own record says it"""
NO_RESEARCH = frozenset(
    ("retraction of publication", "retraction notice", "published erratum", "expression of concern", "duplicate notice")
)
"""Kinds of publications (PublicationType) that only tell of another one"""
CONCERN = "[Expression of concern] "
"""Stands before the title of an article about which its journal has warned."""
_NO_TITLE = {"", "[not available]", "[not available]."}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


@dataclass(frozen=True)
class Part:
    """A labelled piece of an abstract; the only one has no label."""

    text: str
    label: str = ""
    """As the journal has it: "MAIN OUTCOME MEASURES" """
    category: str = ""
    """As NLM files it: BACKGROUND, OBJECTIVE, METHODS, RESULTS, CONCLUSIONS, UNASSIGNED, or empty"""


@dataclass(frozen=True)
class Link:
    """Another publication that corrects, retracts, updates or discusses this one, or the other way round."""

    kind: str
    """RefType, such as RetractionIn"""
    pmid: str
    reference: str
    """Journal, year, pages"""


@dataclass(frozen=True)
class Article:
    """What is kept of one record."""

    pmid: str
    version: int
    revised: str
    """DateRevised in ISO 8601, or empty"""
    title: str
    parts: tuple[Part, ...]
    language: str
    """ISO 639-2, of the article itself; titles and abstracts are in English"""
    types: tuple[str, ...]
    links: tuple[Link, ...]
    mesh: tuple[str, ...]
    journal: str
    date: str
    licence: str

    @property
    def id(self) -> str:
        """As a document's."""
        return f"{SOURCE}:{self.pmid}"

    @property
    def url(self) -> str:
        """Its page."""
        return f"https://pubmed.ncbi.nlm.nih.gov/{self.pmid}/"

    @property
    def is_notice(self) -> bool:
        """Whether it only tells of another publication."""
        return any(each.casefold() in NO_RESEARCH for each in self.types)

    @property
    def retraction(self) -> Link | None:
        """The notice that retracts it; one without id or place where only the kind of publication says so."""
        found = [link for link in self.links if link.kind in RETRACTED_IN]
        marked = any(each.casefold() == "retracted publication" for each in self.types)
        return found[0] if found else Link(RETRACTED_IN[0], "", "") if marked else None

    @property
    def replaced_by(self) -> Link | None:
        """The corrected version that stands in its place."""
        return next((link for link in self.links if link.kind in REPLACED_IN), None)

    @property
    def has_concern(self) -> bool:
        """Whether its journal has warned of it."""
        return any(link.kind == CONCERN_IN for link in self.links)

    @property
    def text(self) -> str:
        """The abstract in one piece."""
        return " ".join(part.text for part in self.parts)

    def document(self) -> Document:
        """For an index."""
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

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def from_dict(value: dict[str, Any]) -> Article:
    """The article of `as_dict`."""
    parts, links = (tuple(made(**each) for each in value[key]) for key, made in (("parts", Part), ("links", Link)))
    lists = {key: tuple(value[key]) for key in ("types", "mesh")}
    return Article(**value | lists | {"parts": parts, "links": links})


def parsed(xml: bytes) -> Article | str:
    """The article of a PubmedArticle's bytes, or in words why it is none."""
    try:
        element = ET.fromstring(xml)
    except (ET.ParseError, ValueError) as error:
        return f"malformed XML: {error}"
    return of_element(element)


def of_element(element: ET.Element) -> Article | str:
    """The article of a PubmedArticle, or in words why it is none."""
    citation = element.find("./MedlineCitation")
    pmid = _text(element.find("./MedlineCitation/PMID"))
    if citation is None or not pmid:
        return "no PubMed id"
    if not pmid.isascii() or not pmid.isdigit() or len(pmid) > 12:
        return f"{pmid[:40]!r} is no PubMed id"
    version = element.find("./MedlineCitation/PMID")
    said = citation.find("./Article")
    if said is None:
        return "no Article in it"
    number = version.get("Version", "1") if version is not None else "1"
    return Article(
        pmid=pmid,
        version=int(number) if number.isascii() and number.isdigit() and len(number) < 7 else 1,
        revised=_day(citation.find("./DateRevised")),
        title=_title(said),
        parts=tuple(
            Part(text, each.get("Label", ""), each.get("NlmCategory", ""))
            for each in said.findall("./Abstract/AbstractText")
            if (text := _text(each))
        ),
        language=_text(said.find("./Language")),
        types=tuple(map(_text, said.findall("./PublicationTypeList/PublicationType"))),
        links=tuple(
            Link(each.get("RefType", ""), _text(each.find("PMID")), _text(each.find("RefSource")))
            for each in citation.findall("./CommentsCorrectionsList/CommentsCorrections")
        ),
        mesh=tuple(map(_text, citation.findall("./MeshHeadingList/MeshHeading/DescriptorName"))),
        journal=_text(said.find("./Journal/Title")),
        date=_date(said),
        licence=_text(said.find("./Abstract/CopyrightInformation")) or LICENCE,
    )


def deleted(xml: bytes) -> list[str] | str:
    """The PubMed ids of a DeleteCitation's bytes, or in words why there are none."""
    try:
        element = ET.fromstring(xml)
    except (ET.ParseError, ValueError) as error:
        return f"malformed XML: {error}"
    return [pmid for each in element.iter("PMID") if (pmid := _text(each))]


def _title(said: ET.Element) -> str:
    """In English, without the brackets that mark a translation; the original one where there is no other."""
    title, original = (_text(said.find(name)) for name in ("ArticleTitle", "VernacularTitle"))
    if title.casefold() in _NO_TITLE:
        return original
    bare = title.removesuffix(".")
    return f"{bare[1:-1].removesuffix('.')}." if bare.startswith("[") and bare.endswith("]") else title


def _date(said: ET.Element) -> str:
    """When it was published: that of the journal's issue, else the electronic one."""
    for place in ("./Journal/JournalIssue/PubDate", "./ArticleDate"):
        if found := _day(said.find(place)):
            return found
    return ""


def _day(found: ET.Element | None) -> str:
    """Year, month and day in ISO 8601, as far as they are there."""
    if found is None:
        return ""
    year = _text(found.find("Year")) or _text(found.find("MedlineDate"))[:4]
    month, day = (_text(found.find(name)) for name in ("Month", "Day"))
    name = month[:3].lower()
    number = int(month) if month.isdecimal() else _MONTHS.index(name) + 1 if name in _MONTHS else 0
    if not year.isdecimal():
        return ""
    if not 1 <= number <= 12:
        return year
    return f"{year}-{number:02}" + (f"-{int(day):02}" if day.isdecimal() and 1 <= int(day) <= 31 else "")


def _text(element: ET.Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())
