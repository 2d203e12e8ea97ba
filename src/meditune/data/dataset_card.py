"""The dataset card of the prepared splits: https://huggingface.co/docs/hub/datasets-cards.

The card's YAML header makes `datasets.load_dataset(FOLDER)` read the three splits and no other files in the folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from meditune.config.recipe import Recipe
from meditune.data.read_sources import Terms, restricted, warning
from meditune.data.sources import NO_ADVICE, SOURCES, hub_names, licence_named, licence_requirements

SPLITS = {"train": "train", "validation": "dev", "test": "test"}
"""Name of a split on the hub -> name of the split's file, without extension"""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LARGEST_SIZE = "n>1M"
SYNTHETIC = "Synthetic sample: every study is invented. Metrics measured on this sample say nothing about medicine."

IDENTIFIERS = {
    "report": "THEY WERE LEFT IN THE TEXT.",
    "mask": "They were replaced by placeholders. The rules don't find all identifiers.",
    "surrogate": "They were replaced by invented identifiers. The rules don't find all identifiers.",
    "refuse": "Data with identifiers are rejected.",
}


def dataset_card(recipe: Recipe, quality: dict[str, Any]) -> str:
    """Return the card as Markdown with the hub's YAML header."""
    terms = quality["terms"]
    body = _template().render(
        recipe=recipe,
        quality=quality,
        synthetic=SYNTHETIC,
        invented=synthetic_rows(terms),
        warning=warning(terms),
        splits=SPLITS,
        sources=SOURCES,
        requirements=licence_requirements(terms),
        no_advice=NO_ADVICE,
        identifiers=identifiers(quality),
    )
    head = yaml.safe_dump(_head(recipe, quality), sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{head}---\n\n" + re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": "{:,}".format, "counts": _counts}
    return environment.get_template("dataset_card.md.j2")


def synthetic_rows(terms: Terms) -> int:
    """Return the number of synthetic rows."""
    return sum(row["synthetic"] for row in terms.values())


def _head(recipe: Recipe, quality: dict[str, Any]) -> dict[str, Any]:
    terms, rows = quality["terms"], sum(row["examples"] for row in quality["splits"].values())
    texts = [text for row in terms.values() for text in row["licences"]]
    names = hub_names(texts)
    decided = any(row["decisions"] for row in quality["splits"].values())
    head: dict[str, Any] = {"license": names[0] if len(names) == 1 else names}
    if names == ["other"]:
        licence = licence_named(texts[0])
        head |= {"license_name": texts[0]} | ({"license_link": licence.link} if licence else {})
    if all(name in SOURCES for name in terms):
        head["language"] = ["en"]
    return head | {
        "pretty_name": f"Meditune data of the run {recipe.name}",
        "size_categories": [next((name for below, name in SIZES if rows < below), LARGEST_SIZE)],
        "task_categories": ["question-answering", "text-generation", *(["text-classification"] if decided else [])],
        "tags": [
            *("medical", "meditune"),
            *(["synthetic"] if quality["synthetic"] or synthetic_rows(terms) else []),
            *(["restricted"] if restricted(terms) else []),
        ],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{file}.jsonl"} for split, file in SPLITS.items()],
            }
        ],
    }


def identifiers(quality: dict[str, Any]) -> str:
    """Return sentences about the search for identifiers: engine, examples with identifiers, and the action taken."""
    phi = quality["phi"]
    if phi["action"] == "off":
        return "The data were not searched for identifiers of people (names, dates, numbers and so on)."
    found = ", ".join(
        f"{row['with_identifiers']:,} of {row['examples']:,} examples of {name}"
        for name, row in phi["sources"].items()
        if row["with_identifiers"]
    )
    done = IDENTIFIERS[phi["action"]] if found else "The rules don't find all identifiers."
    return (
        f"The engine {phi['engine']} searched for identifiers of people and found them in {found or 'no example'}. "
        f"{done}"
    )


def _counts(counts: Mapping[str, int], separator: str) -> str:
    return ", ".join(f"{count:,}{separator}{name}" for name, count in counts.items())
