"""The results of ratings: scores with intervals, tuned against base, agreement, disputes, preference pairs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import meditune
from meditune.data.preference_pairs import OWN, SOURCE, Pair, paired
from meditune.data.preference_pairs import Rated as RatedAnswer
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError
from meditune.files import write_json, write_jsonl
from meditune.review.agreement import Dispute, cohen, counted, disputed, fleiss, krippendorff
from meditune.review.rating_set import RATE, SET, Axis, Origin, RatingSet, Task, digests, read_key, read_set
from meditune.review.ratings_store import ADJUDICATION, RATING, Note, Rater, Rating, Store
from meditune.statistics import (
    FEW_GROUPS,
    LEVEL,
    MIN_GROUPS,
    RESAMPLES,
    AnyArray,
    better,
    bootstrap_p,
    by_cluster,
    clusters_of,
    holm,
    percentile_interval,
    permutation_p,
    random_swaps,
    resampled,
)


@dataclass(frozen=True)
class RatedSet:
    """A rating set with its key, and the ratings and notes on its items."""

    set: RatingSet
    key: dict[str, Origin]
    made_from: dict[str, Any]
    raters: dict[str, Rater]
    first: list[Rating]
    settled: list[Rating]
    notes: list[Note]

    def without(self, raters: Container[str]) -> RatedSet:
        """Return the set without the first-round ratings and notes of these raters (ids)."""
        return replace(
            self,
            first=[rating for rating in self.first if rating.rater not in raters],
            notes=[note for note in self.notes if note.round == ADJUDICATION or note.rater not in raters],
        )


def read_rated(folder: Path, task: Task = RATE) -> RatedSet:
    """Return the set in `folder` with its ratings. Raises DataError if the set is incomplete or of another task."""
    rating_set, (key, made_from) = read_set(folder, task), read_key(folder)
    store = Store(folder)
    ratings = [each for each in store.ratings() if each.item in key and rating_set.axis(each.axis)]
    first, settled = ([each for each in ratings if each.round == number] for number in (RATING, ADJUDICATION))
    notes = [note for note in store.notes() if note.item in key]
    return RatedSet(rating_set, key, made_from, store.raters(), first, settled, notes)


SEED = 17


def agreement(axis: Axis, ratings: Sequence[Rating], rated: RatedSet) -> dict[str, Any]:
    """Return `alpha`, `fleiss` (on items with the most common number of raters) and `cohen` (for pairs of raters)."""
    raters = [id for id in rated.raters if any(rating.rater == id for rating in ratings)]
    items = list(dict.fromkeys(rating.item for rating in ratings))
    table = np.full((len(items), len(raters)), np.nan)
    rows, columns = {id: n for n, id in enumerate(items)}, {id: n for n, id in enumerate(raters)}
    for rating in ratings:
        if rating.option is not None:
            table[rows[rating.item], columns[rating.rater]] = rating.option
    options, groups = len(axis.options), [rated.key[item].group for item in items]
    counts = counted(table, options)
    per_item = counts.sum(axis=1)
    several = Counter(per_item[per_item >= 2].tolist())
    number = max(several, key=lambda n: (several[n], n)) if several else 0
    chosen = [n for n in range(len(items)) if number and per_item[n] == number]
    weights = "linear" if axis.level == "ordinal" else "none"
    pairs = []
    for a, b in combinations(range(len(raters)), 2):
        kappa = cohen(table[:, [a, b]], options, axis.level, groups, SEED)
        if kappa["items"]:
            pairs.append({"raters": [rated.raters[raters[each]].code for each in (a, b)], "weights": weights} | kappa)
    fleiss_kappa = fleiss(counts[chosen], [groups[n] for n in chosen], SEED)
    return {
        "alpha": {"level": axis.level} | krippendorff(table, options, axis.level, groups, SEED),
        "fleiss": {"raters": int(number)} | fleiss_kappa if chosen else None,
        "cohen": pairs,
    }


def seconds(ratings: Iterable[Rating]) -> float | None:
    """Return the median number of seconds that a rater spent on an answer; None if no times are known."""
    spent: dict[tuple[str, str], float] = defaultdict(float)
    for rating in ratings:
        spent[rating.rater, rating.item] += rating.seconds
    times = [seconds for seconds in spent.values() if seconds]
    return round(median(times), 1) if times else None


def in_dispute(rated: RatedSet) -> list[Dispute]:
    """Return the disputed items, the most disputed first."""
    return disputed(rated.set.axes, rated.first, rated.notes if rated.set.task.edits else ())


def disputes(rated: RatedSet) -> list[dict[str, Any]]:
    """Return the disputes with labels instead of numbers."""
    rows = []
    for each in in_dispute(rated):
        item = rated.set.items[each.item]
        votes = {
            axis.title: {axis.label(option): count for option, count in sorted(each.votes[axis.name].items())}
            for axis in rated.set.axes
            if axis.name in each.votes
        }
        row = {"item": item.id, "distance": each.distance, "question": item.shown_question(), "answer": item.answer}
        rows.append(row | {"votes": votes})
    return rows


def unfinished(rated: RatedSet) -> list[str]:
    """Return a remark for each rater who started but hasn't finished."""
    remarks = []
    for id in dict.fromkeys(rating.rater for rating in rated.first):
        rater = rated.raters[id]
        asked = {(item, axis) for item in rated.set.work(rater.place or 0) for axis in rated.set.axes_of(item)}
        done = len({(rating.item, rating.axis) for rating in rated.first if rating.rater == id} & asked)
        if done < len(asked):
            remarks.append(f"{rater.code} gave {done} of {len(asked)} ratings.")
    return remarks


ORIGINS = ("base", "tuned", "reference")


def results(folder: Path) -> dict[str, Any]:
    """Return the content of results.json, described in docs/how-to/rate-answers.md.

    Raises DataError if the set in `folder` is incomplete or damaged, or belongs to another task.
    """
    rated = read_rated(folder)
    scores = item_scores(rated)
    axes = {
        axis.name: _axis(axis, rated, {id: each[axis.name] for id, each in scores.items()}) for axis in rated.set.axes
    }
    everything = overall(rated, scores)
    compared = {name: row["difference"] for name, row in axes.items() if row["difference"]}
    for name, p in holm({name: row["p"] for name, row in compared.items()}).items():
        compared[name]["p_holm"] = p
    judged = {rating.item for rating in rated.first}
    return {
        "meditune": meditune.__version__,
        "axes_set": rated.set.settings.axes,
        "questions": len({rated.key[id].example for id in judged}),
        "answers": len(judged),
        "raters": len({rating.rater for rating in rated.first}),
        "ratings": len(rated.first),
        "cannot": sum(rating.option is None for rating in rated.first),
        "adjudicated": len({(rating.item, rating.axis) for rating in rated.settled if rating.option is not None}),
        "seconds_per_answer": seconds(rated.first),
        "overall": {"origins": _origins(rated.key, everything), "difference": _difference(rated.key, everything)},
        "axes": axes,
        "disputed": disputes(rated),
        "remarks": _remarks(rated),
    }


def of_run(run: Path) -> dict[str, Any] | None:
    """Return the results of the rating set inside a run's folder; None if there is none or nothing was rated yet."""
    folder = run / "review"
    if not (folder / SET).is_file() or read_set(folder).task is not RATE:
        return None
    found = results(folder)
    return found if found["ratings"] else None


def write_results(folder: Path) -> dict[str, Any]:
    """Store the results as results.json and results.html in the set's folder, and return them."""
    from meditune.evaluate.report.data_sections import render_review

    found = results(folder)
    write_json(folder / "results.json", found)
    render_review(found, folder / "results.html")
    return found


def item_scores(rated: RatedSet) -> dict[str, dict[str, float | None]]:
    """Return item -> axis -> mean score, 0 to 100, of the adjudicators if there are any, otherwise of the raters."""
    given: dict[tuple[str, str], list[float]] = defaultdict(list)
    settled = {(rating.item, rating.axis) for rating in rated.settled if rating.option is not None}
    for rating in (*rated.settled, *(each for each in rated.first if (each.item, each.axis) not in settled)):
        axis = rated.set.axis(rating.axis)
        score = axis.score(rating.option) if axis else None
        if score is not None:
            given[rating.item, rating.axis].append(100 * score)
    axes = [axis.name for axis in rated.set.axes]
    return {id: {name: _mean(given[id, name]) for name in axes} for id in rated.key}


def _mean(scores: Sequence[float]) -> float | None:
    return sum(scores) / len(scores) if scores else None


def overall(rated: RatedSet, scores: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """Return item -> mean of its axes' scores; None if an axis has no rating at all."""
    asked = {(rating.item, rating.axis) for rating in (*rated.first, *rated.settled)}
    return {
        id: _mean([score for score in by_axis.values() if score is not None])
        if all((id, name) in asked for name in by_axis)
        else None
        for id, by_axis in scores.items()
    }


def _axis(axis: Axis, rated: RatedSet, scores: Mapping[str, float | None]) -> dict[str, Any]:
    ratings = [rating for rating in rated.first if rating.axis == axis.name]
    origins = _origins(rated.key, scores)
    for name, row in origins.items():
        options = Counter(r.option for r in ratings if name in rated.key[r.item].origins)
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
        "agreement": agreement(axis, ratings, rated),
    }


def _by_question(key: Mapping[str, Origin], scores: Mapping[str, float | None]) -> dict[str, dict[str, float]]:
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
    """Return, for each origin, its mean `score` over questions, `ci95`, and the number of `questions`."""
    rows = {}
    for name, by_example in _by_question(key, scores).items():
        each = np.array([[score, 1.0] for score in by_example.values()]).reshape(-1, 2)
        rows[name] = {
            "questions": len(each),
            "score": float(each[:, 0].mean()) if len(each) else None,
            "ci95": percentile_interval(_means(resampled(each, _groups(key, by_example), SEED))) if len(each) else None,
        }
    return rows


def _difference(key: Mapping[str, Origin], scores: Mapping[str, float | None]) -> dict[str, Any] | None:
    """Return the difference (tuned - base) on questions with scores for both; None if it is undefined.

    With fewer than MIN_GROUPS groups of questions, no difference is significant, and with fewer than FEW_GROUPS, p
    comes from a permutation test, as in `compare`.
    """
    by_question = _by_question(key, scores)
    base, tuned = by_question["base"], by_question["tuned"]
    both = [example for example in base if example in tuned]
    each = np.array([[tuned[example] - base[example], 1.0] for example in both]).reshape(-1, 2)
    groups = _groups(key, both)
    drawn = _means(resampled(each, groups, SEED))
    bounds = percentile_interval(drawn)
    if bounds is None:
        return None
    count, p, test = len(set(groups)), bootstrap_p(drawn), "paired bootstrap over questions"
    if MIN_GROUPS <= count < FEW_GROUPS:
        sums, swaps = by_cluster(each, clusters_of(groups)), random_swaps(count, RESAMPLES, SEED)
        p, test = permutation_p(np.zeros_like(sums), sums, lambda drawn: drawn[..., 0], swaps), "paired permutation"
    significant = count >= FEW_GROUPS or (count >= MIN_GROUPS and p < LEVEL)
    return {
        "delta": float(each[:, 0].mean()),
        "ci95": bounds,
        "p": p if count >= MIN_GROUPS else 1.0,
        "better": better(bounds[0], bounds[1]) if significant else None,
        "test": test,
        "questions": len(both),
        "groups": count,
    }


def _means(sums: AnyArray) -> AnyArray:
    return sums[:, 0] / np.where(sums[:, 1], sums[:, 1], np.nan)


def _remarks(rated: RatedSet) -> list[str]:
    remarks = unfinished(rated)
    run = Path(rated.made_from["run"])
    if (run / "predictions").is_dir() and (now := digests(run)) != (earlier := rated.made_from["answers"]):
        what = "generated again" if now.keys() == earlier.keys() else "removed"
        remarks.append(f"The answers in {run} were {what} later; these ratings are for the earlier answers.")
    return sorted(remarks)


@dataclass(frozen=True)
class PairSummary:
    """The numbers of pairs written from ratings and from corrections, and of pairs left out, by reason."""

    rated: int
    corrected: int
    left_out: dict[str, int]


def write_pairs(folder: Path, path: Path, margin: float, per_question: int) -> PairSummary:
    """Write pairs for train.preference.path; `margin` is on a 1-to-5 scale. Raises DataError if there are no pairs."""
    rated = read_rated(folder)
    scores = overall(rated, item_scores(rated))
    answers = list(_answers(rated, scores))
    rejects = Rejects()
    pairs = paired(answers, SEED, rejects, margin, per_question)
    corrected = list(_corrected(rated, Store(folder).notes(), rejects))
    left_out = rejects.counts().get(SOURCE, {})
    if not pairs and not corrected:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "no item was rated on all axes"
        raise DataError(f"{folder}: its ratings give no pairs ({why}). Lower --margin, or rate more answers.")
    # The reader of the file adds the ids' prefix again, and determines the kind of each pair.
    rows = (pair.model_dump(mode="json", exclude={"kind"}) for pair in (*pairs, *corrected))
    write_jsonl(path, (row | {"id": row["id"].removeprefix(f"{SOURCE}:")} for row in rows), private=True)
    return PairSummary(len(pairs), len(corrected), left_out)


def _answers(rated: RatedSet, scores: Mapping[str, float | None]) -> Iterator[RatedAnswer]:
    for id, item in rated.set.items.items():
        score = scores.get(id)
        if score is not None and item.answer:
            rating, terms = 1 + 4 * score / 100, _terms(rated.key[id])
            turns = item.turns or None
            yield RatedAnswer(id, id, item.question, item.context, item.answer, rating=rating, turns=turns, **terms)


def _corrected(rated: RatedSet, notes: Iterable[Note], rejects: Rejects) -> Iterator[Pair]:
    for number, note in enumerate(notes, start=1):
        item, better = rated.set.items.get(note.item), note.better.strip()
        if item is None or not better:
            continue
        if not item.answer or " ".join(better.split()) == " ".join(item.answer.split()):
            reason = "better answers for unanswered items" if not item.answer else "better answers that change nothing"
            rejects.count_only(SOURCE, reason, 1)
            continue
        yield Pair(
            id=f"{SOURCE}:{item.id}-corrected-{number}",
            question=item.question,
            context=item.context,
            chosen=better,
            rejected=item.answer,
            turns=item.turns or None,
            kind=OWN,
            **_terms(rated.key[item.id]),
        )


def _terms(origin: Origin) -> dict[str, Any]:
    source, _, group = origin.group.partition("/")
    return {"source": source, "group": group, "restricted": origin.restricted}
