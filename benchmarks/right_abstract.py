"""Measure the rank at which search finds the abstract of a PubMedQA question that comes without context.

    meditune index build -o INDEX --source pubmedqa --source medquad
    python benchmarks/right_abstract.py INDEX

    python benchmarks/right_abstract.py contexts      # only the abstracts, without titles, by BM25 in memory

    python benchmarks/right_abstract.py --untitled abstracts.xml      # write the abstracts without titles as PubMed XML
    meditune index build -o UNTITLED --pubmed abstracts.xml --source medquad
    python benchmarks/right_abstract.py UNTITLED

MEDITUNE_DATA names the folder with the publisher's pubmedqa. PubMedQA's questions are titles of articles, so an index
with titles holds each question word for word; without titles, a question and its abstract share only their subject.
Neither index has conclusions. A document counts once, however many of its passages are found.
"""

from __future__ import annotations

import argparse
import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from meditune.config.data_options import CONTEXTS, PromptFormat
from meditune.data.example import Example
from meditune.data.readers import pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.data.retrieved_passages import publishers_id
from meditune.retrieval_augmentation import ContextSearch
from meditune.retrieve.index import Index
from meditune.statistics import wilson

K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", nargs="?", help=f"folder of an index, or {CONTEXTS}")
    parser.add_argument("--untitled", type=Path, help="only write the abstracts without titles to this file")
    parser.add_argument("--mode", choices=("hybrid", "bm25", "vectors"), nargs="*", default=["hybrid"])
    arguments = parser.parse_args()
    examples = list(pubmedqa.read(Path(os.environ["MEDITUNE_DATA"]).expanduser() / "pubmedqa", Rejects()))
    if arguments.untitled:
        untitled(examples).write(arguments.untitled, encoding="utf-8", xml_declaration=True)
        return
    if arguments.index == CONTEXTS:
        place = ContextSearch(examples, PromptFormat())
        ranks = [ranked([each.document for each in place.search(e.question, K)], e) for e in examples]
        print(
            f"{len(examples)} questions; own abstract first, in the top 3, 5, 10: "
            f"{' | '.join(share(ranks, most) for most in (1, 3, 5, 10))}"
        )
        return
    index = Index.open(arguments.index)
    print(f"{len(examples)} questions, {index.manifest.passages:,} passages of {index.manifest.documents:,} documents")
    print("| search | first | in the top 3 | in the top 5 | in the top 10 |\n|---|---|---|---|---|")
    for mode in arguments.mode:
        ranks = [rank(index, example, mode) for example in examples]
        print(f"| {mode} | {' | '.join(share(ranks, most) for most in (1, 3, 5, 10))} |", flush=True)


def rank(index: Index, example: Example, mode: str) -> int:
    """Return the rank of the question's own abstract, from 1; K + 1 if it isn't among the first K."""
    return ranked([hit.passage.document for hit in index.search(example.question, K, mode=mode).hits], example)


def ranked(documents: Sequence[str], example: Example) -> int:
    """Return the rank of the question's own abstract in a list of documents; K + 1 if absent."""
    own = publishers_id(example.id)
    return next((place for place, each in enumerate(documents, start=1) if publishers_id(each) == own), K + 1)


def share(ranks: Sequence[int], most: int) -> str:
    met = sum(each <= most for each in ranks)
    low, high = wilson(met, len(ranks))
    return f"{100 * met / len(ranks):.1f}% ({low:.1f} to {high:.1f})"


def untitled(examples: Sequence[Example]) -> ET.ElementTree[ET.Element]:
    """Return the abstracts as PubMed XML with only PubMed ids and sections."""
    root = ET.Element("PubmedArticleSet")
    for example in examples:
        citation = ET.SubElement(ET.SubElement(root, "PubmedArticle"), "MedlineCitation")
        ET.SubElement(citation, "PMID").text = publishers_id(example.id)
        abstract = ET.SubElement(ET.SubElement(citation, "Article"), "Abstract")
        for passage in example.context:
            ET.SubElement(abstract, "AbstractText", Label=passage.label).text = passage.text
    return ET.ElementTree(root)


if __name__ == "__main__":
    main()
