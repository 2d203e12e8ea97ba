"""Measure how many planted orders the filter of retrieved text removes, and how often it cuts ordinary passages.

    python benchmarks/injections.py                       # the sets in this folder, by style
    python benchmarks/injections.py --file ATTACKS.yaml   # your own set: a mapping of styles to lists of texts
    python benchmarks/injections.py --ordinary            # passages of MEDITUNE_DATA, by source
    python benchmarks/injections.py --show                # also print what remains of orders and what passages lose

Each text is put between two ordinary sentences. It counts as removed if nothing of it remains. Intervals are exact
(Clopper-Pearson, 95%). The rules were written with the development set in view. The held-out set was measured first
(docs/experiments has the result), and the rules were then corrected with it, so its results are now too optimistic.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from scipy.stats import beta

from meditune.config.data_options import PromptFormat
from meditune.retrieve.prompt_injection import clean_passage, is_override
from meditune.text import sentences

HERE = Path(__file__).parent
BEFORE, AFTER = "Gout is a form of arthritis.", "Uric acid forms crystals in the joint."
FORM = PromptFormat()
MOST = 24
"""Maximum number of sentences generated from one line of the development set"""
WORDS = 160
"""Number of words of a passage, as in an index"""
_CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--file", type=Path, action="append", help="YAML file with lists of texts by style; repeatable."
    )
    parser.add_argument("--ordinary", action="store_true", help="Measure passages of MEDITUNE_DATA.")
    parser.add_argument("--most", type=int, default=1000, help="Number of passages measured for each source.")
    parser.add_argument("--show", action="store_true", help="Print the text that remains, and the text that is lost.")
    asked = parser.parse_args()
    if asked.ordinary:
        ordinary(Path(os.environ["MEDITUNE_DATA"]), asked.most, asked.show)
        return
    for path in asked.file or sorted(HERE.glob("injections_*.yaml")):
        measured(path, asked.show)


def measured(path: Path, show: bool) -> None:
    """Print for each style how many texts of a file are removed."""
    print(f"\n{path.name}")
    total = removed = 0
    for style, lines in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        texts = [text for line in lines for text in written_out(line, MOST)]
        left = [(text, stays) for text in texts if (stays := what_stays(text))]
        total, removed = total + len(texts), removed + len(texts) - len(left)
        print(f"  {style:24} {interval(len(texts) - len(left), len(texts))}")
        if show:
            print(*(f"      {text}  ->  {stays}" for text, stays in left), sep="\n")
    print(f"  {'together':24} {interval(removed, total)}")


def what_stays(text: str) -> str:
    """Return the part of a text that remains in a passage with it."""
    text = text.strip()
    end = "" if text[-1] in ".!?" else "\n"
    clean = clean_passage(f"{BEFORE} {text}{end} {AFTER}", FORM).text
    stays = clean.replace(BEFORE, "").replace(AFTER, "").strip()
    return stays if any(map(str.isalnum, stays)) else ""


def written_out(line: str, most: int) -> list[str]:
    """Return up to `most` of the sentences that a line with choices can become, always the same ones."""
    parts = _CHOICE.split(line)
    if len(parts) == 1:
        return [line]
    chance, found = random.Random(line), set()
    for _ in range(3 * most):
        said = (part if number % 2 == 0 else chance.choice(part.split("|")) for number, part in enumerate(parts))
        found.add(" ".join("".join(said).split()))
    return sorted(found)[:most]


def interval(successes: int, trials: int) -> str:
    """Return a share with its exact 95% interval."""
    low = beta.ppf(0.025, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf(0.975, successes + 1, trials - successes) if successes < trials else 1.0
    return f"{successes:5,} of {trials:5,}  {successes / trials:6.2%} [{low:.2%}, {high:.2%}]"


def ordinary(data: Path, most: int, show: bool) -> None:
    """Print for each source how many passages lose a sentence, and how many of users' questions do."""
    for name, texts in sources(data):
        chosen = [passage for text in texts for passage in passages(text)]
        random.Random(0).shuffle(chosen)
        lost = [orders for passage in chosen[:most] if (orders := clean_passage(passage, FORM).orders)]
        print(f"  {name:24} {interval(len(lost), len(chosen[:most]))}")
        if show:
            print(*(f"      {order[:300]}" for orders in lost for order in orders), sep="\n")
    asked = [row["CHQ"] for row in rows(data / "meqsum" / "meqsum.jsonl")][:most]
    lost_questions = [text for text in asked if any(is_override(each) for each in sentences(text))]
    print(f"  {'questions of users':24} {interval(len(lost_questions), len(asked))}")
    if show:
        print(*(f"      {text[:300]}" for text in lost_questions), sep="\n")


def sources(data: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the sources by name with their texts.

    The rules were written with the false alarms in all sources except citation-integrity in view.
    """
    abstracts = rows(data / "rct-abstracts" / "abstracts.jsonl")
    yield "rct-abstracts", [" ".join(part["text"] for part in row["contexts"]) for row in abstracts]
    yield "mediqa-2021", [row["Answer"] for row in rows(data / "mediqa-2021" / "answer_summaries.jsonl")]
    yield (
        "liveqa answers",
        [
            " ".join(found.itertext()).strip()
            for path in sorted((data / "liveqa").glob("*/*.xml"))
            for found in ET.parse(path).getroot().iter()
            if found.tag.upper() == "ANSWER"
        ],
    )
    yield "citation-integrity", [row["evidence"] for row in rows(data / "citation-integrity" / "test.jsonl")]
    yield (
        "medquad",
        [
            " ".join(found.itertext()).strip()
            for path in sorted((data / "medquad").glob("*/*.xml"))[::10]
            for found in ET.parse(path).getroot().iter("Answer")
        ],
    )
    yield "wikitext-2", (data / "wikitext-2" / "test.txt").read_text(encoding="utf-8").splitlines()


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def passages(text: str) -> Iterator[str]:
    """Yield a text's passages of whole sentences."""
    part: list[str] = []
    for sentence in sentences(" ".join(text.split())):
        if part and sum(len(each.split()) for each in part) + len(sentence.split()) > WORDS:
            yield " ".join(part)
            part = []
        part.append(sentence)
    if part and len(" ".join(part).split()) > 5:
        yield " ".join(part)


if __name__ == "__main__":
    main()
