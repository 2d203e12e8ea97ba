"""MedQuAD: question-answer pairs from twelve sites of the US National Institutes of Health; reading of XML.

Ben Abacha & Demner-Fushman, "A Question-Entailment Approach to Question Answering", BMC Bioinformatics 20:511, 2019
(https://doi.org/10.1186/s12859-019-3119-4), https://github.com/abachaa/MedQuAD. For copyright reasons, the publisher
removed the answers of three MedlinePlus collections; the pairs without an answer are counted and left out.
"""

from __future__ import annotations

import hashlib
import io
import re
import xml.etree.ElementTree as ET
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from meditune.data.example import Example, problem_in_text
from meditune.data.readers.tables import Rejects, open_unchanging, rows
from meditune.errors import DataError
from meditune.progress import track

FILE_BYTES = 2**24
"""Maximum size of an XML file; parsing takes much more memory. The largest published file has about two megabytes"""
ALL_BYTES = 2**29
XML_DEPTH = 100
_TOO_LARGE = "more than {} MB, larger than any of the publisher's files. Download it again."


def xml_files(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield the relative path and the bytes of each XML file in a folder or zip, in order of path."""
    if path.is_dir():
        names = sorted(file for file in path.rglob("*.xml") if not file.is_dir())
        archives = [] if names else sorted(path.glob("*.zip"))
        if not names and not archives:
            raise DataError(f"{path}: no XML files and no zip here. Specify the publisher's folder or zip.")
        for name in names:
            yield PurePosixPath(name.relative_to(path).as_posix()), _bytes(name)
        for archive in archives:
            yield from _zipped(archive)
    elif not path.exists():
        raise DataError(f"{path}: no such folder or zip file.")
    elif path.suffix == ".xml":
        yield PurePosixPath(path.parent.name) / path.name, _bytes(path)
    else:
        yield from _zipped(path)


def contents_sha256(path: Path) -> str:
    """Return one SHA-256 for the names and contents of all XML files in a folder or in the publisher's zip.

    It doesn't depend on the compression, or on the zip's outermost folder, which GitHub names after the commit.
    """
    outer = 0 if path.is_dir() else 1
    lines = (
        f"{PurePosixPath(*name.parts[outer:])}\0{hashlib.sha256(data).hexdigest()}\n" for name, data in xml_files(path)
    )
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _bytes(file: Path) -> bytes:
    with open_unchanging(file), file.open("rb") as stream:
        data = stream.read(FILE_BYTES + 1)
    if len(data) > FILE_BYTES:
        raise DataError(f"{file}: {_TOO_LARGE.format(FILE_BYTES // 2**20)}")
    return data


def _zipped(archive: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield the XML files of a zip. They are read into memory, so that unsafe names (../) and links have no effect."""
    with open_unchanging(archive):
        if not zipfile.is_zipfile(archive):
            raise DataError(f"{archive}: neither a folder nor a complete zip file. Download it again.")
        try:
            with zipfile.ZipFile(archive) as opened:
                found = (each for each in opened.infolist() if each.filename.endswith(".xml"))
                members = [each for each in found if "__MACOSX" not in each.filename]
                if not members:
                    raise DataError(f"{archive}: no XML files in this zip. Specify the publisher's zip.")
                largest = max(members, key=lambda each: each.file_size)
                if largest.file_size > FILE_BYTES:
                    raise DataError(f"{archive}, {largest.filename}: {_TOO_LARGE.format(FILE_BYTES // 2**20)}")
                if sum(each.file_size for each in members) > ALL_BYTES:
                    raise DataError(f"{archive}: unpacks to {_TOO_LARGE.format(ALL_BYTES // 2**20)}")
                for member in sorted(members, key=lambda each: each.filename):
                    yield PurePosixPath(member.filename), opened.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataError(f"{archive}: a damaged zip file ({error}). Download it again.") from error
        except RuntimeError as error:  # encrypted, or an unknown compression
            raise DataError(f"{archive}: can't be unpacked ({error}). Unzip it and give the folder's path.") from error


def parse_xml(data: bytes) -> ET.Element:
    """Return the root element. Raises ValueError if the XML is malformed (with line and column) or nested too deep."""
    depth = 0
    parser = ET.iterparse(io.BytesIO(data.removeprefix(b"\xef\xbb\xbf")), ("start", "end"))
    try:
        for event, _ in parser:
            depth += 1 if event == "start" else -1
            if depth > XML_DEPTH:  # iterating over all descendants of a deeper tree would take hours
                raise ValueError(f"elements nested more than {XML_DEPTH} deep")
    except ET.ParseError as error:
        raise ValueError(f"not well-formed XML ({error})") from error
    except LookupError as error:  # UnicodeError is already a ValueError
        raise ValueError(f"unknown text encoding ({error})") from error
    root: ET.Element = parser.root  # type: ignore[attr-defined]
    return root


def children(element: ET.Element, *names: str) -> Iterator[ET.Element]:
    """Return an iterator over all descendants whose tag is one of `names`, ignoring case."""
    tags = {name.lower() for name in names}
    return (each for each in element.iter() if isinstance(each.tag, str) and each.tag.lower() in tags)


def texts(element: ET.Element, *names: str) -> list[str]:
    """Return the non-empty texts of the descendants that `children` finds, each as a single line."""
    found = (" ".join("".join(each.itertext()).split()) for each in children(element, *names))
    return [text for text in found if text]


def tidy(text: str) -> str:
    """Return `text` with normalized whitespace; lines and paragraphs stay, inline list items get their own lines."""
    items = re.sub(r"\n?[ \t\xa0]{2,}-[ \t\xa0]+", "\n- ", text)
    lines = "\n".join(" ".join(line.split()) for line in items.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


SOURCE = "medquad"
LICENCE = "CC BY 4.0"
NO_ANSWER = "no answer in the published file"


def read(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield the pairs with an answer from a folder of collections, or from its zip, in order of file name.

    Ids are `medquad:COLLECTION/DOCUMENT-PAIR`, since MedQuAD's own numbers restart in each collection. Pairs without an
    answer are counted in `rejects`; a malformed XML file is listed there. Raises DataError if there are no files.
    """
    seen: set[str] = set()
    unanswered = 0
    for name, data in track(xml_files(path), "Reading MedQuAD", unit="files"):
        try:
            document = parse_xml(data)
        except ValueError as error:
            rejects.add(SOURCE, str(name), str(error), data[:500].decode("utf-8", errors="replace"))
            continue
        meta = _meta(document, name)
        pairs = list(children(document, "QAPair", "pair"))
        if not pairs:
            rejects.add(SOURCE, str(name), "no question-answer pairs in the file", f"<{document.tag}>")
        for position, pair in enumerate(pairs, start=1):
            asked = next(children(pair, "Question"), None)
            question = "" if asked is None else " ".join("".join(asked.itertext()).split())
            answer = "\n\n".join(tidy("".join(each.itertext())) for each in children(pair, "Answer")).strip()
            number = pair.get("pid", str(position))
            problem = problem_in_text([question, answer])
            if problem or not question:
                rejects.add(SOURCE, f"{name}, pair {number}", problem or "no question", answer)
            elif not answer:
                unanswered += 1
            else:
                identifier = f"{SOURCE}:{meta['collection']}/{name.stem}-{number}"
                while identifier in seen:
                    identifier += "-again"
                seen.add(identifier)
                kind = "" if asked is None else asked.get("qtype", "")
                yield Example(
                    id=identifier,
                    source=SOURCE,
                    question=question,
                    answer=answer,
                    group=" ".join(meta["focus"].casefold().split()) or f"{meta['collection']}/{name.stem}",
                    meta=meta | {"question_type": kind},
                )
    rejects.count_only(SOURCE, NO_ANSWER, unanswered)


JUDGED_ANSWERS = "*Answers*.csv"
"""Pattern for the files of answers that experts judged (https://github.com/abachaa/MedQuAD)"""
# Every published answer ends with a superfluous closing bracket.
_JUDGED_ANSWER = re.compile(r"Question:(.*?)\nURL:(.*?)\nAnswer:(.*?)\)?", re.DOTALL)


def judged_answers(files: Sequence[Path], source: str, rejects: Rejects) -> Iterator[tuple[str, str, str, str]]:
    """Yield the AnswerID, question, URL and text of each answer; other rows go to `rejects` under the name `source`."""
    for file in files:
        for where, row in rows(file, source, rejects):
            problem = problem_in_text(row)
            found = None if problem else _JUDGED_ANSWER.fullmatch(str(row.get("Answer") or "").strip())
            if found and row.get("AnswerID"):
                yield str(row["AnswerID"]), " ".join(found[1].split()), found[2].strip(), tidy(found[3])
            else:
                unlike = "no AnswerID, or an Answer that doesn't consist of Question, URL and Answer"
                rejects.add(source, where, problem or unlike, row)


def _meta(document: ET.Element, name: PurePosixPath) -> dict[str, Any]:
    # Four NINDS files name the focus <doctitle-focus>, the document id `docid` and the source `corpus`.
    return {
        "focus": next(iter(texts(document, "Focus", "doctitle-focus")), ""),
        "synonyms": texts(document, "Synonym"),
        "cui": texts(document, "CUI"),
        "semantic_type": texts(document, "SemanticType"),
        "semantic_group": next(iter(texts(document, "SemanticGroup")), ""),
        "url": document.get("url", ""),
        "licence": LICENCE,
        "collection": name.parent.name,
        "document": document.get("id") or document.get("docid") or document.get("fid") or name.stem,
    }
