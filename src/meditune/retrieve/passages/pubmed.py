"""PubMed abstracts: articles in the XML of MEDLINE and efetch, and the contexts of PubMedQA.

The format: https://www.nlm.nih.gov/bsd/licensee/elements_descriptions.html. Abstracts are under their publishers'
copyright where these claim it; NLM's terms let them be indexed and shown with their source
(https://www.nlm.nih.gov/databases/download/terms_and_conditions.html).
"""

from __future__ import annotations

import gzip
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from meditune.data import pubmedqa
from meditune.data.rejects import Rejects
from meditune.errors import DataError
from meditune.retrieve.passages.passage import Document, Section

SOURCE = "pubmed"
LICENCE = "PubMed abstract; its publisher's copyright may apply"
ENDINGS = (".xml", ".xml.gz")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def read(path: Path, rejects: Rejects, deleted: set[str] | None = None) -> Iterator[Document]:
    """The articles that have an abstract, of one file or of every one under a folder; memory holds one at a time.

    The ids of articles that a file withdraws (DeleteCitation) are added to `deleted`. A file that breaks off is
    read up to there and named in `rejects`. Raises DataError where there are no files.
    """
    files = files_of(path)
    for file in files:
        yield from _articles(file, rejects, deleted if deleted is not None else set())


def files_of(path: Path) -> list[Path]:
    """`path`, or the XML files under it. Raises DataError where there are none."""
    if path.is_file() and path.name.endswith(ENDINGS):
        return [path]
    found = sorted(each for each in path.rglob("*.xml*") if each.name.endswith(ENDINGS)) if path.is_dir() else []
    if not found:
        raise DataError(f"{path}: no .xml or .xml.gz file. Point at files of PubMed's efetch or its yearly baseline.")
    return found


def read_contexts(path: Path, rejects: Rejects) -> Iterator[Document]:
    """The abstracts of PubMedQA's questions, without the conclusions, which answer them."""
    for example in pubmedqa.read(path, rejects):
        year = example.meta["year"]
        yield Document(
            id=example.id,
            source=pubmedqa.SOURCE,
            sections=[Section(passage.text, passage.label.capitalize()) for passage in example.context],
            title=example.question,
            url=str(example.meta["url"]),
            licence=pubmedqa.LICENCE,
            date=str(year or ""),
            group=example.group,
        )


def _articles(file: Path, rejects: Rejects, deleted: set[str]) -> Iterator[Document]:
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
        try:
            # expat (2.4.1 and newer) stops at entities that would grow without bound; nothing external is fetched.
            for _, element in ET.iterparse(cast(BinaryIO, stream)):
                if element.tag == "PubmedArticle":
                    found = _article(element)
                    if isinstance(found, str):
                        rejects.add(SOURCE, f"{file}, PMID {_text(element.find('.//PMID'))}", found, "")
                    else:
                        deleted.discard(found.id)
                        yield found
                    element.clear()
                elif element.tag == "DeleteCitation":
                    deleted.update(f"{SOURCE}:{_text(each)}" for each in element.iter("PMID"))
        except (ET.ParseError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            rejects.add(SOURCE, str(file), f"read up to where it breaks off: {error}", "")


def _article(article: ET.Element) -> Document | str:
    """The article, or why it can't be indexed."""
    pmid = _text(article.find("./MedlineCitation/PMID"))
    if not pmid:
        return "no PubMed id"
    parts = article.findall("./MedlineCitation/Article/Abstract/AbstractText")
    sections = [Section(text, each.get("Label", "").capitalize()) for each in parts if (text := _text(each))]
    if not sections:
        return "no abstract"
    return Document(
        id=f"{SOURCE}:{pmid}",
        source=SOURCE,
        sections=sections,
        title=_text(article.find("./MedlineCitation/Article/ArticleTitle")),
        url=f"https://pubmed.ncbi.nlm.nih.gov/{pmid}/",
        licence=_text(article.find("./MedlineCitation/Article/Abstract/CopyrightInformation")) or LICENCE,
        date=_date(article),
        group=pmid,
    )


def _date(article: ET.Element) -> str:
    """When it was published: that of the journal's issue, else the electronic one."""
    for place in ("./MedlineCitation/Article/Journal/JournalIssue/PubDate", "./MedlineCitation/Article/ArticleDate"):
        found = article.find(place)
        if found is None:
            continue
        year = _text(found.find("Year")) or _text(found.find("MedlineDate"))[:4]
        month = _text(found.find("Month"))
        name = month[:3].lower()
        number = int(month) if month.isdigit() else _MONTHS.index(name) + 1 if name in _MONTHS else None
        day = _text(found.find("Day"))
        if year.isdigit():
            return year + (f"-{number:02}" + (f"-{int(day):02}" if day.isdigit() else "") if number else "")
    return ""


def _text(element: ET.Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())
