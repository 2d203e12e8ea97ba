"""The pairs of `train.preference.path`: written down as such, or made of rated answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import chain, islice
from pathlib import Path

from meditune.data.columns import has_column, listed
from meditune.data.locate import locate
from meditune.data.preference import medquad_judged, own, rated
from meditune.data.preference.pair import Pair
from meditune.data.records import LOOK_AHEAD
from meditune.data.rejects import Rejects
from meditune.data.tables import rows
from meditune.errors import DataError
from meditune.recipe import Recipe


def read(path: Path, recipe: Recipe, rejects: Rejects) -> list[Pair]:
    """Pairs from a file of pairs or of rated answers, or from the folder of MedQuAD's judged answers.

    Which kind a file is, its columns say, named in the recipe or guessed. Refused rows go to `rejects`. Raises
    DataError where it is neither, and where nothing in it is usable.
    """
    spec = recipe.train.preference
    if path.is_dir():
        questions = next((source.path for source in recipe.data.sources if source.name == "liveqa"), None)
        ratings = medquad_judged.read(path, locate("liveqa", questions), rejects)
        pairs = rated.paired(ratings, spec.rated, recipe.seed, rejects)
    else:
        stream = rows(path, own.SOURCE, rejects)
        first = list(islice(stream, LOOK_AHEAD))
        found, fields = chain(first, stream), spec.fields or None
        no_rows = f"{path}: no rows. Give a file with at least one pair, or two rated answers to one question."
        columns = list(dict.fromkeys(str(column) for _, row in first for column in row))
        if first and _holds_ratings(columns, spec.fields, first[0][0]):
            ratings = rated.from_rows(found, rejects, fields, path.stem, no_rows)
            pairs = rated.paired(ratings, spec.rated, recipe.seed, rejects)
        else:
            pairs = list(own.from_rows(found, rejects, fields, path.stem, no_rows))
    if not pairs:
        raise DataError(_nothing_usable(path, rejects))
    return pairs


def _holds_ratings(columns: Collection[str], fields: Mapping[str, str], where: str) -> bool:
    """Whether the columns are those of rated answers, not of pairs. Raises DataError where they are neither's."""
    chosen, rejected = (has_column(field, columns, fields, own.COLUMNS) for field in ("chosen", "rejected"))
    answer, rating = (has_column(field, columns, fields, rated.COLUMNS) for field in ("answer", "rating"))
    if not (chosen and rejected) and rating and (answer or not (chosen or rejected)):
        return True
    if chosen or rejected:
        return False
    raise DataError(
        f"{where}: neither pairs (question, chosen, rejected) nor rated answers (question, answer, rating); there are "
        f"{listed(columns)}. Say in train.preference.fields which column is which, such as fields: {{rating: COLUMN}}."
    )


def _nothing_usable(path: Path, rejects: Rejects) -> str:
    left = ", ".join(f"{count:,} {reason}" for reason, count in rejects.counts().get(own.SOURCE, {}).items())
    first = next(rejects.rows(), None)
    advice = (
        f"The first refused row, {first['where']}: {first['reason']}."
        if first
        else "Lower train.preference.rated.margin, or give more ratings."
    )
    return f"{path}: no pair can be made of it ({left}). {advice}"
