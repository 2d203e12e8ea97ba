"""PubMed for tests: invented articles in its XML, its servers on loopback, and updates from them.

The servers are esearch and efetch with the history server, and a folder of update files. They replay what the real ones
do: pages of a search that is kept under WebEnv and query_key, dates of modification, errors inside XML, 429 above the
limit, ranges of files. Faults are queued by tool, and each is done once.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, quoteattr

from meditune.retrieve.index import Index
from tests import corpus
from tests.commands import Result, meditune, read_rows
from tests.http_servers import Answering, listening

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


RATE_LIMITED = b'{"error":"API rate limit exceeded","api-key":"127.0.0.1","count":"4","limit":"3"}'
INVALID_KEY = b'{"error":"API key invalid","api-key":"secret-key","type":"api_key","status":"unknown"}'
HTML = b"<!DOCTYPE html><html><head><title>NCBI - WWW Error Blocked Diagnostic</title></head><body>Sorry</body></html>"
MOST = 9_999


def error_document(text: str) -> bytes:
    """What efetch says instead of articles."""
    return (
        '<?xml version="1.0" encoding="UTF-8" ?>\n<!DOCTYPE eEfetchResult PUBLIC "-//NLM//DTD efetch 20131226//EN" '
        '"https://eutils.ncbi.nlm.nih.gov/eutils/dtd/20131226/efetch.dtd">\n'
        f"<eFetchResult>\n\t<ERROR>{text}</ERROR>\n</eFetchResult>\n"
    ).encode()


class PubMed:
    """What the servers hold, what they were asked, and what they are to do wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.papers: dict[int, Paper | str] = {}
        """By PubMed id; a text is sent as it is"""
        self.asked: list[tuple[str, dict[str, str]]] = []
        """Tool and parameters"""
        self.times: list[float] = []
        self.agents: set[str] = set()
        self.faults: dict[str, list[str]] = defaultdict(list)
        """By tool (esearch, efetch, file): names of `Handler.FAULTS`"""
        self.searches: dict[tuple[str, str], list[int]] = {}
        self.ranges: list[str] = []
        self.clock = 1_768_219_200.0
        """2026-01-12, by which the servers date their answers"""
        self.most = MOST
        self.url = ""
        self.lock = threading.Lock()

    def add(self, *papers: Paper) -> None:
        """Put articles in, in place of earlier ones."""
        self.papers |= {paper.pmid: paper for paper in papers}

    def fail(self, tool: str, *faults: str) -> None:
        """Do these things wrong, one a request."""
        self.faults[tool] += faults

    def asked_of(self, tool: str) -> list[dict[str, str]]:
        """The parameters of all requests to a tool."""
        return [parameters for name, parameters in self.asked if name == tool]

    def search(self, term: str, first: str, last: str) -> list[int]:
        """The newest first. The term is a title's word, [pt] a kind of publication, "all" everything."""
        found = []
        for pmid, paper in self.papers.items():
            if isinstance(paper, str):
                found.append(pmid)
                continue
            day = paper.revised.replace("-", "/")
            kind = re.fullmatch(r'"(.+)"\[pt\]', term)
            fits = (
                kind[1].lower() in map(str.lower, paper.types)
                if kind
                else term == "all" or term.lower() in paper.title.lower()
            )
            if fits and first <= day <= last:
                found.append(pmid)
        return sorted(found, reverse=True)


@contextmanager
def serving(folder: Path) -> Iterator[PubMed]:
    """The servers; update files are those of `folder`."""
    held = PubMed(folder)

    class Handler(_Handler):
        pubmed = held

    with listening(Handler) as held.url:
        yield held


class _Handler(Answering):
    pubmed: PubMed
    protocol_version = "HTTP/1.1"

    def date_time_string(self, timestamp: float | None = None) -> str:  # noqa: ARG002 (the base's)
        return formatdate(self.pubmed.clock, usegmt=True)

    def do_POST(self) -> None:
        self._tool({key: values[0] for key, values in parse_qs(self.body().decode()).items()})

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path.startswith("/entrez/eutils/"):
            self._tool({key: values[0] for key, values in parse_qs(parts.query).items()})
        else:
            self._files(unquote(parts.path))

    def _tool(self, asked: dict[str, str]) -> None:
        tool = urlsplit(self.path).path.rpartition("/")[2].removesuffix(".fcgi")
        with self.pubmed.lock:
            self.pubmed.asked.append((tool, asked))
            self.pubmed.times.append(time.monotonic())
            self.pubmed.agents.add(self.headers.get("User-Agent", ""))
            fault = self.pubmed.faults[tool].pop(0) if self.pubmed.faults[tool] else ""
        if not fault.startswith(("cut", "half", "slow", "drip")) and fault:
            self._wrong(fault)
            return
        body = self._search(asked) if tool == "esearch" else self._fetch(asked)
        if fault == "half":  # whole as HTTP goes, but not as XML
            body = body[: len(body) // 2]
        if fault == "slow":
            time.sleep(1.5)
        self._send(200, body, "text/xml", cut=fault == "cut", drips=fault == "drip")

    def _wrong(self, fault: str) -> None:
        name, _, value = fault.partition(":")
        if name == "429":
            self._send(429, RATE_LIMITED, "application/json", {"Retry-After": value} if value else {})
        elif name == "400-key":
            self._send(400, INVALID_KEY, "application/json")
        elif name == "200-limit":
            self._send(200, RATE_LIMITED, "application/json")
        elif name == "html":
            self._send(200, HTML, "text/html")
        elif name == "error":
            self._send(200, error_document(value), "text/xml")
        else:
            self._send(int(name), b"<html>wrong</html>", "text/html")

    def _search(self, asked: dict[str, str]) -> bytes:
        assert (asked["db"], asked["usehistory"], asked["datetype"]) == ("pubmed", "y", "mdat")
        found = self.pubmed.search(asked["term"], asked["mindate"], asked["maxdate"])
        webenv = f"MCID_{len(self.pubmed.searches):04}"
        self.pubmed.searches[webenv, "1"] = found
        shown = found[: min(int(asked["retmax"]), self.pubmed.most)]
        warning = (
            "<WarningList><QuotedPhraseNotFound>nosuchword</QuotedPhraseNotFound></WarningList>"
            if "nosuchword" in asked["term"]
            else ""
        )
        ids = "".join(f"<Id>{pmid}</Id>\n" for pmid in shown)
        return (
            '<?xml version="1.0" encoding="UTF-8" ?>\n'
            '<!DOCTYPE eSearchResult PUBLIC "-//NLM//DTD esearch 20060628//EN" '
            '"https://eutils.ncbi.nlm.nih.gov/eutils/dtd/20060628/esearch.dtd">\n'
            f"<eSearchResult><Count>{len(found)}</Count><RetMax>{len(shown)}</RetMax><RetStart>0</RetStart>"
            f"<QueryKey>1</QueryKey><WebEnv>{webenv}</WebEnv><IdList>\n{ids}</IdList>{warning}</eSearchResult>\n"
        ).encode()

    def _fetch(self, asked: dict[str, str]) -> bytes:
        if "id" in asked:
            found = [int(each) for each in asked["id"].split(",")]
        else:
            kept = self.pubmed.searches.get((asked["WebEnv"], asked["query_key"]))
            if kept is None:
                return error_document("Unable to obtain query #1")
            start = int(asked["retstart"])
            found = kept[start : start + int(asked["retmax"])]
        return document(*(self.pubmed.papers[pmid] for pmid in found if pmid in self.pubmed.papers))

    def _files(self, path: str) -> None:
        name = path.removeprefix("/updatefiles/")
        if not name:
            links = "".join(
                f'<a href="{each.name}">{each.name}</a>  2026-01-10 14:02  31M\n'
                for each in sorted(self.pubmed.folder.iterdir())
            )
            page = f"<html><head><title>Index of /pubmed/updatefiles</title></head><pre>{links}</pre></html>"
            self._send(200, page.encode(), "text/html")
            return
        file = self.pubmed.folder / name
        if not file.is_file():
            self._send(404, b"<html>not found</html>", "text/html")
            return
        with self.pubmed.lock:
            self.pubmed.asked.append(("file", {"name": name}))
            waiting = self.pubmed.faults["file" if name.endswith(".gz") else "md5"]
            fault = waiting.pop(0) if waiting else ""
        body, headers, status = file.read_bytes(), {"Accept-Ranges": "bytes"}, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and fault != "no-range":
            self.pubmed.ranges.append(asked[0])
            headers["Content-Range"] = f"bytes {asked[1]}-{len(body) - 1}/{len(body)}"
            body, status = body[int(asked[1]) :], 206
        if fault == "damaged":
            body = body[:-5] + b"wrong"
        if fault and fault not in ("cut", "damaged", "no-range"):
            self._wrong(fault)
            return
        self._send(status, body, "application/x-gzip", headers, cut=fault == "cut")

    def _send(
        self,
        status: int,
        body: bytes,
        kind: str,
        headers: dict[str, str] | None = None,
        cut: bool = False,
        drips: bool = False,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        for byte in body[:200] if drips else b"":
            self.wfile.write(bytes([byte]))
            time.sleep(0.02)
        if drips:
            self.close_connection = True
        else:
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True


def update_by_query(served: PubMed, folder: Path, *words: object, query: str = "all") -> Result:
    """An update by query."""
    asked = ("--query", query, "--email", "me@clinic.org", "--eutils-url", f"{served.url}/entrez/eutils")
    return meditune("update", folder / "library", *asked, *words)


def documents_found(folder: Path, question: str) -> list[str]:
    """The documents that a search finds."""
    return [hit.passage.document for hit in Index.open(folder / "index", corpus.TINY).search(question).hits]


def library_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """The objects in one of the library's files."""
    return read_rows(folder / "library" / name)
