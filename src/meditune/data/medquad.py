"""MedQuAD: question-answer pairs from twelve sites of the US National Institutes of Health.

Ben Abacha & Demner-Fushman, "A Question-Entailment Approach to Question Answering", BMC Bioinformatics 20:511,
2019 (https://doi.org/10.1186/s12859-019-3119-4), https://github.com/abachaa/MedQuAD. CC BY 4.0. The answers of three
MedlinePlus collections were removed by the publisher for copyright; those pairs are counted and left out.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from meditune.data.archive import children, parse_xml, texts, tidy, xml_files
from meditune.data.damage import damage
from meditune.data.example import Example
from meditune.data.rejects import Rejects
from meditune.progress import track

SOURCE = "medquad"
LICENCE = "CC BY 4.0"
NO_ANSWER = "no answer in the published file"


def read(path: Path, rejects: Rejects) -> Iterator[Example]:
    """The answered pairs of a folder with the collections' folders, or of a zip of it, in order of file name.

    Ids are `medquad:COLLECTION/DOCUMENT-PAIR`: MedQuAD's own numbers start again in each collection, and where
    several files carry one document number, the file's name replaces it. Each meta has `focus`, `synonyms`, `cui`,
    `semantic_type`, `semantic_group`, `question_type`, `url`, `licence`, `collection`, `document`. Pairs without an
    answer are counted in `rejects`; a file that isn't well-formed XML is named there and the others are read.
    Raises DataError where there are no files.
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
            problem = damage([question, answer])
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


def _meta(document: ET.Element, name: PurePosixPath) -> dict[str, Any]:
    # Four NINDS files call the focus <doctitle-focus>, the document `docid` and the source `corpus`.
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
