"""Annotation sets (`meditune annotate create`): rows of the data for people to check, mixed with known items.

The rows are a random sample or the most suspicious rows. On request, all strata contribute the same number of rows.
Suspicion scores are computed without human input. Known items measure raters; neither the page nor the server learns
which items are known.
"""

from __future__ import annotations

import random
import secrets
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import log, prod
from pathlib import Path
from statistics import median
from typing import Any, Literal

from meditune.config.load_recipe import load_recipe
from meditune.data.example import Example
from meditune.data.prepare import data_folder, prepare, stored_data
from meditune.data.quality import ledger
from meditune.data.read_sources import is_restricted
from meditune.data.readers import tables, user_files
from meditune.data.readers.tables import Rejects
from meditune.data.readers.user_files import SOURCE as OWN
from meditune.data.reviewer_decisions import KEPT_VERDICTS, VERDICTS, Verdict, was_validated
from meditune.data.sources import SOURCES
from meditune.data.splits import question_key
from meditune.errors import DataError
from meditune.evidence.lexical_detector import Sentence, Sources, detect
from meditune.evidence.lexical_features import tokens
from meditune.files import sha256
from meditune.progress import track
from meditune.review.rating_set import VALIDATE, check_sharing, is_set_of, read_key, row_key, shown_row, write_set

SAMPLES = ("random", "suspicious")
STRATA = ("none", "source", "decision", "question_type")


def chosen(
    rows: Sequence[Example], count: int, stratify_by: str, seed: int, suspicions: Mapping[str, Suspicion] | None
) -> list[Example]:
    """Return `count` rows, most suspicious or random, with equal numbers from each stratum as far as possible."""
    order = list(rows)
    random.Random(f"{seed}/annotate").shuffle(order)
    if suspicions is not None:
        order.sort(key=lambda row: -suspicions[row.id].score)
    kinds: dict[str, list[Example]] = defaultdict(list)
    for row in order:
        kinds[stratum(row, stratify_by)].append(row)
    room = _quotas({kind: len(members) for kind, members in kinds.items()}, count)
    taken = {row.id for kind, members in kinds.items() for row in members[: room[kind]]}
    return [row for row in order if row.id in taken]


def stratum(row: Example, strata: str) -> str:
    """Return the stratum of a row, or "" if there are no strata."""
    if strata == "none":
        return ""
    if strata == "question_type":
        found = row.meta.get("question_type")
        return ", ".join(map(str, found)) if isinstance(found, list) else str(found or "none")
    return str(getattr(row, strata) or "none")


def _quotas(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Return the number of rows to take per stratum, as equal as possible; `count` in total, or all rows if fewer."""
    quotas = dict.fromkeys(sizes, 0)
    left = min(count, sum(sizes.values()))
    while left:
        open_ = [kind for kind in sorted(sizes) if quotas[kind] < sizes[kind]]
        for kind in open_[:left]:
            more = min(max(1, left // len(open_)), sizes[kind] - quotas[kind])
            quotas[kind] += more
        left = min(count, sum(sizes.values())) - sum(quotas.values())
    return quotas


FAR = 3.0
"""Number of median absolute deviations from the source's usual length, above which an answer is suspicious"""
SPREAD = 0.3
ON_TOPIC = 0.35
"""Minimum weighted share of the question's words in an answer that counts as on topic"""


Finding = tuple[float, str]
"""A signal's score for a row, from 0 to 1, and the reason"""


Signal = Callable[[Sequence[Example]], Mapping[str, Finding]]


@dataclass(frozen=True)
class Suspicion:
    """The suspicion score of one row."""

    score: float = 0.0
    """0 to 1: the signals' scores combined like independent probabilities of an error"""
    reasons: Mapping[str, str] = field(default_factory=dict)


def suspicion(examples: Sequence[Example], signals: Mapping[str, Signal]) -> dict[str, Suspicion]:
    """Return the suspicion of each row, by the row's id."""
    noticed: dict[str, dict[str, Finding]] = defaultdict(dict)
    for name, signal in signals.items():
        for id, found in signal(examples).items():
            noticed[id][name] = found
    return {
        each.id: Suspicion(
            1 - prod(1 - score for score, _ in noticed[each.id].values()),
            {name: why for name, (_, why) in noticed[each.id].items()},
        )
        for each in examples
    }


def unusual_length(examples: Sequence[Example]) -> dict[str, Finding]:
    """Return findings for answers that are far shorter or longer than usual for their source, on a log scale."""
    lengths: dict[str, dict[str, float]] = defaultdict(dict)
    for each in examples:
        if each.answer:
            lengths[each.source][each.id] = log(len(each.answer.split()))
    found = {}
    for of_source in lengths.values():
        usual = median(of_source.values())
        spread = max(SPREAD, median(abs(value - usual) for value in of_source.values()))
        for id, value in of_source.items():
            away = abs(value - usual) / spread
            if away > FAR:
                side = "short" if value < usual else "long"
                found[id] = (min(0.6, (away - FAR) / 10), f"{side} for its source")
    return found


def off_topic(examples: Sequence[Example]) -> dict[str, Finding]:
    """Return findings for answers that, even with their passages, contain few of the question's important words."""
    found = {}
    for each in track(examples, "Comparing answers with questions", unit="rows"):
        asked = Sentence(each.question)
        if not each.answer or not asked.total:
            continue
        share = asked.share_in(stems(each.answer, *(passage.text for passage in each.context)))
        if share < ON_TOPIC:
            found[each.id] = (0.7 * (1 - share / ON_TOPIC), "shares few words with the question")
    return found


def stems(*texts: str) -> set[str]:
    """Return the stems of the words in these texts."""
    return {token.stem for text in texts for token in tokens(text)}


def unsupported(examples: Sequence[Example]) -> dict[str, Finding]:
    """Return findings for answers that their own passages don't support, according to the lexical detector."""
    found = {}
    given = [row for row in examples if row.context and row.answer]
    for each in track(given, "Comparing answers with passages", unit="rows"):
        judged = detect(each.answer, Sources([passage.text for passage in each.context], each.question))
        if judged.score is not None and (judged.spans or not judged.faithful):
            why = judged.spans[0].why if judged.spans else "no passage supports it"
            found[each.id] = (0.8 * (1 - judged.score), why)
    return found


def contradicted(examples: Sequence[Example]) -> dict[str, Finding]:
    """Return findings for rows whose question occurs again with the same passages but a different answer."""
    asked: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for each in examples:
        asked[question_key(each.question), question_key(each.context_text)].append(each)
    found = {}
    for rows in asked.values():
        decisions = {each.decision for each in rows if each.decision}
        answers = {question_key(each.answer) for each in rows if each.answer}
        for each in rows:
            if len(decisions) > 1:
                found[each.id] = (0.8, "the same question has a different decision elsewhere")
            elif len(answers) > 1:
                found[each.id] = (0.3, "the same question has a different answer elsewhere")
    return found


def repeated(examples: Sequence[Example]) -> dict[str, Finding]:
    """Return findings for answers that also occur with other questions."""
    asked_by_answer: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for each in examples:
        if each.answer:
            asked_by_answer[question_key(each.answer)][question_key(each.question)].append(each.id)
    found = {}
    for questions in asked_by_answer.values():
        others = len(questions) - 1
        where = "another question" if others == 1 else f"{others} other questions"
        for id in (id for ids in questions.values() for id in ids if others):
            found[id] = (0.4, f"the same answer occurs with {where}")
    return found


def flagged(records: Iterable[Mapping[str, Any]]) -> Signal:
    """Return a signal for the rows that records flag. A record has `id`, `rule`, `action` and `detail`."""
    by_id: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if record["action"] == "flag":
            by_id[str(record["id"])].append(str(record["detail"] or record["rule"]))
    return lambda examples: {each.id: (0.7, "; ".join(by_id[each.id])) for each in examples if each.id in by_id}


SIGNALS: dict[str, Signal] = {
    "length": unusual_length,
    "off_topic": off_topic,
    "unsupported": unsupported,
    "contradicted": contradicted,
    "repeated": repeated,
}


@dataclass(frozen=True)
class Candidates:
    """The rows to choose from."""

    rows: list[Example]
    sha256: str
    decided: int = 0
    """Number of rows that were left out because people have already checked them"""
    rejected: int = 0
    noted: Sequence[Mapping[str, Any]] = ()
    """Entries of the ledger of the data"""


def candidates(source: str, overrides: Sequence[str], test: bool) -> Candidates:
    """Return the rows of a run's folder, a table, or a recipe; rows of the test split only if `test`."""
    path, rejects, noted = Path(source), Rejects(), []
    if overrides and (path.is_dir() or path.suffix.lower() in tables.FORMATS):
        raise DataError(f"--set changes a key of a recipe, but {source} isn't a recipe. Omit --set.")
    if path.suffix.lower() in tables.FORMATS:
        rows, digest = list(user_files.read(path, rejects)), sha256(path)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = data_folder(path) if path.is_dir() else Path(temporary) / "data"
            prepared = stored_data(folder) if path.is_dir() else prepare(load_recipe(source, overrides).recipe, folder)
            noted = list(ledger.entries(folder))
        named = prepared.splits.named()
        rows = [row for name in ("train", "dev", *(("test",) if test else ())) for row in named[name]]
        digest = prepared.sha256
    new = [row for row in rows if not was_validated(row)]
    if not new:
        raise DataError(f"{source}: all rows were checked already.")
    return Candidates(new, digest, len(rows) - len(new), len(rejects), noted)


MAX_ATTEMPTS = 200
COLUMN = "verdict"


@dataclass(frozen=True)
class Gold:
    """A known item."""

    example: Example
    expected: tuple[Verdict, ...]
    kind: Literal["gold", "planted"]


def read_gold(path: Path, rows: Sequence[Example], seed: int) -> list[Gold]:
    """Return the known items of a table. Raises DataError if `verdict` doesn't list verdicts separated by commas.

    An item without a `source` gets the source of a random row of `rows`, so that raters don't recognize known items.
    """
    chance = random.Random(f"{seed}/gold")
    rejects = Rejects()
    found = []
    for example in user_files.read(path, rejects, source="gold"):
        stated = [part.strip().lower() for part in str(example.meta.get(COLUMN) or "").split(",")]
        expected = tuple(verdict for verdict in VERDICTS if verdict in stated)
        if len(expected) != len(set(stated)):
            raise DataError(
                f"{path}, row {example.id.partition(':')[2]}: {COLUMN} {example.meta.get(COLUMN)!r} must consist of "
                f"{', '.join(VERDICTS)}."
            )
        if not example.meta.get("source"):
            other = chance.choice(rows)
            source = {"source": str(other.meta.get("source") or other.source)}
            example = example.model_copy(update={"meta": example.meta | source})
        found.append(Gold(example, expected, "gold"))
    first = next(rejects.rows(), None)
    if first:
        raise DataError(f"{first['where']}: {first['reason']}.")
    return found


def plant(rows: Sequence[Example], count: int, seed: int) -> list[Gold]:
    """Return rows whose answers were replaced by unrelated answers; any verdict that drops a row is right."""
    chance = random.Random(f"{seed}/planted")
    able = [row for row in rows if row.answer]
    planted: list[Gold] = []
    for row in chance.sample(able, len(able)):
        if len(planted) == count:
            break
        asked = Sentence(row.question)
        for other in chance.sample(able, min(MAX_ATTEMPTS, len(able))):
            is_foreign = other.source == row.source and other.group != row.group and asked.total
            if is_foreign and asked.share_in(stems(other.answer)) < ON_TOPIC / 2:
                wrong = row.model_copy(update={"answer": other.answer})
                planted.append(Gold(wrong, tuple(each for each in VERDICTS if each not in KEPT_VERDICTS), "planted"))
                break
    if len(planted) < count:
        raise DataError(
            f"Only {len(planted)} of {count} wrong items can be made; no other answer clearly belongs to a "
            "different question. Lower --synthetic-gold, or pass your own known items with --gold."
        )
    return planted


@dataclass(frozen=True)
class AnnotationSetOptions:
    """The options of a set."""

    rows: int = 100
    sample: str = "random"
    strata: str = "none"
    raters: int | None = None
    overlap: int | None = None
    shared: int = 0
    gold: Path | None = None
    planted: int = 0
    test: bool = False
    seed: int = 17
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class CreatedSet:
    """The numbers of rows in a set that was created, and of rows that were left out."""

    rows: int
    known: int
    restricted: int
    decided: int
    rejected: int


def create(source: str, folder: Path, options: AnnotationSetOptions) -> CreatedSet:
    """Create a set in `folder` from rows of `source` (a recipe, a run's folder or a table), with known items.

    Every rater sees the known items.
    """
    choices = ((options.sample, "--sample", SAMPLES), (options.strata, "--stratify-by", STRATA))
    for name, option, known in choices:
        if name not in known:
            raise DataError(f"Unknown {option} {name}. Choose from {', '.join(known)}.")
    check_sharing(options.raters, options.overlap)
    found = candidates(source, options.overrides, options.test)
    gold_sha256 = sha256(options.gold) if options.gold and options.gold.is_file() else None
    asked = asdict(options) | {"gold": gold_sha256, "overrides": list(options.overrides)}
    made_from = {"source": source, "data": found.sha256, **asked}
    if not is_set_of(folder, made_from):
        suspected = None
        if options.sample == "suspicious":
            suspected = suspicion(found.rows, SIGNALS | {"quality": flagged(found.noted)})
        rows = chosen(found.rows, options.rows, options.strata, options.seed, suspected)
        listed = []
        for row in rows:
            found_of = suspected[row.id] if suspected else Suspicion()
            facts = {"score": round(found_of.score, 3), "reasons": dict(found_of.reasons)}
            listed.append((row, row_key(row, stratum=stratum(row, options.strata), **facts)))
        shared = random.Random(f"{options.seed}/shared").sample(rows, min(options.shared, len(rows)))
        gold = read_gold(options.gold, rows or found.rows, options.seed) if options.gold else []
        if options.planted:
            # A question that occurs twice with different answers would reveal the planted item.
            used = {row.id for row in rows}
            others = [row for row in found.rows if row.id not in used]
            others = others if len(others) > options.planted else found.rows
            gold += plant(others, options.planted, options.seed)
        entries = _with_known(listed, gold, Path(source).name)
        ranked = options.sample == "suspicious"
        write_set(folder, VALIDATE, "verdict", entries, made_from, {row.id for row in shared}, ranked)
    key_rows, _ = read_key(folder)
    restricted = {row.id for row in found.rows if is_restricted(row)}
    return CreatedSet(
        rows=sum(not row.known for row in key_rows.values()),
        known=sum(row.known for row in key_rows.values()),
        restricted=sum(row.example in restricted for row in key_rows.values()),
        decided=found.decided,
        rejected=found.rejected,
    )


def _with_known(
    rows: list[tuple[Example, dict[str, Any]]], known: Sequence[Gold], table: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the set's entries (see `write_set`), with the known items at random positions.

    `table` is shown as the source of the user's own rows.
    """
    chance = secrets.SystemRandom()
    for gold in known:
        entry = row_key(gold.example, origins=[gold.kind], expected=list(gold.expected))
        rows.insert(chance.randrange(len(rows) + 1), (gold.example, entry))
    for example, entry in rows:
        name = str(example.meta.get("source") or example.source)
        source = SOURCES[name].title if name in SOURCES else table if name == OWN else name
        yield shown_row(example, source), entry
