"""Stored predictions, from which every metric can be recomputed without the model, and the measured models.

There is one JSON Lines file for each model and kind under `predictions/`, such as `base-decision.jsonl`;
docs/reference/report.md lists the kinds and the fields of their rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from meditune.config.load_recipe import load_recipe
from meditune.config.recipe import SuiteName
from meditune.data.example import Example, read_examples
from meditune.data.leakage import LEAKAGE_FILE_NAME
from meditune.data.readers import pubmedqa
from meditune.data.retrieved_passages import RANKS, RETRIEVED_FILE, count
from meditune.errors import DataError
from meditune.files import read_json, read_jsonl, sha256, write_json, write_jsonl
from meditune.prompts import decision_in

TextKind = Literal["general", "technical"]
"""Running text, measured in windows."""
Condition = Literal["closed", "retrieved"]
"""Conditions in which the prompt has no context (closed book) or retrieved passages instead of the given context"""
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
DecisionKind = Literal["decision", "dev_decision", Condition]
"""Decisions by likelihood: on the measured items, on the dev split, and on the measured items under each condition."""
AnswerKind = Literal["answer", "closed_answer", "retrieved_answer"]
LikelihoodKind = Literal["likelihood", "closed_likelihood", "retrieved_likelihood"]
ChoiceSuite = Literal[
    "suite_medqa", "suite_medmcqa", "suite_mmlu_medical", "suite_pubmedqa", "suite_bioasq_yesno", "suite_medhallu"
]  # fmt: skip
"""Public tests that are scored by likelihood"""
OpenSuite = Literal["suite_k_qa", "suite_medicationqa", "suite_healthbench"]
SuiteGrades = Literal["suite_k_qa_grades", "suite_medicationqa_grades", "suite_healthbench_grades"]
Kind = Literal[
    DecisionKind, AnswerKind, LikelihoodKind, "written", "calibration", "unconditional", "similarity", TextKind,
    "choice", "preference", "claim", "dev_claim", "samples", "faithfulness", "retrieved_faithfulness",
    "reference_faithfulness", "retrieved_reference_faithfulness", "sari", "facts", "safety", "rating",
    ChoiceSuite, OpenSuite, SuiteGrades,
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
GRADES_OF: dict[Kind, Kind] = dict(zip(get_args(OpenSuite), get_args(SuiteGrades), strict=True))
GIVEN: tuple[Kind, ...] = ("decision", "likelihood", "answer", "faithfulness", "reference_faithfulness")
"""Kinds with the given context in the prompt"""
Row = dict[str, Any]
MAX_LISTED_IDS = 5


def suite_kind(name: SuiteName) -> Kind:
    """Return the kind of a suite's predictions: suite_k_qa for k-qa."""
    kind: Any = f"suite_{name.replace('-', '_')}"
    found: Kind = kind
    return found


class Predictions:
    """One model's rows of each kind, as attributes such as `decision`; a kind that wasn't measured is empty.

    `no_reference` contains the ids of stored answers with an empty reference. These answers aren't in `answer`, because
    they can't be scored.
    """

    def __init__(self, **rows: list[Any]) -> None:
        self.no_reference: list[str] = rows.pop("no_reference", [])
        assert rows.keys() <= set(KINDS), f"unknown kinds of predictions: {rows.keys() - set(KINDS)}"
        self._rows = rows

    def __getattr__(self, kind: str) -> list[Row]:
        if kind not in KINDS:
            raise AttributeError(kind)
        return self._rows.setdefault(kind, [])

    def texts(self) -> dict[TextKind, list[Row]]:
        """Return the windows of each running text that was measured."""
        return {kind: getattr(self, kind) for kind in get_args(TextKind) if getattr(self, kind)}

    def under(self, condition: Condition | None) -> Predictions:
        """Return only the predictions made under a condition; None stands for the given context.

        Closed book changes nothing for items without a context, so the ordinary predictions are used for these items.
        """
        given: dict[str, list[Row]] = {kind: getattr(self, kind) for kind in GIVEN}
        if condition is None:
            return Predictions(**given)
        kinds = {kind: "decision" if kind == condition else kind.removeprefix(f"{condition}_") for kind in KINDS}
        rows = {kinds[kind]: getattr(self, kind) for kind in KINDS if kind.split("_")[0] == condition}
        if condition == "closed":
            rows = {kind: _filled(each, given[kind]) for kind, each in rows.items()}
        return Predictions(**rows)


def _filled(rows: list[Row], replacements: list[Row]) -> list[Row]:
    """Return the rows in the order of `replacements`, from which missing rows are taken; empty if `rows` is empty."""
    by_id = {row["id"]: row for row in rows}
    return [by_id.get(row["id"], row) for row in replacements] if rows else []


def ids_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return the rows' ids."""
    return tuple(row["id"] for row in rows)


def answer_row(example: Example, answer: str, omitted_passages: int = 0) -> dict[str, Any]:
    """Return the stored row of a written answer; `omitted_passages` retrieved passages didn't fit into the prompt."""
    row = {"id": example.id, "reference": example.answer, "references": example.references(), "prediction": answer}
    return row | ({"passages": count(example) - omitted_passages} if RANKS in example.meta else {})


def references(row: dict[str, Any]) -> list[str]:
    """Return all reference answers in an answer's row; rows of earlier versions contain only one."""
    found: list[str] = row.get("references") or [row["reference"]]
    return found


def most_likely(logits: Mapping[str, float]) -> str:
    """Return the label with the highest logit."""
    return max(logits, key=lambda label: logits[label])


def decided_row(identifier: str, reference: str | None, logits: Mapping[str, float]) -> dict[str, Any]:
    """Return the stored row of a decision by likelihood."""
    return {"id": identifier, "reference": reference, "prediction": most_likely(logits), "logits": logits}


def written_row(identifier: str, reference: str | None, text: str) -> dict[str, Any]:
    """Return the stored row of a written decision; its prediction is None if the text contains no label."""
    return {"id": identifier, "reference": reference, "prediction": decision_in(text), "text": text}


def path_of(folder: Path, model: str, kind: Kind) -> Path:
    """Return the file of one model's predictions of a kind."""
    return folder / f"{model}-{kind}.jsonl"


def write_once(folder: Path, model: str, kind: Kind, make: Callable[[], Iterable[dict[str, Any]]]) -> None:
    """Store the rows from `make`, unless the file exists already."""
    path = path_of(folder, model, kind)
    if not path.is_file():
        write_jsonl(path, make())


def read(folder: Path, model: str) -> Predictions:
    """Return all stored predictions of one model.

    Raises DataError if there are none, if a row has no id, or if an id occurs twice.
    """
    found = {kind: read_jsonl(path_of(folder, model, kind)) for kind in KINDS if path_of(folder, model, kind).is_file()}
    if not found:
        raise DataError(f"{folder} contains no predictions of {model!r}. Run `meditune evaluate` first.")
    for kind, rows in found.items():
        _check_ids(rows, path_of(folder, model, kind))
    answers = found.get("answer", [])
    empty = [row["id"] for row in answers if not str(row.get("reference", "")).strip()]
    if empty:
        found["answer"] = [row for row in answers if row["id"] not in set(empty)]
    return Predictions(**found, no_reference=empty)


def _check_ids(rows: list[Row], path: Path) -> None:
    nameless = sum(not isinstance(row.get("id"), str) for row in rows)
    if nameless:
        raise DataError(f"{path}: {nameless} of {len(rows)} rows have no id. Add the id of the item to each row.")
    twice = [each for each, count in Counter(row["id"] for row in rows).items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: {len(twice)} ids occur more than once ({list_ids(twice)}), so their items would count more than "
            "others. Keep one row for each id."
        )


def write_pubmedqa(folder: Path, model: str, test: Sequence[Example]) -> Path | None:
    """Write `MODEL-pubmedqa.json` for `evaluation.py` of https://github.com/pubmedqa/pubmedqa, and return its path.

    The file contains one JSON object, PubMed id -> label, for the PubMedQA items in `test`; the script expects exactly
    the official test items. Returns None if there are no decisions on PubMedQA items.
    """
    pmids = {example.id: example.group for example in test if example.source == pubmedqa.SOURCE}
    predictions = {pmids[row["id"]]: row["prediction"] for row in read(folder, model).decision if row["id"] in pmids}
    if not predictions:
        return None
    path = folder / f"{model}-pubmedqa.json"
    # PubMedQA's script counts "none" as wrong, and as a class of its own in macro-F1.
    labels = {pmid: label or "none" for pmid, label in predictions.items()}
    if not path.is_file() or read_json(path) != labels:
        write_json(path, labels)
    return path


SIDES = ("base", "tuned", "model")
CONDITION_TITLES: dict[Condition, str] = {"closed": "closed book", "retrieved": "with retrieved passages"}


@dataclass(frozen=True)
class MeasuredModel:
    """One model's stored predictions with their items."""

    name: str
    """The name that the user gave"""
    predictions: Predictions
    examples: dict[str, Example]
    """Examples by id; empty if the folder contains no data"""
    leakage: dict[str, Any] | None = None
    """Findings of the leakage check before the evaluation; None without a check"""
    passages: str = ""
    """SHA-256 of the file with the retrieved passages; empty if the model had none"""
    folder: Path | None = None
    """The output folder of `meditune evaluate` or of the run"""


def measured_model(name: str) -> MeasuredModel:
    """Return the measured model that `name` stands for: FOLDER, FOLDER:base or FOLDER:tuned.

    FOLDER is the output folder of `meditune evaluate` or of a run; for a run, FOLDER alone is the tuned model.
    FOLDER:retrieved or FOLDER:tuned+retrieved contains only the decisions, likelihoods and answers with retrieved
    passages; FOLDER:closed or FOLDER:tuned+closed contains those without context. Raises DataError if there are no such
    predictions.
    """
    folder, side, condition = _parted(name)
    place = folder / "predictions"
    if not place.is_dir():
        raise DataError(
            f"{folder} contains no predictions. Name the output folder of `meditune evaluate` or `meditune run`."
        )
    sides = [each for each in SIDES if any(path_of(place, each, kind).is_file() for kind in KINDS)]
    side = side or ("model" if "model" in sides else "tuned")
    if side not in sides:
        raise DataError(f"{folder} contains no predictions of {side!r}, only of {', '.join(sides) or 'no model'}.")
    checked = folder / LEAKAGE_FILE_NAME
    known = examples_of(folder), read_json(checked) if checked.is_file() else None
    predictions = read(place, side)
    if condition is None:
        return MeasuredModel(name, predictions, *known, folder=folder)
    under = predictions.under(condition)
    if not (under.decision or under.answer):
        key = "evaluate.closed_book=true" if condition == "closed" else "evaluate.retrieve.index=INDEX"
        title = CONDITION_TITLES[condition]
        raise DataError(f"{side} wasn't measured {title} in {folder}. Measure it with --set {key}.")
    found = folder / RETRIEVED_FILE
    passages = sha256(found) if condition == "retrieved" and found.is_file() else ""
    return MeasuredModel(name, under, *known, passages, folder)


def _parted(name: str) -> tuple[Path, str, Condition | None]:
    """Return folder, side and condition of a model's name; side and condition can be empty."""
    folder, _, rest = name.rpartition(":")
    words = rest.split("+")
    side = words.pop(0) if words[0] in SIDES else ""
    condition: Condition | None = next((each for each in CONDITIONS if words == [each]), None)
    if Path(name).exists() or not folder or (words and condition is None):
        return Path(name), "", None
    return Path(folder), side, condition


def list_ids(ids: Sequence[str]) -> str:
    """Return the first MAX_LISTED_IDS ids as text, and the number of further ids."""
    more = f" and {len(ids) - MAX_LISTED_IDS} more" if len(ids) > MAX_LISTED_IDS else ""
    return f"{', '.join(ids[:MAX_LISTED_IDS])}{more}"


def groups_of(examples: dict[str, Example]) -> dict[str, str]:
    """Return id -> group of the example, as "SOURCE/GROUP"."""
    return {id: f"{example.source}/{example.group}" for id, example in examples.items()}


def examples_of(folder: Path) -> dict[str, Example]:
    """Return id -> measured item of a run or an evaluation; empty if the folder contains no data."""
    split = "test"
    if (folder / "recipe.yaml").is_file():
        split = load_recipe(str(folder / "recipe.yaml")).recipe.evaluate.split
    path = folder / "data" / f"{split}.jsonl"
    return {example.id: example for example in read_examples(path)} if path.is_file() else {}


def seed_of(folder: Path) -> int:
    """Return the seed of a finished run. Raises DataError if the folder isn't a finished run."""
    path = folder / "report.json"
    if not path.is_file():
        raise DataError(f"{folder} isn't a finished run: it has no report.json. Finish it with `meditune run`.")
    return int(read_json(path)["seed"])
