"""The data-set card of the prepared splits, in the format of the Hugging Face hub.

Its YAML header follows https://huggingface.co/docs/hub/datasets-cards, so that `datasets.load_dataset(FOLDER)` reads
the three splits and no other files in the folder.
"""

from __future__ import annotations

from typing import Any

import yaml

from meditune.config.recipe import Recipe
from meditune.data import sources
from meditune.data.read_sources import Terms, demands, restricted, warning
from meditune.data.sources import SOURCES

SPLITS = {"train": "train", "validation": "dev", "test": "test"}
"""Name of a split on the hub -> name of its file"""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LARGEST = "n>1M"
SYNTHETIC = "Synthetic sample: every study is invented. No metric measured on it is about medicine."

LIMITS = {
    "pubmedqa": "the questions are titles of published studies, each answered from one abstract.",
    "medquad": "answers as collected from US public websites; three MedlinePlus collections come without answers.",
    "liveqa": "few questions; the publisher's training files repeat some of the test questions.",
    "mimic": "notes from the intensive care units of one US hospital, 2001 to 2012; note sections serve as answers.",
    "sample": "invented studies; no metric measured on them is about medicine.",
}
PERSONAL = {
    "pubmedqa": "published abstracts; they describe groups of patients.",
    "medquad": "web pages for the public; they describe diseases and medicines.",
    "liveqa": "questions that people sent to the US National Library of Medicine, in their own words.",
    "mimic": "notes about real patients, de-identified by the publisher, which is never perfect; trying to identify "
    "anyone is forbidden.",
    "sample": "none; every person and study is invented.",
}
IDENTIFIERS = {
    "report": "THEY WERE LEFT IN THE TEXT.",
    "mask": "They were replaced by placeholders; the rules don't find all of them.",
    "surrogate": "They were replaced by invented ones; the rules don't find all of them.",
    "refuse": "Data with identifiers are rejected.",
}
OWN_PERSONAL = "files supplied by the person who prepared the set; only they can say whether people can be identified."


def dataset_card(recipe: Recipe, quality: dict[str, Any]) -> str:
    """Return Markdown with the hub's YAML header: content, sources, preparation, limits and intended use."""
    head = yaml.safe_dump(_head(recipe, quality), sort_keys=False, allow_unicode=True, width=120)
    sections = [
        f"# Data of the run {recipe.name}",
        *_warnings(quality),
        _contents(quality),
        "## Sources, licences and citation",
        *_sources(quality),
        "## How it was made",
        *_making(recipe, quality),
        *_rebalanced(quality),
        *_styles(quality),
        "## Quality control",
        *_control(quality),
        "## Limits",
        *_limits(quality),
        "## Personal data",
        *_personal(quality),
        "## Intended use",
        "For tuning and evaluating models that answer medical questions, in research and development. Not for "
        "advising patients: neither the rows nor a model tuned on them replace a clinician.",
    ]
    return f"---\n{head}---\n\n" + "\n\n".join(sections) + "\n"


def synthetic_rows(terms: Terms) -> int:
    """Return the number of synthetic rows."""
    return sum(row["synthetic"] for row in terms.values())


def _head(recipe: Recipe, quality: dict[str, Any]) -> dict[str, Any]:
    terms, rows = quality["terms"], sum(row["examples"] for row in quality["splits"].values())
    names = sources.hub_names(text for row in terms.values() for text in row["licences"])
    decided = any(row["decisions"] for row in quality["splits"].values())
    head: dict[str, Any] = {"license": names[0] if len(names) == 1 else names}
    if names == ["other"]:
        text = next(text for row in terms.values() for text in row["licences"])
        named = sources.licence_named(text)
        head |= {"license_name": text} | ({"license_link": named.link} if named else {})
    if all(name in SOURCES for name in terms):
        head["language"] = ["en"]
    return head | {
        "pretty_name": f"Meditune data of the run {recipe.name}",
        "size_categories": [next((name for below, name in SIZES if rows < below), LARGEST)],
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


def _warnings(quality: dict[str, Any]) -> list[str]:
    lines = []
    invented = synthetic_rows(quality["terms"])
    if quality["synthetic"]:
        lines.append(f"**{SYNTHETIC}**")
    elif invented:
        lines.append(f"**{invented:,} of the rows are synthetic (invented); their `meta` marks them as `synthetic`.**")
    if warning(quality["terms"]):
        lines.append(f"**{warning(quality['terms'])}**")
    return lines


def _contents(quality: dict[str, Any]) -> str:
    lines = ["| split | file | examples | groups | yes / no / maybe |", "|---|---|---|---|---|"]
    for split, name in SPLITS.items():
        row = quality["splits"][name]
        decisions = " / ".join(str(row["decisions"].get(label, 0)) for label in ("yes", "no", "maybe"))
        lines.append(f"| {split} | {name}.jsonl | {row['examples']:,} | {row['groups']:,} | {decisions} |")
    return "\n".join(lines)


def _sources(quality: dict[str, Any]) -> list[str]:
    table = ["| source | licence | read | rejected |", "|---|---|---|---|"]
    for name, row in quality["sources"].items():
        title = SOURCES[name].title if name in SOURCES else "your own files"
        terms = quality["terms"].get(name, {})
        licence = ", ".join(terms.get("licences", {})) or row["licence"]
        table.append(f"| {name}: {title} | {licence} | {row['read']:,} | {sum(row['rejected'].values()):,} |")
    cited = [f"- {name}: {citation}" for name, row in quality["terms"].items() for citation in row["citations"]]
    asked = [f"- {sentence}" for sentence in demands(quality["terms"])]
    return [
        "\n".join(table),
        "Each row names its source and, in `meta`, its licence and its `url` or `citation`.",
        *(["Please cite:", "\n".join(cited)] if cited else []),
        *(["Combined requirements of the licences:", "\n".join(asked), sources.NO_ADVICE] if asked else []),
    ]


def _making(recipe: Recipe, quality: dict[str, Any]) -> list[str]:
    how = (
        "by the publishers' test sets where they exist, otherwise by group"
        if recipe.data.split == "official"
        else (f"by group: {recipe.data.split}")
    )
    return [
        f"Made by `meditune data prepare` from the recipe {recipe.name}: the source files were read, unusable "
        f"rows rejected, exact duplicates dropped, and the rest split ({how}; seed {recipe.seed}; development "
        f"share {recipe.data.dev_share}). No group (a PubMed id, a topic, a patient) is in two splits.",
        f"Test set: {quality['test_set']}. {_leakage(quality)}",
    ]


def _control(quality: dict[str, Any]) -> list[str]:
    refused = [
        f"- {name}: {count:,} {reason}"
        for name, row in quality["sources"].items()
        for reason, count in row["rejected"].items()
    ]
    return [
        *_audit(quality),
        f"Questions asked more than once: {quality['repeated_questions']}. Every row that was dropped, changed or "
        "flagged is in `ledger.parquet`; rejected rows, with the reasons, are in `rejected.jsonl`. Both files stay "
        "where the set was prepared.",
        "Rejected or left out during reading:\n\n" + "\n".join(refused) if refused else "No row was rejected.",
        *_decided(quality),
    ]


def _audit(quality: dict[str, Any]) -> list[str]:
    """Return the findings of quality control and the overlap of the splits."""
    audit = quality["audit"]
    rows = [
        f"| {name.replace('_', ' ')} | {row['rows']:,} | {row['share']:.1%} | "
        f"{', '.join(f'{count:,} {action}' for action, count in row['done'].items())} |"
        for name, row in audit["rules"].items()
        if row["rows"]
    ]
    shared = {
        trait: sum(pair[trait] for pair in quality["shared"].values()) for trait in ("ids", "groups", "questions")
    }
    return [
        f"Quality control checked {audit['rows']:,} rows, dropped {audit['dropped']:,} and changed "
        f"{audit['changed']:,}. Shared by two splits: "
        f"{', '.join(f'{count:,} {trait}' for trait, count in shared.items())}.",
        *(["\n".join(["| rule | rows | share | actions |", "|---|---|---|---|", *rows])] if rows else []),
    ]


def _decided(quality: dict[str, Any]) -> list[str]:
    if "decisions" not in quality:
        return []
    done = ", ".join(f"{action} {count:,}" for action, count in quality["decisions"]["actions"].items())
    return [f"People reviewed rows of train and dev: {done}. Each decision is in `ledger.parquet`."]


def _limits(quality: dict[str, Any]) -> list[str]:
    notes = [f"- {name}: {LIMITS[name]}" for name in quality["terms"] if name in LIMITS]
    return [
        "The texts are as old as their sources and don't apply to any individual patient. Meditune doesn't check "
        "whether they are medically correct.",
        *(["\n".join(notes)] if notes else []),
    ]


def _personal(quality: dict[str, Any]) -> list[str]:
    notes = [f"- {name}: {PERSONAL.get(name, OWN_PERSONAL)}" for name in quality["terms"]]
    return ["\n".join(notes), identifiers(quality)]


def identifiers(quality: dict[str, Any]) -> str:
    """Return a sentence on the search for identifiers: engine, examples with identifiers, and the action taken."""
    looked = quality["phi"]
    if looked["action"] == "off":
        return "The data were not searched for identifiers of people (names, dates, numbers and so on)."
    found = ", ".join(
        f"{row['with_identifiers']:,} of {row['examples']:,} examples of {name}"
        for name, row in looked["sources"].items()
        if row["with_identifiers"]
    )
    done = IDENTIFIERS[looked["action"]] if found else "The rules don't find all of them."
    where = found or "no example"
    return f"The engine {looked['engine']} searched for identifiers of people and found them in {where}. {done}"


def _rebalanced(quality: dict[str, Any]) -> list[str]:
    found = quality.get("rebalanced")
    if not found:
        return []
    rules = "; ".join(
        f"{rule} ({', '.join(f'{count:,} of {source}' for source, count in by_source.items())})"
        for rule, by_source in found["rules"].items()
    )
    sizes = f"{found['before']:,} to {found['after']:,}"
    return [f"The training split was rebalanced from {sizes} examples: {rules}."]


def _styles(quality: dict[str, Any]) -> list[str]:
    counts = quality.get("styles", {}).get("train")
    if not counts:
        return []
    plain, whole = counts.get("plain", 0), sum(counts.values())
    return [
        f"Of the {whole:,} training answers from sources with two styles, {plain:,} are in plain words by their "
        "reading grade. Evaluation items from these sources ask for plain words, even if the reference is hard."
    ]


def _leakage(quality: dict[str, Any]) -> str:
    found = {kind: row["items"] for kind, row in quality["leakage"]["found"].items()}
    if found:
        named = ", ".join(f"{kind} ({items})" for kind, items in found.items())
        return f"**Leakage was found and allowed by the recipe: {named}.**"
    split = quality["leakage"]["split"]
    return f"No group, question or context of the {split} items, or a near duplicate of one, is in the training data."
