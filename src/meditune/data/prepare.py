"""The data stage of a run: find, read, check and split the data, and document the result."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from meditune.config.data_options import DataSpec
from meditune.config.recipe import Recipe
from meditune.data import leakage, reviewer_decisions
from meditune.data.balance import count_styles as styles_of
from meditune.data.balance import counted, mark_plain_style, rebalanced
from meditune.data.dataset_card import dataset_card
from meditune.data.deidentify import Findings, cleaner
from meditune.data.example import Example, read_examples, write_records
from meditune.data.quality.audit import Audit, facts
from meditune.data.quality.ledger import FILE_NAME as LEDGER
from meditune.data.read_sources import available, is_restricted, read_sources, terms_of
from meditune.data.readers.tables import Rejects
from meditune.data.sources import locate_own, locate_source
from meditune.data.splits import SPLITS, Splits, official_tests, split
from meditune.errors import DataError
from meditune.files import read_json, replace_file, replace_folder, sha256, write_json


@dataclass(frozen=True)
class Prepared:
    """The prepared data of a run, as stored in the run's folder `data`."""

    splits: Splits
    quality: dict[str, Any]

    @property
    def synthetic(self) -> bool:
        """Return True if the synthetic sample was used instead of real data."""
        return bool(self.quality["synthetic"])

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the content of the three splits."""
        return str(self.quality["sha256"])


def prepare(recipe: Recipe, folder: Path, needed: Collection[str] = SPLITS) -> Prepared:
    """Read the recipe's sources, audit and split them, and write the result to `folder` atomically.

    Raises DataError if a source can't be found, one of the `needed` splits is empty, or leakage was found that isn't
    allowed. The rejected rows, if any, are then in `rejected.jsonl` in the parent folder; if a split is empty, so are
    the dropped rows.
    """
    spec, synthetic = available(recipe.data)
    rejects, phi = Rejects(cleaner(spec.phi)), Findings(spec.phi)
    beside = folder.parent / "rejected.jsonl"
    try:
        by_source, read = read_sources(spec, recipe.seed, rejects, phi)
        audit = checked_rows(spec, by_source, phi.left_in)
        try:
            splits = audit.between(split_rows(spec, recipe.seed, audit, by_source, needed))
        except DataError:
            _add_dropped(rejects, audit, by_source, phi.left_in)
            raise
        splits, decided = reviewer_decisions.apply(spec.decisions, splits)
        audit.note(decided.entries)
        train, entries = rebalanced(splits.train, spec, recipe.seed)
        audit.note(entries)
        before, splits = len(splits.train), mark_plain_style(replace(splits, train=train), spec)
        measured = recipe.evaluate.split
        checked = leakage.check(splits, measured, recipe.model.base)
        texts = leakage.question_texts(splits, phi.left_in)
        leakage.refuse(checked, recipe.evaluate.allow_leakage, folder.parent, texts)
    except DataError as error:
        if not any(True for _ in rejects.rows()):
            raise
        rejects.write(beside)
        raise DataError(f"{error} The rows that were left out and the reasons are in {beside}.") from error
    done = {
        "files": own_files(spec),
        **({"decisions": decided.facts} if decided.facts else {}),
        **({"rebalanced": counted(before, len(splits.train), entries)} if entries else {}),
    }
    prepared = write_prepared(recipe, folder, splits, DataCheck(read, audit, rejects, phi), checked, done, synthetic)
    beside.unlink(missing_ok=True)
    return prepared


@dataclass(frozen=True)
class DataCheck:
    """The results of reading and checking the rows."""

    read: dict[str, dict[str, Any]]
    audit: Audit
    rejects: Rejects
    phi: Findings


def write_prepared(
    recipe: Recipe,
    folder: Path,
    splits: Splits,
    checks: DataCheck,
    leakage: dict[str, Any],
    done: dict[str, Any],
    synthetic: bool,
) -> Prepared:
    """Write the splits and their documentation to `folder` atomically, and return the prepared data.

    `leakage` is the result of the leakage check, and `done` contains further entries of quality.json.
    """
    styles = styles_of(splits)
    quality = {
        "synthetic": synthetic,
        **facts(splits, checks.read, checks.audit.dropped()),
        "audit": checks.audit.facts(),
        **done,
        **({"styles": styles} if styles else {}),
        "terms": terms_of(example for examples in splits.named().values() for example in examples),
        "leakage": leakage,
        "phi": checks.phi.facts(),
    }
    with replace_folder(folder) as partial:
        checks.rejects.write(partial / "rejected.jsonl")
        checks.audit.ledger.write(partial / LEDGER)
        checks.phi.write(partial)
        for name, examples in splits.named().items():
            write_records(partial / f"{name}.jsonl", examples)
        quality["sha256"] = _digest([partial / f"{name}.jsonl" for name in splits.named()])
        write_json(partial / "quality.json", quality)
        with replace_file(partial / "README.md") as stream:
            stream.write(dataset_card(recipe, quality))
    return Prepared(splits, quality)


def data_folder(folder: Path) -> Path:
    """Return the folder of prepared data: `folder/data` or `folder`. Raises DataError if there are no such data."""
    for place in (folder / "data", folder):
        if (place / "quality.json").is_file():
            return place
    raise DataError(
        f"{folder} contains no prepared data. Prepare data with: meditune data prepare RECIPE --output DIR."
    )


def stored_data(folder: Path) -> Prepared:
    """Return the data that `prepare` wrote to `folder`. Raises DataError if files are missing or have changed."""
    quality = read_json(folder / "quality.json")
    paths = {name: folder / f"{name}.jsonl" for name in SPLITS}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise DataError(f"{folder}: missing files: {', '.join(missing)}. Remove the run's folder and start again.")
    if _digest(list(paths.values())) != quality["sha256"]:
        raise DataError(
            f"{folder}: the prepared splits were changed after they were written (their SHA-256 differs from "
            "quality.json). Remove the run's folder and start again."
        )
    return Prepared(
        Splits(**{name: read_examples(path) for name, path in paths.items()}, test_set=quality["test_set"]), quality
    )


def own_files(spec: DataSpec) -> dict[str, str]:
    """Return path -> SHA-256 of each of the user's own files that exists; a hub data set isn't a file."""
    found = {}
    for source in spec.sources:
        with contextlib.suppress(DataError):
            if source.path and source.is_own and (place := Path(locate_own(source.path))).is_file():
                found[source.path] = sha256(place)
    return found


def changed_files(spec: DataSpec, data: Prepared) -> list[str]:
    """Return the paths of the user's own files that have changed since the data were prepared."""
    stored = data.quality.get("files", {})
    return [path for path, digest in own_files(spec).items() if stored.get(path, digest) != digest]


def used_fallback(spec: DataSpec, data: Prepared) -> bool:
    """Return True if the data are the fallback sample although the sources are now available without a download."""
    if not data.synthetic or any(source.name == "sample" for source in spec.sources):
        return False
    with contextlib.suppress(DataError):
        return all(locate_source(source.name, source.path, download=False) for source in spec.sources)
    return False


def checked_rows(spec: DataSpec, by_source: dict[str, list[Example]], hidden: Container[str]) -> Audit:
    """Return the audit of all rows. Official test items aren't changed; the text of rows in `hidden` isn't shown."""
    audit = Audit(
        spec.quality, official_tests(by_source, spec.fixed_splits) if spec.split == "official" else (), hidden=hidden
    )
    audit.rows(by_source)
    return audit


def split_rows(
    spec: DataSpec,
    seed: int,
    audit: Audit,
    all_rows: dict[str, list[Example]],
    needed: Collection[str] = SPLITS,
) -> Splits:
    """Return the splits that the recipe specifies; `all_rows` are the rows before quality control.

    Rows that the leakage check would report are kept in one split, unless an official or fixed split separates them.
    Raises DataError if one of the `needed` splits is empty.
    """
    return split(
        audit.remaining,
        spec.split == "official",
        spec.test_share,
        spec.dev_share,
        seed,
        spec.fold,
        newest=spec.split == "newest",
        all_rows=all_rows,
        fixed=spec.fixed_splits,
        leaks=leakage.straddling,
        left_out=audit.left_out(),
        needed=needed,
    )


def _add_dropped(rejects: Rejects, audit: Audit, by_source: dict[str, list[Example]], hidden: Container[str]) -> None:
    """Add the rows that quality control dropped to `rejects`, without the text of restricted and `hidden` rows."""
    why = audit.dropped_rows
    for example in (example for examples in by_source.values() for example in examples if example.id in why):
        is_hidden = example.id in hidden or is_restricted(example)
        row = {"question": example.question, "answer": example.answer}
        rejects.add(example.source, example.id, f"quality rule {why[example.id]}", example.id if is_hidden else row)


def _digest(paths: list[Path]) -> str:
    return hashlib.sha256("".join(sha256(path) for path in paths).encode()).hexdigest()
