"""Remove near duplicates from the same rows with each library. quality_scale.py runs one library at a time.

datasketch: MinHashLSH with 128 permutations and threshold 0.7, over the same words and word pairs as Meditune; pairs
need an estimated similarity of 0.7. datatrove: its MinHash steps in one process, with its defaults (5-grams, 14 x 8)
and with bands and shingles like Meditune's (2-grams, 42 x 3). Its words are split at whitespace, because its own
tokenizer for English is spaCy's, which is slower. semhash is not included: it needs an embedding model from a hub.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def meditune(rows: Rows) -> set[int]:
    """Return the rows that Meditune removes as exact or near duplicates of an earlier row."""
    from meditune.config.data_options import QualitySpec
    from meditune.data.example import Example
    from meditune.data.quality import deduplication
    from meditune.data.quality.audit import Audit

    examples = [
        Example(id=row["id"], source="own", question=row["question"], answer=row["answer"], group=row["id"])
        for row in rows
    ]
    return Audit(QualitySpec(), ()).repeats(examples, deduplication.pairs(examples))


def datasketch(rows: Rows) -> set[int]:
    """Return the rows that datasketch finds in its index; other rows are added to the index."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=0.7, num_perm=128)
    signatures: dict[int, Any] = {}
    gone = set()
    for at, row in enumerate(rows):
        said = re.findall(r"\w+", text(row).casefold())
        shingles = {*said, *(f"{one} {two}" for one, two in pairwise(said))}
        signature = MinHash(num_perm=128)
        signature.update_batch([each.encode() for each in shingles])
        if any(signature.jaccard(signatures[other]) >= 0.7 for other in index.query(signature)):
            gone.add(at)
        else:
            index.insert(at, signature)
            signatures[at] = signature
    return gone


class AtBlanks:
    """A tokenizer that splits words at whitespace."""

    def word_tokenize(self, said: str) -> list[str]:
        """Return the words."""
        return said.split()


def datatrove(rows: Rows, grams: int = 5, bands: int = 14, in_band: int = 8) -> set[int]:
    """Return the rows that datatrove removes, read from the file of its last step (signatures, buckets, clusters)."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import minhash
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupSignature,
    )
    from datatrove.utils.hashing import HashConfig
    from loguru import logger

    logger.remove()
    minhash.load_word_tokenizer = lambda _: AtBlanks()
    config = MinhashConfig(
        n_grams=grams, num_buckets=bands, hashes_per_bucket=in_band, hash_config=HashConfig(precision=64)
    )
    with tempfile.TemporaryDirectory() as folder:
        places = [f"{folder}/{name}" for name in ("signatures", "buckets", "remove")]
        documents = iter([Document(text=text(row), id=row["id"]) for row in rows])
        MinhashDedupSignature(places[0], config).run(documents, 0, 1)
        for band in range(bands):
            MinhashDedupBuckets(places[0], places[1], config=config).run(None, band, bands)
        MinhashDedupCluster(places[1], places[2], config=config).run(None, 0, 1)
        removed = b"".join(path.read_bytes() for path in Path(places[2]).glob("*.remove"))
    return {int.from_bytes(removed[at : at + 4], "little") for at in range(0, len(removed), 4)}


def datatrove_fine(rows: Rows) -> set[int]:
    """Return the rows that datatrove removes with bands like Meditune's."""
    return datatrove(rows, 2, 42, 3)


def text(row: dict[str, Any]) -> str:
    """Return the text of a row that is compared."""
    return f"{row['question']} {row['answer']}"


WAYS = {"meditune": meditune, "datasketch": datasketch, "datatrove": datatrove, "datatrove_fine": datatrove_fine}


def main() -> None:
    """Print as JSON which of a file's rows one library removes, with its time and memory."""
    name, path = sys.argv[1:]
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    started, used = time.monotonic(), time.process_time()
    gone = WAYS[name](rows)
    print(
        json.dumps(
            {
                "gone": sorted(gone),
                "seconds": time.monotonic() - started,
                "cpu": time.process_time() - used,
                "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
            }
        )
    )


if __name__ == "__main__":
    main()
