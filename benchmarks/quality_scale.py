"""Measure the cost of auditing many rows, and compare the search for near duplicates with other libraries.

    python benchmarks/quality_scale.py rows 10000 100000 1000000 [--engine ray] [--workers 2] [--folder DIR]
    python benchmarks/quality_scale.py peers 20000 --peers PYTHON

Rows are generated (seed 17): a question, and an answer of about a hundred words sampled by their frequency in English
(wordfreq), with names that no other row has. One row in 50 is a light rewrite of an earlier row (one word in twenty
replaced or left out, two sentences swapped), and one in 100 is a copy with other case and punctuation. `peers` adds,
for one row in 50, a row of the same form with another name, which is no duplicate. Each measurement runs in its own
process. `--compare-only` switches off the rules for single rows and leaves reading, comparing and writing. `--peers`
names the Python of an environment with datasketch and datatrove (and regex), which then run on the same rows.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

SEED = 17
SYLLABLES = (
    "ba",
    "cor",
    "del",
    "fen",
    "gra",
    "hol",
    "ith",
    "jun",
    "kel",
    "lor",
    "mir",
    "nas",
    "oph",
    "pra",
    "qui",
    "rus",
)
ASKED = (
    "What are the symptoms of {}?",
    "How is {} treated?",
    "What causes {}?",
    "Who is at risk of {} and how is it found?",
    "Can {} be prevented in children?",
)
_NEGATION = re.compile(r"\b(?:no|not|non|nor|never|without)\b", re.IGNORECASE)
PEERS = Path(__file__).with_name("dedup_peers.py")
BACK = 2000
"""A planted row is made from one of this many earlier rows"""


@cache
def vocabulary() -> tuple[list[str], list[float]]:
    """Return English words and their cumulative frequencies."""
    from itertools import accumulate

    from wordfreq import top_n_list, word_frequency

    words = [word for word in top_n_list("en", 20_000) if word.isalpha()]
    return words, list(accumulate(word_frequency(word, "en") for word in words))


def name_of(number: int) -> str:
    """Return a disease name that is unique to the number."""
    letters = []
    for _ in range(5):
        number, at = divmod(number, len(SYLLABLES))
        letters.append(SYLLABLES[at])
    return "".join(letters).capitalize() + " disease"


def good(number: int, chance: random.Random) -> dict[str, str]:
    """Return a row that duplicates no other row."""
    words, weights = vocabulary()
    said = chance.choices(words, cum_weights=weights, k=chance.randint(60, 130))
    name = name_of(number)
    sentences = []
    while said:
        length = chance.randint(8, 18)
        sentences.append(" ".join(said[:length]).capitalize() + ".")
        said = said[length:]
    sentences[0] = f"{name} affects patients whose {sentences[0].lower()}"
    return {"question": chance.choice(ASKED).format(name), "answer": " ".join(sentences)}


def rewritten(row: dict[str, str], chance: random.Random) -> dict[str, str]:
    """Return a light rewrite of the row."""
    words, weights = vocabulary()
    sentences = row["answer"].split(". ")
    if len(sentences) > 3:
        at = chance.randrange(1, len(sentences) - 2)
        sentences[at], sentences[at + 1] = sentences[at + 1], sentences[at]
    said = ". ".join(sentences).split()
    for _ in range(len(said) // 20):
        at, other = chance.randrange(4, len(said)), chance.choices(words, cum_weights=weights)[0]
        if _NEGATION.search(f"{said[at]} {other}"):
            continue  # a negation would change the meaning
        if chance.random() < 0.5:
            del said[at]
        else:
            said[at] = other
    question = chance.choice((row["question"].lower(), "So, " + row["question"], row["question"].rstrip("?") + " ??"))
    return {"question": question, "answer": " ".join(said)}


def rows(count: int, misses: bool = False) -> Iterator[dict[str, Any]]:
    """Yield `count` rows: id, question, answer, and `of`, the id of the duplicated row (empty for good rows)."""
    chance = random.Random(SEED)
    before: list[dict[str, Any]] = []
    for number in range(count):
        kind, original = number % 100, chance.choice(before) if before else None
        if original is None or kind not in {20, 40, 60, 80, 90}:
            row: dict[str, Any] = good(number, chance) | {"of": ""}
        elif kind in {20, 60}:
            row = rewritten(original, chance) | {"of": original["id"]}
        elif kind == 90:
            row = {
                "question": original["question"].upper(),
                "answer": original["answer"].replace(". ", " "),
                "of": original["id"],
            }
        elif misses:
            old, new = name_of(int(original["id"])), name_of(number)
            row = {key: original[key].replace(old, new) for key in ("question", "answer")} | {"of": "", "form": "1"}
        else:
            row = good(number, chance) | {"of": ""}
        row["id"] = str(number)
        if not row["of"] and "form" not in row:
            if len(before) < BACK:
                before.append(row)
            else:
                before[chance.randrange(BACK)] = row
        yield row


def write(path: Path, count: int) -> None:
    """Write the rows as Parquet, a thousand at a time."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, pyarrow.string()) for name in ("id", "question", "answer", "of")])
    waiting: list[dict[str, Any]] = []
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for row in rows(count):
            waiting.append(row)
            if len(waiting) == 1000:
                writer.write_table(pyarrow.Table.from_pylist(waiting, schema=schema))
                waiting = []
        writer.write_table(pyarrow.Table.from_pylist(waiting, schema=schema))


def audit(path: Path, folder: Path, engine: str, workers: int, compare_only: bool) -> dict[str, float]:
    """Audit a file as a stream in this process, and return the metrics."""
    from meditune.data.quality.audit_folder import Engine, audit_folder, recipe_for
    from meditune.data.quality.quality_filters import RULES

    chosen: Engine = "ray" if engine == "ray" else "local"
    started = time.monotonic()
    off = [f"data.quality.rules.{rule}=off" for rule in RULES] if compare_only else []
    off += ["data.phi.action=off"] if compare_only else []
    quality = audit_folder(recipe_for(str(path), off), folder, True, chosen, workers)
    seconds = time.monotonic() - started
    used, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "rows": quality["audit"]["rows"],
        "exact": quality["audit"]["rules"]["exact_duplicate"]["rows"],
        "near": quality["audit"]["rules"]["near_duplicate"]["rows"],
        "seconds": seconds,
        "cpu": used.ru_utime + used.ru_stime + others.ru_utime + others.ru_stime,
        "gb": used.ru_maxrss / 1e6,
        "worker_gb": others.ru_maxrss / 1e6,
    }


def measured(script: str, *arguments: str, python: str = sys.executable) -> dict[str, Any]:
    """Run a script with these arguments in a separate process, and return the JSON of its last line."""
    done = subprocess.run([python, script, *arguments], stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure_peers(count: int, others: str | None) -> None:
    """Print recall and precision of removing the planted duplicates, and the cost, for each library."""
    made = list(rows(count, misses=True))
    families: dict[str, list[int]] = {}
    for at, row in enumerate(made):
        families.setdefault(row["of"] or row["id"], []).append(at)
    again = sum(len(family) - 1 for family in families.values())
    forms = {at for at, row in enumerate(made) if "form" in row}
    print(f"{count:,} rows, {again:,} of them duplicates, {len(forms):,} near misses")
    print("| | recall | precision | near misses removed | seconds | CPU-seconds | peak GB |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        for name in ("meditune", "datasketch", "datatrove", "datatrove_fine"):
            python = sys.executable if name == "meditune" else others
            if python is None:
                continue
            got = measured(str(PEERS), name, str(path), python=python)
            gone = set(got["gone"])
            right = sum(min(len(gone.intersection(family)), len(family) - 1) for family in families.values())
            print(
                f"| {name} | {right / again:.3f} | {right / max(len(gone), 1):.3f} | {len(gone & forms):,} | "
                f"{got['seconds']:.1f} | {got['cpu']:.1f} | {got['gb']:.2f} |",
                flush=True,
            )


def measure_rows(counts: list[int], engine: str, workers: int, place: Path | None, compare_only: bool) -> None:
    """Print one line for each number of rows."""
    print("| rows | seconds | rows/s | CPU-seconds | peak GB | near duplicates: planted, found | copies |")
    print("|---|---|---|---|---|---|---|")
    for count in counts:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            path = Path(folder) / "rows.parquet"
            write(path, count)
            got = measured(
                __file__, "audit", str(path), str(Path(folder) / "out"), engine, str(workers), str(int(compare_only))
            )
        memory = f"{got['gb']:.2f}" + (f" + {workers} x {got['worker_gb']:.2f}" if workers > 1 else "")
        print(
            f"| {count:,} | {got['seconds']:.0f} | {count / got['seconds']:,.0f} | {got['cpu']:.0f} | {memory} | "
            f"{count // 50:,}, {got['near']:,} | {count // 100:,}, {got['exact']:,} |",
            flush=True,
        )


def main() -> None:
    """Print the tables of docs/explanation/data-preparation.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rows", "peers", "audit"))
    parser.add_argument("values", nargs="+")
    parser.add_argument("--engine", default="local")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--compare-only",
        action="store_true",
        help="Switch off the rules for single rows and the search for identifiers.",
    )
    parser.add_argument(
        "--peers", help="Python of an environment with the other libraries, for example peers/bin/python."
    )
    parser.add_argument("--folder", type=Path, help="Parent folder of the temporary files.")
    chosen = parser.parse_args()
    if chosen.what == "audit":
        path, folder, engine, workers, only = chosen.values
        print(json.dumps(audit(Path(path), Path(folder), engine, int(workers), only == "1")))
    elif chosen.what == "peers":
        measure_peers(int(chosen.values[0]), chosen.peers)
    else:
        measure_rows(
            [int(value) for value in chosen.values], chosen.engine, chosen.workers, chosen.folder, chosen.compare_only
        )


if __name__ == "__main__":
    main()
