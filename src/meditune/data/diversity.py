"""Coverage and diversity of examples in several dimensions, and clusters of the examples' questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, log
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meditune.data.example import DECISIONS, PEOPLE, TRAITS, WORDS, Example, people_mentioned, texts
from meditune.data.read_sources import is_restricted
from meditune.data.splits import Splits, sample
from meditune.readability import TARGET, counted
from meditune.statistics import wilson

Groups = Callable[[Example], Sequence[str] | set[str]]
GRADES = ("below grade 6", "grade 6 to 8", "above 8, up to 12", "above 12, up to 16", "above grade 16")
"""The second band is readability.TARGET, including both limits"""
LENGTHS = ((25, "up to 24 words"), (75, "25 to 74 words"), (150, "75 to 149 words"), (300, "150 to 299 words"))
LONGEST = "300 words and more"


@dataclass(frozen=True)
class Dimension:
    """A way to group examples."""

    name: str
    title: str
    groups: Groups
    kind: Literal["one", "several", "ordered"] = "one"
    """`several`: an example may be in more than one group; `ordered`: the groups are listed as in `order`"""
    order: tuple[str, ...] = ()
    compared: bool = True
    """True if training and test data should be similar in this dimension; foci and headings differ by design"""


def focus(example: Example) -> list[str]:
    """Return the topics that the source names for the example, in lowercase and without repetitions."""
    named = (" ".join(text.casefold().split()) for text in texts(example.meta.get("focus")) if text.strip())
    return list(dict.fromkeys(named))


@lru_cache(maxsize=65536)
def grade(answer: str) -> float | None:
    """Return the Flesch-Kincaid grade of an answer; None if it has no words."""
    counts = counted(answer)
    return counts.grade if counts.words else None


def _grade(example: Example) -> list[str]:
    value, (low, high) = grade(example.answer), TARGET
    return [] if value is None else [GRADES[(value >= low) + (value > high) + (value > 12) + (value > 16)]]


def _length(example: Example) -> list[str]:
    count = len(example.answer.split())
    return [next((name for end, name in LENGTHS if count < end), LONGEST)] if count else []


YEARS = ("before 2000", "2000 to 2004", "2005 to 2009", "2010 to 2014", "2015 and later")
QUESTION_LENGTHS = ("up to 8 words", "9 to 15 words", "16 to 30 words", "more than 30 words")
DIMENSIONS = (
    Dimension("source", "Source", TRAITS["source"]),
    Dimension(
        "collection", "Part of the source", lambda example: list(dict.fromkeys(texts(example.meta.get("collection"))))
    ),
    Dimension("decision", "Decision", TRAITS["reference decision"]),
    Dimension("label", "Label of the claim", lambda example: [example.label] if example.label else []),
    Dimension("question_type", "Question type", TRAITS["question type"], "several"),
    Dimension("focus", "Focus", focus, "several", compared=False),
    Dimension("mesh", "MeSH heading", lambda example: set(texts(example.meta.get("mesh"))), "several", compared=False),
    Dimension("subject", "Subject, by MeSH headings", TRAITS["subject"], "several"),
    Dimension(
        "semantic_type",
        "Semantic type (UMLS)",
        lambda example: list(
            dict.fromkeys(WORDS["semantic_types"].get(each, each) for each in texts(example.meta.get("semantic_type")))
        ),
        "several",
    ),
    Dimension("people", "People mentioned", people_mentioned, "several", PEOPLE),
    Dimension("year", "Year", TRAITS["year"], "ordered", YEARS),
    Dimension("reading_grade", "Reading grade of the answer", _grade, "ordered", GRADES),
    Dimension("answer_length", "Length of the answer", _length, "ordered", (*(name for _, name in LENGTHS), LONGEST)),
    Dimension("question_length", "Length of the question", TRAITS["question length"], "ordered", QUESTION_LENGTHS),
)
BY_NAME = {dimension.name: dimension for dimension in DIMENSIONS}
DRAWS = 20
MAX_GROUPS = 12
"""Maximum number of groups listed for each dimension; the other groups are counted together"""
MAX_COMPARED_GROUPS = 8
"""Maximum number of groups listed for each dimension in a comparison: those whose share changes most"""


def shannon(counts: Mapping[str, float]) -> float:
    """Return the effective number of groups; 0 if there are no groups.

    It is the exponential of the Shannon entropy (Hill 1973, Ecology 54:427-432).
    """
    total = sum(counts.values())
    shares = [count / total for count in counts.values() if count]
    return exp(-sum(share * log(share) for share in shares)) if shares else 0.0


def rarefied(counts: Mapping[str, int], share: float, seed: int) -> float:
    """Return the mean of `shannon` over DRAWS seeded samples, each a `share` of the examples without replacement."""
    values = np.array([count for count in counts.values() if count], dtype=np.int64)
    size = round(share * int(values.sum()))
    if not size or share >= 1:
        return shannon(counts)
    drawn = np.random.default_rng(seed).multivariate_hypergeometric(values, size, size=DRAWS, method="marginals")
    return float(np.mean([shannon(dict(enumerate(row.tolist()))) for row in drawn]))  # type: ignore[arg-type]


def distance(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Return the total variation distance (0 to 1): the share of one set that must change to make both equal."""
    sums = sum(first.values()), sum(second.values())
    if not all(sums):
        return float(any(sums))
    names = first.keys() | second.keys()
    return sum(abs(first.get(name, 0) / sums[0] - second.get(name, 0) / sums[1]) for name in names) / 2


class Counted(NamedTuple):
    """The counts of a set of examples in a dimension."""

    groups: Counter[str]
    known: int
    """Number of examples in at least one group; for `people`, all examples, because being in no group is informative"""


Counts = dict[str, Counted]


def diversity(splits: Splits) -> dict[str, Any]:
    """Return `splits` (profiles), `sources`, `differences` between train and test, and `remarks` on imbalances."""
    counts = {name: counted_groups(examples) for name, examples in splits.named().items()}
    profiles = {name: profile(examples, counts[name]) for name, examples in splits.named().items()}
    apart = differences(counts["train"], counts["test"])
    return {
        "splits": profiles,
        "sources": _by_source(splits.train),
        "differences": apart,
        # A few test examples differ from the training examples by chance.
        "remarks": remarks(profiles["train"], apart if len(splits.test) >= MIN_EXAMPLES else {}),
    }


def counted_groups(examples: Sequence[Example]) -> Counts:
    """Return the number of examples per group in each dimension."""
    found = {}
    for dimension in DIMENSIONS:
        groups = [dimension.groups(example) for example in examples]
        known = len(examples) if dimension.name == "people" else sum(map(bool, groups))
        found[dimension.name] = Counted(Counter(group for each in groups for group in each), known)
    return found


def profile(examples: Sequence[Example], counts: Counts) -> dict[str, Any]:
    """Return the number of `examples`, and the `dimensions` that are known for at least one example."""
    found = {
        dimension.name: _dimension(dimension, *counts[dimension.name])
        for dimension in DIMENSIONS
        if counts[dimension.name].groups
    }
    return {"examples": len(examples), "dimensions": found}


def differences(first: Counts, second: Counts) -> dict[str, float]:
    """Return the distance between two sets in each dimension that is known for both sets and should be similar."""
    return {
        name: round(distance(own.groups, second[name].groups), 4)
        for name, own in first.items()
        if BY_NAME[name].compared and own.groups and second[name].groups
    }


def _dimension(dimension: Dimension, counts: Counter[str], known: int) -> dict[str, Any]:
    """Return the profile of a dimension.

    It contains the numbers of `known` examples and `distinct` groups, `shannon`, the listed `groups` (with shares in
    percent), and `others`, the total count of the groups that aren't listed.
    """
    ranked = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    names = list(dimension.order) or ranked[:MAX_GROUPS]
    return {
        "known": known,
        "distinct": len(counts),
        "shannon": round(shannon(counts), 2),
        "groups": [
            {
                "group": name,
                "count": counts[name],
                "share": round(100 * counts[name] / known, 2),
                "ci95": [round(end, 2) for end in wilson(counts[name], known)],
            }
            for name in names
        ],
        "others": sum(counts[name] for name in ranked if name not in names),
    }


def _by_source(examples: Sequence[Example]) -> dict[str, dict[str, Any]]:
    """Return the number of examples and quantiles of lengths and reading grades, by source and collection."""
    members: dict[str, list[Example]] = {}
    for example in examples:
        for part in ("", *(f"/{name}" for name in BY_NAME["collection"].groups(example))):
            members.setdefault(f"{example.source}{part}", []).append(example)
    return {name: _medians(members[name]) for name in sorted(members)}


def _medians(examples: Sequence[Example]) -> dict[str, Any]:
    answers = [example.answer for example in examples if example.answer]
    measured: Mapping[str, Sequence[float]] = {
        "question_words": [len(example.question.split()) for example in examples],
        "answer_words": [len(answer.split()) for answer in answers],
        "reading_grade": [value for value in map(grade, answers) if value is not None],
    }
    quantiles = {"p10": 10, "median": 50, "p90": 90}
    return {"examples": len(examples)} | {
        name: {key: round(float(np.percentile(values, at)), 1) for key, at in quantiles.items()}
        for name, values in measured.items()
        if values
    }


def compared(before: Sequence[Example], after: Sequence[Example], seed: int) -> dict[str, Any]:
    """Return the sizes of two sets (`examples`), the numbers of `gone` and `new` ids, and the changes by dimension.

    Each of the `dimensions` has `distance`, the total variation distance; `effective`, the effective numbers of groups
    in both sets; and `groups`, those whose shares (in percent) change most. The effective numbers are rarefied to the
    size of the smaller set, because a larger set tends to contain more groups.
    """
    ids = {example.id for example in before}, {example.id for example in after}
    counts = counted_groups(before), counted_groups(after)
    least = min(len(before), len(after))
    dimensions = {}
    for dimension in DIMENSIONS:
        name = dimension.name
        sides = counts[0][name].groups, counts[1][name].groups
        if not any(sides):
            continue
        shares: list[dict[str, Any]] = [
            {
                "group": group,
                "before": round(100 * sides[0][group] / len(before), 2),
                "after": round(100 * sides[1][group] / len(after), 2),
            }
            for group in sides[0].keys() | sides[1].keys()
        ]
        shares.sort(key=lambda row: (-abs(row["after"] - row["before"]), row["group"]))
        listed = [row for row in shares if row["before"] != row["after"]][:MAX_COMPARED_GROUPS]
        if dimension.kind == "ordered":
            listed.sort(key=lambda row: dimension.order.index(row["group"]))
        dimensions[name] = {
            "distance": round(distance(*sides), 4),
            "effective": [
                round(rarefied(side, least / len(examples), seed), 2)
                for side, examples in zip(sides, (before, after), strict=True)
            ],
            "groups": listed,
        }
    return {
        "examples": [len(before), len(after)],
        "gone": len(ids[0] - ids[1]),
        "new": len(ids[1] - ids[0]),
        "dimensions": dimensions,
    }


MIN_EXAMPLES = 30
"""With fewer examples, the only remark is that there are too few"""
RARE_DECISION = 20.0
"""A decision is rare if its share, in percent, is smaller"""
DOMINANT = 70.0
"""A group is dominant if its share, in percent, is larger and there are at least two groups"""
MIN_EVENNESS = 0.5
"""A dimension with at least five groups is uneven if the ratio of its effective number of groups to its
number of groups is smaller"""
HARD = 50.0
"""The data are hard to read if a larger share of the answers, in percent, is above grade 8"""
MIN_MENTION_PERCENT = 2.0
"""A group of people is hardly mentioned if a smaller share of the examples, in percent, mentions it"""
MAX_MENTION_RATIO = 2.0
"""Ratio between mentions of women and of men (or the reverse) above which a remark is made"""
MAX_SPLIT_DISTANCE = 0.3
"""Total variation distance above which train and test count as different"""

Remark = dict[str, str]
_DOMINANCE = ("source", "collection", "question_type", "semantic_type", "subject")
_EVENNESS_DIMENSIONS = ("question_type", "semantic_type", "subject")


def remarks(train: Mapping[str, Any], distances: Mapping[str, float]) -> list[Remark]:
    """Return `rule`, `message` and `advice` for each imbalance in the profile of the training split."""
    if train["examples"] < MIN_EXAMPLES:
        message = f"{train['examples']:,} training examples are too few to detect an imbalance."
        return [_remark("too few to tell", message, f"At least {MIN_EXAMPLES} are needed.")]
    dimensions = train["dimensions"]
    known = {name: dimension for name, dimension in dimensions.items() if dimension["known"] >= MIN_EXAMPLES}
    return [
        *_decisions(known.get("decision")),
        *_dominant(known),
        *_low_evenness(dimensions),
        *_reading_difficulty(known.get("reading_grade")),
        *_people(dimensions.get("people")),
        *_split_distance(distances),
    ]


def _remark(rule: str, message: str, advice: str) -> Remark:
    return {"rule": rule, "message": message, "advice": advice}


def _decisions(dimension: Mapping[str, Any] | None) -> Iterator[Remark]:
    if not dimension:
        return
    shares = {row["group"]: row for row in dimension["groups"]}
    missing = [label for label in DECISIONS if label not in shares]
    if missing:
        yield _remark(
            "missing decision",
            f"No training example has the decision {' or '.join(missing)}.",
            "A model can't learn a decision that the data don't contain. Add a source that contains it.",
        )
    for label, row in shares.items():
        if row["share"] < RARE_DECISION:
            yield _remark(
                "rare decision",
                f"{label} makes up {_percent(row)} of {dimension['known']:,} decisions.",
                "A model that never predicts this decision loses little. train.class_balance (for example 0.5) gives "
                "rare decisions more weight.",
            )


def _dominant(dimensions: Mapping[str, Any]) -> Iterator[Remark]:
    for name in _DOMINANCE:
        dimension = dimensions.get(name)
        if not dimension or dimension["distinct"] < 2:
            continue
        top = max(dimension["groups"], key=lambda row: row["count"])
        if top["share"] > DOMINANT:
            rest = max(1, dimension["known"] - top["count"])
            ways = [f"cap this group with data.balance={{by: {name}, cap: {rest}}}", "add other data"]
            if name == "source":
                ways.insert(1, "sample small sources more often with train.mix.weights")
            yield _remark(
                "dominant group",
                f"{_title(name)} {top['group']} makes up {_percent(top)} of the {dimension['known']:,} training "
                "examples for which the value is known.",
                f"Metrics over all examples mostly describe this group. To change that, {', or '.join(ways)}.",
            )


def _low_evenness(dimensions: Mapping[str, Any]) -> Iterator[Remark]:
    for name in _EVENNESS_DIMENSIONS:
        dimension = dimensions.get(name)
        if dimension and dimension["distinct"] >= 5 and dimension["shannon"] / dimension["distinct"] < MIN_EVENNESS:
            yield _remark(
                "uneven groups",
                f"The {dimension['distinct']} groups by {_title(name).lower()} are only as diverse as "
                f"{dimension['shannon']:.1f} groups of equal size (effective number).",
                "A model hardly learns the small groups, and a test hardly covers them. See the metrics by subgroup in "
                "the report. To cap the large groups, set "
                f"data.balance={{by: {name}, cap: {max(1, dimension['known'] // 5)}}}.",
            )


def _reading_difficulty(dimension: Mapping[str, Any] | None) -> Iterator[Remark]:
    hard = sum(row["share"] for row in dimension["groups"][2:]) if dimension else 0
    if hard > HARD:
        yield _remark(
            "hard to read",
            f"{hard:.0f}% of the training answers are above reading grade 8.",
            "A model learns the style of its training answers. If it answers patients, keep only the easy answers with "
            "data.max_reading_grade (10, or 8 for everyone). MedQuAD has more easy answers than other sources.",
        )


def _people(dimension: Mapping[str, Any] | None) -> Iterator[Remark]:
    if not dimension:
        return
    rows = {row["group"]: row for row in dimension["groups"]}
    women, men = rows["women or girls"], rows["men or boys"]
    more, fewer = (women, men) if women["count"] >= men["count"] else (men, women)
    if more["count"] >= MIN_EXAMPLES and more["count"] > MAX_MENTION_RATIO * fewer["count"]:
        yield _remark(
            "women and men",
            f"{more['group']} are mentioned in {_percent(more)} of the examples, {fewer['group']} in "
            f"{_percent(fewer)}.",
            "Compare the metrics of both subgroups in the report, and add data about the subgroup with worse metrics.",
        )
    scarce = [row["group"] for row in dimension["groups"] if row["share"] < MIN_MENTION_PERCENT]
    if scarce:
        yield _remark(
            "hardly mentioned",
            f"Fewer than {MIN_MENTION_PERCENT:.0f}% of the examples mention: {', '.join(scarce)}.",
            "The metrics say little about these groups. Add sources about them, or state this limitation wherever the "
            "model is offered.",
        )


def _split_distance(distances: Mapping[str, float]) -> Iterator[Remark]:
    far = {name: value for name, value in distances.items() if value > MAX_SPLIT_DISTANCE}
    if far:
        listed = ", ".join(f"{_title(name).lower()} {100 * value:.0f}%" for name, value in far.items())
        yield _remark(
            "train and test differ",
            "The training and test sets differ. Share of training examples that would have to change to match the test "
            f"set: {listed}.",
            "The test metrics then describe questions or answers that differ from the training data. This may be "
            "intended (a filter, a publisher's test set). If it isn't, set data.split=group, which holds out a part of "
            "every source for testing.",
        )


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _percent(row: Mapping[str, Any]) -> str:
    low, high = row["ci95"]
    return f"{row['share']:.0f}% (95% interval {low:.0f} to {high:.0f}%)" if row["share"] < 99.5 else "nearly 100%"


Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]
"""A function that turns n texts into an array (n, size) of unit vectors"""

MAX_QUESTIONS = 4000
"""Maximum number of questions that are clustered; if there are more, a seeded sample is clustered"""
MAX_MAP_POINTS = 1500
NAME_WORDS = 3
_UNINFORMATIVE_WORDS = (
    *("does", "patients", "patient", "use", "using", "study"),
    *("effect", "need", "know", "help", "like"),
)
NEIGHBOURS = 30
"""Perplexity of t-SNE (van der Maaten and Hinton 2008): approximately the number of neighbours that stay close"""


class SurveyQuestion(NamedTuple):
    """A question and the set that it belongs to."""

    example: Example
    where: str
    """"train" or "test"; "before" or "after" if two states of the data are compared"""


def chosen(sets: dict[str, Sequence[Example]], seed: int) -> list[SurveyQuestion]:
    """Return a seeded sample of at most MAX_QUESTIONS examples, in proportion to the sets' sizes."""
    total = sum(map(len, sets.values()))
    share = min(1.0, MAX_QUESTIONS / max(1, total))
    found = []
    for name, examples in sets.items():
        count = max(min(len(examples), 1), int(share * len(examples)))
        found += [SurveyQuestion(each, name) for each in sample(examples, count, f"{seed}/clusters/{name}")]
    return found


def clusters(questions: Sequence[SurveyQuestion], embed: Embed, count: int, seed: int) -> dict[str, Any]:
    """Return k-means `clusters`, their `effective` number (the exponential of the entropy of their sizes), `vendi` and
    `points`.

    A cluster has a `name`, its size in total, by source and by set, and the question nearest to its centre (`example`).
    `vendi` is the Vendi score of each set, which is the effective number of questions that differ in meaning (Friedman
    and Dieng 2022, arXiv:2210.02410). `points` are the positions of a sample of the questions on a t-SNE map, scaled to
    the range 0 to 1.
    """
    from sklearn.cluster import KMeans

    about = [", ".join(focus(each.example)) or each.example.question for each in questions]
    vectors = embed(about)
    count = min(count, len(questions))
    fitted = KMeans(count, n_init=4, random_state=seed).fit(vectors)
    labels = [int(label) for label in fitted.labels_]
    names = _names(about, labels, count)
    rows: list[dict[str, Any]] = []
    for cluster in range(count):
        members = [index for index, label in enumerate(labels) if label == cluster]
        nearest = min(
            members, key=lambda index: float(np.linalg.norm(vectors[index] - fitted.cluster_centers_[cluster]))
        )
        rows.append(
            {
                "cluster": cluster,
                "name": names[cluster],
                "questions": len(members),
                "source": dict(Counter(questions[index].example.source for index in members)),
                "where": dict(Counter(questions[index].where for index in members)),
                "example": _shown(questions[nearest].example),
            }
        )
    rows.sort(key=lambda row: -row["questions"])
    sets = dict.fromkeys(each.where for each in questions)
    return {
        "questions": len(questions),
        "clusters": rows,
        "effective": round(shannon(Counter(map(str, labels))), 2),
        "vendi": {name: round(vendi(vectors[[each.where == name for each in questions]]), 1) for name in sets},
        "points": _map(questions, vectors, labels, seed),
    }


def vendi(vectors: Vectors) -> float:
    """Return the Vendi score: the exponential of the entropy of the eigenvalues of the vectors' mean outer product.

    The nonzero eigenvalues are those of the matrix of cosine similarities, divided by the number of vectors.
    """
    values = np.linalg.eigvalsh(vectors.astype(np.float64).T @ vectors / len(vectors))
    return shannon({str(index): float(value) for index, value in enumerate(values) if value > 1e-12})


def _names(texts: Sequence[str], labels: Sequence[int], count: int) -> list[str]:
    """Return a name for each cluster: words that are frequent in the cluster and rare elsewhere.

    The method is class-based TF-IDF (Grootendorst 2022, arXiv:2203.05794).
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

    said_often = [*ENGLISH_STOP_WORDS, *_UNINFORMATIVE_WORDS]
    vectorizer = CountVectorizer(stop_words=said_often, token_pattern=r"(?u)\b[^\W\d_][\w-]{2,}\b", binary=True)
    try:
        table = vectorizer.fit_transform(texts)
    except ValueError:
        # CountVectorizer raises ValueError if the texts contain only stop words.
        return [f"cluster {cluster + 1}" for cluster in range(count)]
    words = vectorizer.get_feature_names_out()
    held = np.array([np.asarray(table[np.array(labels) == cluster].sum(axis=0))[0] for cluster in range(count)])
    sizes = np.maximum(np.bincount(labels, minlength=count), 1)[:, None]
    weights = held / sizes * np.log(1 + held.sum() / count / np.maximum(held.sum(axis=0), 1))
    return [_distinctive_words(words, row) or f"cluster {cluster + 1}" for cluster, row in enumerate(weights)]


def _distinctive_words(words: Sequence[str], weights: NDArray[np.float64]) -> str:
    found: list[str] = []
    for index in np.argsort(-weights, kind="stable")[:50]:
        word = str(words[index])
        if weights[index] > 0 and not any(word[:5] == other[:5] for other in found):
            found.append(word)
        if len(found) == NAME_WORDS:
            break
    return ", ".join(found)


def _map(
    questions: Sequence[SurveyQuestion], vectors: Vectors, labels: Sequence[int], seed: int
) -> list[dict[str, Any]]:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    drawn = sample(range(len(questions)), MAX_MAP_POINTS, f"{seed}/map")
    if len(drawn) < 4:
        return []
    flat = PCA(min(50, len(drawn) - 1, vectors.shape[1]), random_state=seed).fit_transform(vectors[drawn])
    nearby = min(NEIGHBOURS, (len(drawn) - 1) / 3)
    places = TSNE(2, perplexity=nearby, init="pca", random_state=seed).fit_transform(flat)
    low, high = places.min(axis=0), places.max(axis=0)
    places = (places - low) / np.maximum(high - low, 1e-9)
    return [
        {
            "x": round(float(x), 4),
            "y": round(float(y), 4),
            "cluster": labels[index],
            "source": questions[index].example.source,
            "where": questions[index].where,
            "question": _shown(questions[index].example),
        }
        for index, (x, y) in zip(drawn, places, strict=True)
    ]


def _shown(example: Example) -> str:
    """Return the question, shortened; empty if the text is restricted, because it must stay in the data's folder."""
    if is_restricted(example):
        return ""
    text = " ".join(example.question.split())
    return text if len(text) <= 120 else text[:119] + "…"
