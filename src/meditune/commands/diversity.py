"""`meditune data diversity`: a survey of what prepared data cover, as diversity.json and diversity.html."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from meditune import run
from meditune.data.diversity.clusters import chosen, clusters
from meditune.data.diversity.comparing import compared
from meditune.data.diversity.profile import diversity
from meditune.data.example import Example
from meditune.data.prepare import Prepared, stored
from meditune.errors import ModelError
from meditune.evaluate.report.diversity import render_page
from meditune.files import write_json
from meditune.recipes.loading import load_recipe

FILE = "diversity.json"
SEED = 17


def survey(what: str, output: Path, other: str | None, count: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Survey a recipe's or a run's data and leave diversity.json and diversity.html in `output`.

    A recipe's data are prepared in `output`, as `meditune data prepare` does, unless they are there already; those of
    `other`, what the data were before, in `output/before`. With `count` clusters of questions, where the sentence model
    can be had. Raises DataError and RecipeError as preparing does.
    """
    data = _data(what, output, overrides)
    before = _data(other, output / "before", []) if other else None
    result: dict[str, Any] = {"of": what, "sha256": data.sha256, "synthetic": data.synthetic} | diversity(data.splits)
    if before:
        result["compared"] = {"with": other} | compared(before.splits.train, data.splits.train, SEED)
    if count:
        sets: dict[str, Sequence[Example]] = {"train": data.splits.train, "test": data.splits.test}
        if before:
            sets = {"before": before.splits.train, "after": data.splits.train}
        found = _clusters(sets, count)
        if found:
            result["clusters"] = found
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / FILE, result)
    render_page(result, output / "diversity.html")
    return result


def said(result: dict[str, Any]) -> Iterator[str]:
    """The survey in a few lines for the terminal."""
    train = result["splits"]["train"]
    yield f"{train['examples']:,} training examples."
    for name, dimension in train["dimensions"].items():
        if dimension["distinct"] > 1 and name not in ("people", "reading_grade", "answer_length", "question_length"):
            top = max(dimension["groups"], key=lambda row: row["count"])
            yield (
                f"{name.replace('_', ' ')}: {dimension['distinct']:,} groups, effective number "
                f"{dimension['shannon']:,.1f}; most often {top['group']} ({top['share']:.0f} %)"
            )
    for name, source in result["sources"].items():
        if "reading_grade" in source:
            yield f"{name}: {source['examples']:,} examples, median reading grade {source['reading_grade']['median']}"
    if "clusters" in result:
        found = result["clusters"]
        yield (
            f"{len(found['clusters'])} clusters of questions count for {found['effective']:.1f}; largest: "
            f"{found['clusters'][0]['name']}"
        )
    for remark in result["remarks"]:
        yield f"! {remark['said']} {remark['advice']}"


def _data(what: str, output: Path, overrides: Sequence[str]) -> Prepared:
    for folder in (Path(what) / "data", Path(what)):
        if (folder / "quality.json").is_file():
            return stored(folder)
    return run.prepare_only(load_recipe(what, list(overrides)).recipe, output)


def _clusters(sets: dict[str, Sequence[Example]], count: int) -> dict[str, Any] | None:
    from meditune.models.embedding import embed

    try:
        return clusters(chosen(sets, SEED), lambda texts: embed(texts, "Questions as vectors"), count, SEED)
    except ModelError as error:
        print(f"Clusters are left out: {error}", file=sys.stderr)
        return None
