"""What the ratings say: scores of each origin with intervals, tuned against base, agreement, disputes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import meditune
from meditune.evaluate.significance import bootstrap_p, holm
from meditune.files import write_json
from meditune.review.axes import Axis
from meditune.review.bootstrap import Array, interval, resampled
from meditune.review.common import SEED, agreement, disputes, seconds, unfinished
from meditune.review.create import digests
from meditune.review.rated import Rated, read_rated_as
from meditune.review.ratingset import SET, Origin, origin_of, read_set
from meditune.review.tasks import RATE

ORIGINS = ("base", "tuned", "reference")


def read_rated(folder: Path) -> Rated[Origin]:
    """The rating set in `folder` with its ratings. Raises DataError where it isn't whole."""
    return read_rated_as(folder, RATE, origin_of)


def results(folder: Path) -> dict[str, Any]:
    """The content of results.json, as docs/review.md describes it. Raises DataError where there is no whole set."""
    rated = read_rated(folder)
    scores = item_scores(rated)
    axes = {
        axis.name: _axis(axis, rated, {id: each[axis.name] for id, each in scores.items()}) for axis in rated.set.axes
    }
    everything = overall(rated, scores)
    whole = {"origins": _origins(rated.key, everything), "difference": _difference(rated.key, everything)}
    compared = {name: row["difference"] for name, row in axes.items() if row["difference"]}
    for name, p in holm({name: row["p"] for name, row in compared.items()}).items():
        compared[name]["p_holm"] = p
    judged = {rating.item for rating in rated.first}
    return {
        "meditune": meditune.__version__,
        "axes_set": rated.set.axes_name,
        "questions": len({rated.key[id].example for id in judged}),
        "answers": len(judged),
        "raters": len({rating.rater for rating in rated.first}),
        "ratings": len(rated.first),
        "cannot": sum(rating.option is None for rating in rated.first),
        "adjudicated": len({(rating.item, rating.axis) for rating in rated.settled}),
        "seconds_per_answer": seconds(rated.first),
        "overall": whole,
        "axes": axes,
        "disputed": disputes(rated),
        "remarks": _remarks(rated),
    }


def of_run(run: Path) -> dict[str, Any] | None:
    """The results of the rating set inside a run's folder; None where there is none, or nothing was rated yet."""
    folder = run / "review"
    if not (folder / SET).is_file() or read_set(folder).task is not RATE:
        return None
    found = results(folder)
    return found if found["ratings"] else None


def write_results(folder: Path) -> dict[str, Any]:
    """The results, stored as results.json and results.html in the set's folder too."""
    from meditune.evaluate.report.review import render_review

    found = results(folder)
    write_json(folder / "results.json", found)
    render_review(found, folder / "results.html")
    return found


def item_scores(rated: Rated[Origin]) -> dict[str, dict[str, float | None]]:
    """Item -> axis -> its score, 0 to 100: of the adjudicators where there are any, else the raters' mean."""
    words: dict[tuple[str, str], list[float]] = defaultdict(list)
    settled = {(rating.item, rating.axis) for rating in rated.settled if rating.option is not None}
    for rating in (*rated.settled, *(each for each in rated.first if (each.item, each.axis) not in settled)):
        axis = rated.set.axis(rating.axis)
        score = axis.score(rating.option) if axis else None
        if score is not None:
            words[rating.item, rating.axis].append(100 * score)
    names = [axis.name for axis in rated.set.axes]
    return {
        id: {name: sum(words[id, name]) / len(words[id, name]) if words[id, name] else None for name in names}
        for id in rated.key
    }


def overall(rated: Rated[Origin], scores: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """Item -> the mean of its axes' scores; None where some axis has no rating at all."""
    asked = {(rating.item, rating.axis) for rating in (*rated.first, *rated.settled)}
    found: dict[str, float | None] = {}
    for id, by_axis in scores.items():
        given = [score for score in by_axis.values() if score is not None]
        whole = all((id, name) in asked for name in by_axis)
        found[id] = sum(given) / len(given) if given and whole else None
    return found


def _axis(axis: Axis, rated: Rated[Origin], scores: Mapping[str, float | None]) -> dict[str, Any]:
    said = [rating for rating in rated.first if rating.axis == axis.name]
    origins = _origins(rated.key, scores)
    for name, row in origins.items():
        options = Counter(r.option for r in said if name in rated.key[r.item].origins)
        row["counts"] = [options[number] for number in range(1, len(axis.options) + 1)]
        row["cannot"] = options[None]
    return {
        "title": axis.title,
        "question": axis.question,
        "level": axis.level,
        "options": [option.label for option in axis.options],
        "scores": [option.score for option in axis.options],
        "origins": origins,
        "difference": _difference(rated.key, scores),
        "agreement": agreement(axis, said, rated),
    }


def _by_question(key: Mapping[str, Origin], scores: Mapping[str, float | None]) -> dict[str, dict[str, float]]:
    """Origin -> example -> score."""
    found: dict[str, dict[str, float]] = {name: {} for name in ORIGINS}
    for id, score in scores.items():
        for origin in key[id].origins:
            if score is not None:
                found[origin][key[id].example] = score
    return found


def _groups(key: Mapping[str, Origin], examples: Iterable[str]) -> list[str]:
    groups = {row.example: row.group for row in key.values()}
    return [groups[example] for example in examples]


def _origins(key: Mapping[str, Origin], scores: Mapping[str, float | None]) -> dict[str, dict[str, Any]]:
    """Origin -> its mean `score` over questions, `ci95`, and how many `questions` it rests on."""
    rows = {}
    for name, by_example in _by_question(key, scores).items():
        each = np.array([[score, 1.0] for score in by_example.values()]).reshape(-1, 2)
        rows[name] = {
            "questions": len(each),
            "score": float(each[:, 0].mean()) if len(each) else None,
            "ci95": interval(_means(resampled(each, _groups(key, by_example), SEED))) if len(each) else None,
        }
    return rows


def _difference(key: Mapping[str, Origin], scores: Mapping[str, float | None]) -> dict[str, Any] | None:
    """Tuned minus base on the questions on which both were rated; None where there are fewer than two groups of them.

    As in a run's report: `delta`, `ci95`, `p` (paired bootstrap), `better`, `test`, `questions`.
    """
    by_question = _by_question(key, scores)
    base, tuned = by_question["base"], by_question["tuned"]
    both = [example for example in base if example in tuned]
    each = np.array([[tuned[example] - base[example], 1.0] for example in both]).reshape(-1, 2)
    drawn = _means(resampled(each, _groups(key, both), SEED))
    bounds = interval(drawn)
    if bounds is None:
        return None
    return {
        "delta": float(each[:, 0].mean()),
        "ci95": list(bounds),
        "p": bootstrap_p(drawn),
        "better": True if bounds[0] > 0 else False if bounds[1] < 0 else None,
        "test": "paired bootstrap over questions",
        "questions": len(both),
    }


def _means(sums: Array) -> Array:
    return sums[:, 0] / np.where(sums[:, 1], sums[:, 1], np.nan)


def _remarks(rated: Rated[Origin]) -> list[str]:
    """What one must know before one believes the figures."""
    remarks = unfinished(rated)
    run = Path(rated.made_from["run"])
    if (run / "predictions").is_dir() and digests(run) != rated.made_from["answers"]:
        remarks.append(f"The answers in {run} were written anew since: these ratings are of the earlier ones.")
    return sorted(remarks)
