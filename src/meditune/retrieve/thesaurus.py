"""MedQuAD as a thesaurus: what each of its documents' topics is also called.

All of its 11,274 documents count, also those whose answers the publisher had to remove: their topics, synonyms and UMLS
concepts are still there. Documents that are each marked with one and the same concept are about the same thing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from meditune.data.archive import parse_xml, texts, xml_files

MOST_ALIKE = 4
"""Topics of one concept; more of them are aspects of a wide one ("Heart failure - tests") and not its names"""


def of_medquad(path: Path) -> Iterator[tuple[str, ...]]:
    """For each document its topic with all that it is called; the topic first. Files that can't be read are left out.

    Raises DataError where there are no XML files.
    """
    names: dict[str, dict[str, None]] = {}
    same: dict[str, list[str]] = defaultdict(list)
    for _, data in xml_files(path):
        try:
            document = parse_xml(data)
        except ValueError:
            continue
        topic = next(iter(texts(document, "Focus", "doctitle-focus")), "")
        if not topic:
            continue
        names.setdefault(topic, {topic: None}).update(dict.fromkeys(texts(document, "Synonym")))
        concepts = texts(document, "CUI")
        if len(concepts) == 1:
            same[concepts[0]].append(topic)
    for topics in same.values():
        if len(set(topics)) <= MOST_ALIKE:
            together = {name: None for topic in topics for name in names[topic]}
            for topic in topics:
                names[topic].update(together)
    for each in names.values():
        yield tuple(each)
