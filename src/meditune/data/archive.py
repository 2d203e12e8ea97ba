"""The XML files of a data set, from a folder or straight from the zip it was published as."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from meditune.errors import DataError


def xml_files(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Name (with its folders) and bytes of every XML file under a folder or in a zip, in order of name.

    A folder that holds nothing but one or more zips is read through them. Raises DataError where there are none.
    """
    if path.is_dir():
        names = sorted(file for file in path.rglob("*.xml") if file.is_file())
        archives = [] if names else sorted(path.glob("*.zip"))
        for name in names:
            yield PurePosixPath(name.relative_to(path).as_posix()), name.read_bytes()
        for archive in archives:
            yield from _zipped(archive)
        if not names and not archives:
            raise DataError(f"{path}: no XML files and no zip here. Point at the publisher's folder or zip.")
    elif zipfile.is_zipfile(path):
        yield from _zipped(path)
    elif path.suffix == ".xml" and path.is_file():
        yield PurePosixPath(path.parent.name) / path.name, path.read_bytes()
    elif path.exists():
        raise DataError(f"{path}: neither a folder nor a whole zip file. Fetch it again.")
    else:
        raise DataError(f"{path}: no such folder or zip file.")


def _zipped(archive: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    try:
        with zipfile.ZipFile(archive) as opened:
            names = sorted(name for name in opened.namelist() if name.endswith(".xml") and "__MACOSX" not in name)
            if not names:
                raise DataError(f"{archive}: no XML files in this zip. Point at the publisher's.")
            for name in names:
                yield PurePosixPath(name), opened.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{archive}: a damaged zip file ({error}). Fetch it again.") from error


def parse_xml(data: bytes) -> ET.Element:
    """The root element. Raises ValueError with line and column where it isn't well-formed XML."""
    try:
        return ET.fromstring(data.removeprefix(b"\xef\xbb\xbf"))
    except ET.ParseError as error:
        raise ValueError(f"not well-formed XML ({error})") from error
    except LookupError as error:
        raise ValueError(f"unknown text encoding ({error})") from error


def children(element: ET.Element, *names: str) -> Iterator[ET.Element]:
    """All descendants called one of `names`, whatever their case."""
    wanted = {name.lower() for name in names}
    return (each for each in element.iter() if isinstance(each.tag, str) and each.tag.lower() in wanted)


def texts(element: ET.Element, *names: str) -> list[str]:
    """The texts of those descendants on one line each, without the empty ones."""
    found = (" ".join("".join(each.itertext()).split()) for each in children(element, *names))
    return [text for text in found if text]


def tidy(text: str) -> str:
    """`text` with blanks evened out; its lines and paragraphs stay, and list items set apart by blanks get lines."""
    items = re.sub(r"\n?[ \t\xa0]{2,}-[ \t\xa0]+", "\n- ", text)
    lines = "\n".join(" ".join(line.split()) for line in items.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", lines).strip()
