"""NCBI's E-utilities for PubMed: search with the history server, and records by search or by id.

The protocol: https://www.ncbi.nlm.nih.gov/books/NBK25499/. A search gives at most its first 9,999 articles. Whatever
comes instead of an answer (a page for people, a rate limit in JSON, an error inside XML, both also with status 200, XML
that breaks off) is told from one.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from meditune.errors import DataError
from meditune.models.api.retry import PassingError
from meditune.operate.literature.polite import Polite

URL = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils"
MOST = 9_999
"""Articles that one search gives"""
SINCE_EVER, FOR_EVER = "1900/01/01", "3000/12/31"
LOST = ("unable to obtain query", "unable to obtain history", "cannot retrieve history", "webenv")
"""Words of an error that says that the search isn't there any more; NCBI keeps it for some hours"""
LONG = 500
"""Characters from which on a query is sent by POST, because an address may not be so long"""
QUOTED = 200
_ERROR = re.compile(rb"<ERROR>(.*?)</ERROR>", re.DOTALL)


class HistoryLostError(Exception):
    """The server has forgotten a search."""


@dataclass(frozen=True)
class Found:
    """What a search found."""

    count: int
    webenv: str
    key: str
    pmids: tuple[str, ...]
    """As many as were asked for"""
    unknown: tuple[str, ...]
    """Phrases and fields that PubMed doesn't know, and what else it warns of"""


class Eutils:
    """PubMed behind the E-utilities."""

    def __init__(self, http: Polite, url: str = URL) -> None:
        self._http, self._url = http, url.rstrip("/")

    @property
    def today(self) -> str:
        """The server's date at its last answer, in ISO 8601; empty where it didn't say."""
        return self._http.today

    def search(self, term: str, first: str, last: str, ids: int = 0) -> Found:
        """Articles that match and were added or revised between two dates (YYYY/MM/DD). Raises DataError."""
        asked = {"term": term, "usehistory": "y", "retmax": str(ids), "retmode": "xml", "sort": "pub_date"}
        asked |= {"datetype": "mdat", "mindate": first, "maxdate": last}
        root = ET.fromstring(self._get("esearch.fcgi", asked, "eSearchResult", post=len(term) > LONG))
        count = root.findtext("Count") or ""
        if not count.isdecimal():
            raise DataError(f"{self._url}: a search without a count. Is this the address of the E-utilities?")
        lists = [*root.iterfind("ErrorList/*"), *root.iterfind("WarningList/*")]
        return Found(
            count=int(count),
            webenv=root.findtext("WebEnv") or "",
            key=root.findtext("QueryKey") or "",
            pmids=tuple(each.text or "" for each in root.iterfind("IdList/Id")),
            unknown=tuple(each.text for each in lists if each.text and each.text.strip()),
        )

    def page(self, found: tuple[str, str], start: int, size: int) -> bytes:
        """XML of the articles from `start` on of a search (webenv, key). Raises HistoryLostError, DataError."""
        webenv, key = found
        asked = {"WebEnv": webenv, "query_key": key, "retstart": str(start), "retmax": str(size), "retmode": "xml"}
        return self._get("efetch.fcgi", asked, "PubmedArticleSet")

    def by_ids(self, pmids: list[str]) -> bytes:
        """XML of these articles, at most some hundreds. Raises DataError."""
        return self._get("efetch.fcgi", {"id": ",".join(pmids), "retmode": "xml"}, "PubmedArticleSet", post=True)

    def _get(self, tool: str, asked: dict[str, str], root: str, post: bool = False) -> bytes:
        parameters = {"db": "pubmed"} | asked | self._http.parameters
        url = f"{self._url}/{tool}"
        return self._http.until_it_works(lambda: self._once(url, parameters, root, post), url)

    def _once(self, url: str, parameters: dict[str, str], root: str, post: bool) -> bytes:
        said = self._http.content(url, parameters, post)
        if error := _ERROR.search(said):
            raise self._refusal(error[1].decode(errors="replace"))
        beginning = said[:2000]
        if b"rate limit exceeded" in beginning.lower():
            self._http.slow_down()
            raise PassingError("answers that there were too many requests")
        if f"<{root}".encode() not in beginning:
            what = "a page for people" if b"<html" in beginning.lower() else "something that is no answer"
            raise PassingError(f"answers with {what}")
        if not said.rstrip().endswith(f"</{root}>".encode()):
            raise PassingError("breaks off within its answer")
        if root == "eSearchResult":
            try:
                ET.fromstring(said)
            except ET.ParseError as error:
                raise PassingError(f"answers with malformed XML ({error})") from error
        return said

    def _refusal(self, said: str) -> Exception:
        shown = " ".join(said.split())[:QUOTED]
        for name, value in self._http.parameters.items():
            shown = shown.replace(value, f"({name})")
        if any(each in said.casefold() for each in LOST):
            return HistoryLostError(shown)
        # "Search Backend failed" comes for a busy server and for a query that can't be read; only the first passes.
        return PassingError(f'answers with an error: "{shown}"')
