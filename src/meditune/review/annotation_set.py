"""Annotation sets (`meditune annotate create`): rows of the data for people to check, mixed with known items.

Rows come from a recipe's prepared data, a run, or the user's own file. They are a random sample, the same number from
each stratum, or the most suspicious ones first. Known items, whose verdict is known, measure how carefully raters work;
neither the page nor the server reads which ones they are.
"""

from __future__ import annotations

import random
import secrets
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from meditune.config.load_recipe import load_recipe
from meditune.data.example import Example
from meditune.data.prepare import prepare, stored_data
from meditune.data.read_sources import is_restricted
from meditune.data.readers import user_files
from meditune.data.readers.tables import Rejects
from meditune.data.readers.user_files import SOURCE as OWN
from meditune.data.reviewer_decisions import KEPT_VERDICTS, VERDICTS, Verdict
from meditune.data.sources import SOURCES
from meditune.errors import DataError
from meditune.evidence.detector import Sentence
from meditune.files import is_result_of, sha256
from meditune.review.rating_set import KEY, VALIDATE, check_sharing, read_key, row_key, shown_row, write_set
from meditune.review.suspicious_rows import ON_TOPIC, SIGNALS, Suspicion, flagged, stems, suspicion

Sample = Literal["random", "suspicious"]
SAMPLES: tuple[Sample, ...] = get_args(Sample)
Strata = Literal["none", "source", "decision", "question_type"]
STRATA: tuple[Strata, ...] = get_args(Strata)


def check_choice(sample: str, strata: str) -> None:
    """Raise DataError for an unknown name."""
    for name, option, known in ((sample, "--sample", SAMPLES), (strata, "--stratify-by", STRATA)):
        if name not in known:
            raise DataError(f"Unknown {option} {name}. Choose from {', '.join(known)}.")


def chosen(
    rows: Sequence[Example], count: int, stratify_by: str, seed: int, suspicions: Mapping[str, Suspicion] | None
) -> list[Example]:
    """Return `count` rows, or all if there are fewer: the most suspicious first if known, otherwise a random sample.

    With strata, each stratum gives the same number of rows if it has enough.
    """
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
    """Return the stratum of a row; "" without strata."""
    if strata == "none":
        return ""
    if strata == "question_type":
        found = row.meta.get("question_type")
        return ", ".join(map(str, found)) if isinstance(found, list) else str(found or "none")
    return str(getattr(row, strata) or "none")


def _quotas(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Return the number of rows per stratum, as equal as their sizes allow, `count` in total or all."""
    quotas = dict.fromkeys(sizes, 0)
    left = min(count, sum(sizes.values()))
    while left:
        open_ = [kind for kind in sorted(sizes) if quotas[kind] < sizes[kind]]
        for kind in open_[:left]:
            more = min(max(1, left // len(open_)), sizes[kind] - quotas[kind])
            quotas[kind] += more
        left = min(count, sum(sizes.values())) - sum(quotas.values())
    return quotas


TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
TRAINED = ("train", "dev")
LEDGER, NOTED = "ledger.parquet", ("id", "rule", "action", "detail")


@dataclass(frozen=True)
class Candidates:
    """The rows to choose from."""

    rows: list[Example]
    sha256: str
    decided: int = 0
    """Number of rows that were left out because people had checked them before"""
    rejected: int = 0
    noted: tuple[Mapping[str, Any], ...] = ()
    """Notes about rows that quality control wrote to the data's ledger"""


def candidates(source: str, overrides: Sequence[str], test: bool) -> Candidates:
    """Return the rows of `source`: a run's folder, a table, or a recipe, to which `overrides` are applied.

    Without `test`, only rows of train and dev are returned; a table has no splits, so all its rows are. Raises
    DataError if there is nothing to check.
    """
    path = Path(source)
    noted: list[dict[str, Any]] = []
    if path.suffix.lower() in TABLES:
        rejects = Rejects()
        rows, digest, rejected = list(user_files.read(path, rejects)), sha256(path), len(rejects)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = _data_of(path) if path.is_dir() else Path(temporary) / "data"
            prepared = stored_data(folder) if path.is_dir() else prepare(load_recipe(source, overrides).recipe, folder)
            noted = _ledger(folder)
        named = prepared.splits.named()
        rows = [row for name in ((*TRAINED, "test") if test else TRAINED) for row in named[name]]
        digest, rejected = prepared.sha256, 0
    new = [row for row in rows if "validated" not in row.meta]
    if not new:
        raise DataError(f"{source}: all rows were checked already.")
    return Candidates(new, digest, len(rows) - len(new), rejected, tuple(noted))


def _ledger(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the ledger that quality control wrote beside the data; none without a ledger."""
    path = folder / LEDGER
    if not path.is_file():
        return []
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path, columns=list(NOTED)).to_pylist()
    return rows


def _data_of(folder: Path) -> Path:
    for place in (folder / "data", folder):
        if (place / "quality.json").is_file():
            return place
    raise DataError(f"{folder} contains no prepared data. Give a folder of `meditune run` or `meditune data prepare`.")


MAX_ATTEMPTS = 200
"""Number of other rows tried to find an answer that doesn't fit"""
COLUMN = "verdict"


@dataclass(frozen=True)
class Gold:
    """A known item."""

    example: Example
    expected: tuple[Verdict, ...]
    kind: Literal["gold", "planted"]


def read_gold(path: Path) -> list[Gold]:
    """Return the known items of a user's table, whose column `verdict` holds one verdict or several, separated by
    commas.

    Raises DataError with the row if a verdict is unknown or the row is invalid.
    """
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
        found.append(Gold(example, expected, "gold"))
    first = next(rejects.rows(), None)
    if first:
        raise DataError(f"{first['where']}: {first['reason']}.")
    return found


def plant(rows: Sequence[Example], count: int, seed: int) -> list[Gold]:
    """Return rows with the answer of another row of the same source that shares few of the question's words.

    Any verdict that drops a row counts as correct: such an answer is wrong and off-topic, and may be unsafe. Raises
    DataError if there aren't enough different rows.
    """
    chance = random.Random(f"{seed}/planted")
    able = [row for row in rows if row.answer]
    planted: list[Gold] = []
    for row in chance.sample(able, len(able)):
        if len(planted) == count:
            break
        asked = Sentence(row.question)
        for other in chance.sample(able, min(MAX_ATTEMPTS, len(able))):
            alien = other.source == row.source and other.group != row.group and asked.total
            if alien and asked.share_in(stems(other.answer)) < ON_TOPIC / 2:
                wrong = row.model_copy(update={"answer": other.answer})
                planted.append(Gold(wrong, tuple(each for each in VERDICTS if each not in KEPT_VERDICTS), "planted"))
                break
    if len(planted) < count:
        raise DataError(
            f"Only {len(planted)} of {count} wrong rows can be planted; no other answer clearly belongs to a "
            "different question. Give a smaller --synthetic-gold, or your own known items (--gold)."
        )
    return planted


FORM = "verdict"


@dataclass(frozen=True)
class AnnotationSetOptions:
    """The options of a set."""

    rows: int = 100
    sample: str = "random"
    strata: str = "none"
    raters: int | None = None
    overlap: int | None = None
    """Number of raters per row; default 2"""
    shared: int = 0
    gold: Path | None = None
    planted: int = 0
    test: bool = False
    seed: int = 17
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class CreatedSet:
    """The content of a set that was created."""

    rows: int
    known: int
    restricted: int
    decided: int
    rejected: int


def create(source: str, folder: Path, options: AnnotationSetOptions) -> CreatedSet:
    """Create a set in `folder`; `source` is a recipe, a run's folder or a table.

    Ids are random for each set. Known items go to every rater. Raises DataError if there is nothing to check,
    MedituneError if the folder holds something else.
    """
    check_choice(options.sample, options.strata)
    check_sharing(options.raters, options.overlap)
    found = candidates(source, options.overrides, options.test)
    gold_sha256 = sha256(options.gold) if options.gold and options.gold.is_file() else None
    asked = asdict(options) | {"gold": gold_sha256, "overrides": list(options.overrides)}
    made_from = {"source": source, "data": found.sha256, **asked}
    if not is_result_of(folder, KEY, made_from):
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
        known = _known(options, found.rows, {row.id for row in rows})
        items, key, everyone = _blinded(listed, known, {row.id for row in shared}, Path(source).name)
        ranked = options.sample == "suspicious"
        write_set(folder, VALIDATE, FORM, items, key, made_from, everyone, ranked)
    key_rows, _ = read_key(folder)
    restricted = {row.id for row in found.rows if is_restricted(row)}
    return CreatedSet(
        rows=sum(not row.known for row in key_rows.values()),
        known=sum(row.known for row in key_rows.values()),
        restricted=sum(row.example in restricted for row in key_rows.values()),
        decided=found.decided,
        rejected=found.rejected,
    )


def _known(options: AnnotationSetOptions, rows: Sequence[Example], used: set[str]) -> list[Gold]:
    """Return the known items from the file, and the planted ones."""
    known = read_gold(options.gold) if options.gold else []
    if options.planted:
        # A question that occurs twice with different answers would reveal the planted item.
        others = [row for row in rows if row.id not in used]
        known += plant(others if len(others) > options.planted else rows, options.planted, options.seed)
    return known


def _blinded(
    rows_with_meta: Sequence[tuple[Example, dict[str, Any]]], known: Sequence[Gold], shared: set[str], table: str
) -> tuple[list[dict[str, Any]], dict[str, Any], list[str]]:
    """Return the items with known ones at unpredictable positions, their key, and the questions for every rater.

    `table` names the source of rows from the user's own file.
    """
    chance = secrets.SystemRandom()
    rows = list(rows_with_meta)
    for gold in known:
        entry = row_key(gold.example, origins=[gold.kind], expected=list(gold.expected))
        rows.insert(chance.randrange(len(rows) + 1), (gold.example, entry))
    items: list[dict[str, Any]] = []
    key: dict[str, Any] = {}
    everyone: list[str] = []
    for example, entry in rows:
        id, asked = secrets.token_hex(6), secrets.token_hex(4)
        name = str(example.meta.get("source") or example.source)
        source = SOURCES[name].title if name in SOURCES else table if name == OWN else name
        items.append({"id": id, "asked": asked, **shown_row(example, source)})
        key[id] = entry
        if entry["expected"] or example.id in shared:
            everyone.append(asked)
    return items, key, everyone
