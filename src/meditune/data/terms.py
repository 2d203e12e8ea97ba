"""Under which terms each row stands: licence, where it comes from, whether it is restricted or invented."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from meditune.data import licences
from meditune.data.example import Example
from meditune.data.restrictions import is_restricted
from meditune.data.sources import SOURCES
from meditune.recipe import SourceSpec

YOURS = "yours"
"""The licence of a user's own rows where neither they nor the recipe say another."""

Terms = dict[str, dict[str, Any]]
"""Source -> `rows`, `licences` (text -> rows), `citations`, `restricted` and `synthetic` (rows)"""


def marked(examples: Iterable[Example], spec: SourceSpec) -> Iterator[Example]:
    """The examples with the terms that the recipe states for their source, and a place to cite where they have none.

    What a row's own columns say of its licence stands above the recipe; that rows are restricted, either may say.
    """
    homepage = SOURCES[spec.name].homepage if spec.name in SOURCES else ""
    for example in examples:
        said: dict[str, Any] = {}
        if spec.licence and (spec.name != "own" or not example.meta.get("licence")):
            said["licence"] = spec.licence
        if spec.citation or (homepage and not example.meta.get("url")):
            said["citation"] = spec.citation or homepage
        if spec.restricted and not is_restricted(example):
            said["restricted"] = True
        yield example.model_copy(update={"meta": example.meta | said}) if said else example


def terms_of(examples: Iterable[Example]) -> Terms:
    """The terms of prepared examples, by source, as their rows say."""
    found: Terms = {}
    for example in examples:
        row = found.setdefault(
            example.source, {"rows": 0, "licences": Counter(), "citations": set(), "restricted": 0, "synthetic": 0}
        )
        row["rows"] += 1
        row["licences"][str(example.meta.get("licence") or YOURS)] += 1
        row["restricted"] += is_restricted(example)
        row["synthetic"] += bool(example.meta.get("synthetic"))
        if example.source not in SOURCES and example.meta.get("citation"):
            row["citations"].add(str(example.meta["citation"]))
    for name, row in found.items():
        known = [SOURCES[name].citation] if name in SOURCES and SOURCES[name].citation else []
        row["licences"] = dict(row["licences"].most_common())
        row["citations"] = known or sorted(row["citations"])[:20]
    return dict(sorted(found.items()))


def demands(terms: Terms) -> list[str]:
    """What the licences ask for together, as sentences."""
    return licences.demands({name: row["licences"] for name, row in terms.items()})


def restricted(terms: Terms) -> dict[str, int]:
    """Source -> restricted rows, where there are any."""
    return {name: row["restricted"] for name, row in terms.items() if row["restricted"]}


def warning(terms: Terms) -> str:
    """That the set is restricted, in words; empty where it isn't."""
    found = restricted(terms)
    if not found:
        return ""
    named = ", ".join(f"{rows:,} rows of {name} ({', '.join(terms[name]['licences'])})" for name, rows in found.items())
    return (
        f"RESTRICTED: {named}. The whole set, what is made of it and models tuned on it can give these rows away: "
        "don't share them, and don't send them to an online service. Meditune won't upload it or send it to an API."
    )
