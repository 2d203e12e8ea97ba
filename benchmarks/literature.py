"""Measure how well a conclusion alone predicts the decision, and how fast new records are imported.

    python benchmarks/literature.py decisions      # on the training half of PubMedQA's labelled part
    python benchmarks/literature.py speed [N]      # on N copies of a PubMed article, each with its own id

Both need the publishers' data under MEDITUNE_DATA.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from meditune.data import sources
from meditune.data.readers import pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.operate.literature import article_library
from meditune.operate.literature.abstract_questions import is_supported_by_conclusion
from meditune.operate.literature.article_library import LibraryUpdate
from meditune.retrieve.documents import pubmed_articles


def decisions() -> None:
    """Print the experts' decisions for items whose conclusion supports a title that says yes, and one that says no."""
    train, _ = pubmedqa.official_split(pubmedqa.read(sources.locate_source("pubmedqa"), Rejects()))
    print(f"{len(train)} items: {_shares(Counter(str(example.decision) for example in train))}")
    for stated in ("yes", "no"):
        supporting = Counter(
            str(example.decision) for example in train if is_supported_by_conclusion(stated, example.answer)
        )
        print(f"{supporting.total()} conclusions would support a title that says {stated}: {_shares(supporting)}")


def speed(count: int) -> None:
    """Print the records per CPU second: reading alone, and applying to a library for the first and the second time."""
    data = Path(sources.locate_source("pubmedqa")).parent / "pubmed"
    (article,) = data.glob("*.xml")
    text = article.read_text(encoding="utf-8")
    record = text[text.index("<PubmedArticle>") : text.index("</PubmedArticleSet>")]
    pmid = article.stem.rpartition("-")[2]
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "copies.xml.gz"
        copies = (record.replace(pmid, str(10**6 + n)).replace("3849 patients", f"{n} patients") for n in range(count))
        with gzip.open(file, "wt", encoding="utf-8") as stream:
            stream.writelines(["<PubmedArticleSet>", *copies, "</PubmedArticleSet>"])
        begun = time.process_time()
        read = sum(1 for _ in pubmed_articles.pubmed_of_file(file, Rejects()))
        print(f"read: {read / (time.process_time() - begun):,.0f} records/s")
        with article_library.opened(Path(place) / "library") as here:
            for what in ("applied", "applied again"):
                applying, begun = LibraryUpdate(here, is_requested=False), time.process_time()
                with here.transaction():
                    applying.all(pubmed_articles.pubmed_of_file(file, Rejects()))
                seconds = time.process_time() - begun
                print(f"{what}: {count / seconds:,.0f} records/s ({dict(applying.counts)})")


def _shares(found: Counter[str]) -> str:
    return ", ".join(f"{name} {count} ({count / found.total():.0%})" for name, count in found.most_common())


if __name__ == "__main__":
    if sys.argv[1:2] == ["decisions"]:
        decisions()
    elif sys.argv[1:2] == ["speed"]:
        speed(int(sys.argv[2]) if len(sys.argv) > 2 else 3000)
    else:
        sys.exit(__doc__)
