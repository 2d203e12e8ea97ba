"""Evaluation of one model on the test items; every prediction is stored.

The evaluator selects the items and conditions, skips predictions that are already stored, resumes interrupted
evaluations, and stores the predictions. A back end runs the model: in this process (`weights_backend`), in an engine or
behind an API (`backends`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from meditune.config.data_options import Task
from meditune.config.recipe import SUITE_TOKENS, EvaluateSpec, Recipe, SuiteName
from meditune.data.example import Example
from meditune.data.preference_pairs import Pair
from meditune.data.splits import sample
from meditune.errors import DataError
from meditune.evaluate import safety_battery
from meditune.evaluate.predictions import (
    GRADES_OF,
    KINDS,
    AnswerKind,
    ChoiceSuite,
    Condition,
    DecisionKind,
    Kind,
    LikelihoodKind,
    OpenSuite,
    Predictions,
    TextKind,
    answer_row,
    list_ids,
    path_of,
    suite_kind,
    write_once,
    written_row,
)
from meditune.evaluate.suites.load_suites import SUITES
from meditune.files import append_jsonl, read_jsonl, write_jsonl
from meditune.prompts import DECISION_TOKENS

Row = dict[str, Any]
KeepScore = Callable[[Literal["decision", "likelihood"], Row], None]
"""A function that receives each finished row; rows come in any order and from any thread, but one at a time"""
KeepText = Callable[[str, str, int], None]
"""A function like `KeepScore` that receives the id of an example, the written text, and the number of retrieved
passages that didn't fit into the prompt"""
SCORED: tuple[tuple[DecisionKind, LikelihoodKind | None, str], ...] = (
    ("decision", "likelihood", ""),
    ("dev_decision", None, ", items for calibration"),
    ("closed", "closed_likelihood", ", closed book"),
    ("retrieved", "retrieved_likelihood", ", retrieved passages"),
)
"""Kinds that are scored together, and the text that follows the model's name in the progress display"""
TITLES: dict[Kind, str] = {
    "decision": "decisions",
    "dev_decision": "decisions for calibration",
    "closed": "closed-book decisions",
    "retrieved": "decisions with retrieved passages",
    "likelihood": "likelihoods",
    "written": "written decisions",
    "answer": "answers",
    "closed_answer": "closed-book answers",
    "retrieved_answer": "answers with retrieved passages",
    "safety": "answers to the safety test set",
    "unconditional": "answers without questions",
    "samples": "samples",
    "general": "general text",
    "technical": "technical text",
    "choice": "general knowledge",
    "preference": "pairs",
    "claim": "claims",
    "dev_claim": "dev claims",
    **{suite.kind: suite.title for suite in SUITES.values()},
}
WRITTEN: tuple[Kind, ...] = (*get_args(AnswerKind), "safety", *get_args(OpenSuite))
"""Kinds whose predictions are written answers"""
WEIGHTS_ONLY: tuple[Kind, ...] = (
    *("unconditional", "samples"),
    *get_args(TextKind),
    *("choice", "preference", "claim"),
    *get_args(ChoiceSuite),
)
"""Kinds that need the model's weights in this process"""
SAMPLED = 50
"""Number of questions for which answers are sampled, unless `evaluate.samples` is 0"""


@dataclass(frozen=True)
class Capabilities:
    """The capabilities of a kind of back end."""

    kinds: frozenset[Kind]
    refuses_lm_eval: str = ""
    """The reason why the back end can't follow the `lm-eval` protocol; empty if it can"""
    no_repeat: bool = False
    """True if the back end supports `evaluate.no_repeat`"""
    resumes: bool = False
    """True if rows are stored as they arrive, because each one takes long or costs money"""


WEIGHTS = Capabilities(frozenset(KINDS), no_repeat=True)
ENGINE = Capabilities(
    frozenset(
        {"decision", "dev_decision", "closed", "likelihood", "written", "answer", "safety", *get_args(OpenSuite)}
    ),
    "An exported model, or a model on a server, can be evaluated only with evaluate.protocol meditune. For the lm-eval "
    "protocol, evaluate the original model without --url, or point lm-eval at `meditune serve`.",
    resumes=True,
)
API = Capabilities(
    frozenset({*get_args(DecisionKind), "written", *WRITTEN}),
    "evaluate.protocol lm-eval needs the likelihood of given text, which an API doesn't return. Set evaluate.protocol "
    "to meditune.",
    resumes=True,
)


class Backend:
    """The interface of back ends. A back end implements only the methods that its `Capabilities` require."""

    def accepted(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Return the examples, leaving out conversations that the model's chat template rejects."""
        return examples

    def decidable(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Return the examples that the model can decide, as training would use them."""
        return examples

    def score(
        self, decision_examples: Sequence[Example], answer_examples: Sequence[Example], label: str, keep: KeepScore
    ) -> None:
        """Pass to `keep` decisions on `decision_examples` and likelihoods of `answer_examples`' reference answers."""
        raise NotImplementedError

    def write(self, examples: Sequence[Example], task: Task, max_new_tokens: int, label: str, keep: KeepText) -> None:
        """Pass to `keep` the greedy answer to each example."""
        raise NotImplementedError

    def rows(self, kind: Kind, items: Sequence[Any], label: str) -> Iterable[Row]:
        """Return the rows of a kind in WEIGHTS_ONLY."""
        raise NotImplementedError

    def decisions_as_lm_eval(self, examples: Sequence[Example], label: str) -> Iterable[Row]:
        """Return decisions under the `lm-eval` protocol."""
        raise NotImplementedError


class Evaluator:
    """An evaluator, which measures models on the same items and stores their predictions on disk.

    Decisions are measured on every example with a reference decision, and on `dev` if anything is fitted to them. Long
    answers are measured on a seeded subset, which is the same for every model. Predictions are stored in
    `folder/NAME-KIND.jsonl`; a kind whose file exists isn't computed again. `can` contains the capabilities of the back
    ends that will be used.
    """

    def __init__(
        self,
        recipe: Recipe,
        examples: Sequence[Example],
        folder: Path,
        pairs: Sequence[Pair] = (),
        dev: Sequence[Example] = (),
        retrieved: Sequence[Example] = (),
        can: Capabilities = WEIGHTS,
        suites: Mapping[SuiteName, Sequence[Example]] | None = None,
    ) -> None:
        self.spec, self.folder, self.can = recipe.evaluate, folder, can
        self.uses_lm_eval = self.spec.protocol == "lm-eval"
        if self.uses_lm_eval and can.refuses_lm_eval:
            raise DataError(can.refuses_lm_eval)
        if self.spec.no_repeat and not can.no_repeat:
            raise DataError(
                "evaluate.no_repeat works only for models that Meditune loads itself, not for an exported model, a "
                "server or an API. Set it to null, also for the models that you compare this one with."
            )
        if self.uses_lm_eval and not any(example.decision for example in examples):
            raise DataError(
                "evaluate.protocol lm-eval measures only decisions, and no test item has a decision. "
                "Set evaluate.protocol to meditune."
            )
        self.messages = {
            each.id: each for each in safety_battery.chosen_messages(self.spec.safety_messages, recipe.seed)
        }
        self.items = self._items(recipe, examples, pairs, dev, retrieved, suites or {})
        """The items of each kind; kinds without items are absent"""
        without = [example.id for example in examples if not example.answer.strip() and not example.label]
        unmeasured = [name for name in suites or {} if suite_kind(name) not in can.kinds]
        self.remarks: list[str] = []
        if without and "answer" in self.items:
            self.remarks.append(
                f"{len(without)} of {len(examples)} items, such as {without[0]}, have no reference answer, so only "
                "decisions on them are measured."
            )
        if unmeasured:
            self.remarks.append(
                f"Not measured: {', '.join(unmeasured)} (evaluate.suites). These suites need the likelihood of given "
                "text from a model that Meditune loads itself."
            )

    def _items(
        self, recipe: Recipe, examples: Sequence[Example], pairs: Sequence[Pair], dev: Sequence[Example],
        retrieved: Sequence[Example], suites: Mapping[SuiteName, Sequence[Example]],
    ) -> dict[Kind, Sequence[Any]]:  # fmt: skip
        spec = self.spec
        decided: dict[Any, list[Example]] = {**decided_on(examples, dev, spec, retrieved)}
        if self.uses_lm_eval:
            return {"decision": decided["decision"]}
        answered = chosen_answers(examples, spec.answers, recipe.seed)
        under = under_conditions(answered, spec, retrieved)
        items: dict[Any, Sequence[Any]] = {
            **decided,
            **dict.fromkeys(("likelihood", "unconditional", "answer"), answered),
            **{f"{condition}_{kind}": each for condition, each in under.items() for kind in ("likelihood", "answer")},
            "written": decided.get("decision", []) if spec.written_decisions else [],
            "samples": chosen_answers(answered, SAMPLED, recipe.seed) if spec.samples else [],
            "preference": pairs,
            "claim": [example for example in examples if example.label],
            "safety": [message.example() for message in self.messages.values()],
            **{suite_kind(name): suite for name, suite in suites.items()},
        }
        if "choice" in self.can.kinds:
            from meditune.evaluate.general_knowledge import general_texts, questions

            items |= {kind: [text] for kind, text in general_texts(spec).items()}
            items["choice"] = questions(spec.choices)
        return {kind: rows for kind, rows in items.items() if rows and kind in self.can.kinds}

    def is_done(self, name: str) -> bool:
        """Return True if every kind of prediction of this model is stored."""
        return all(self._is_stored(name, kind) for kind in self.items)

    def measure(self, backend: Backend, name: str) -> None:
        """Compute and store a model's predictions, except those that are already stored."""
        if self.remarks:
            print(" ".join(self.remarks), file=sys.stderr)
        self._leave_out_rejected(backend)
        if "dev_decision" in self.items and not self._is_stored(name, "dev_decision"):
            self.items["dev_decision"] = backend.decidable(self.items["dev_decision"])
        if self.uses_lm_eval:
            label = f"Scoring {name}, lm-eval protocol"
            write_once(
                self.folder, name, "decision", lambda: backend.decisions_as_lm_eval(self.items["decision"], label)
            )
            return
        for decision, likelihood, suffix in SCORED:
            self._score(backend, decision, likelihood, name, f"Scoring {name}{suffix}")
        for kind in ("written", *WRITTEN):
            if kind in self.items:
                self._write(backend, kind, name)
        for kind in WEIGHTS_ONLY:
            if kind in self.items:
                write_once(self.folder, name, kind, partial(backend.rows, kind, self.items[kind], _label(kind, name)))

    def _leave_out_rejected(self, backend: Backend) -> None:
        """Leave out conversations that the model's chat template rejects."""
        every = [item for items in self.items.values() for item in items]
        talks = {item.id: item for item in every if isinstance(item, Example) and item.turns is not None}
        left_out = talks.keys() - {example.id for example in backend.accepted(list(talks.values()))}
        for kind, items in list(self.items.items()) if left_out else ():
            self.items[kind] = [item for item in items if getattr(item, "id", None) not in left_out]
        self.items = {kind: items for kind, items in self.items.items() if items}

    def answer_tokens(self, kind: Kind) -> int:
        """Return the maximum number of tokens of an answer of this kind."""
        return SUITE_TOKENS if kind in GRADES_OF else self.spec.max_new_tokens

    def _is_stored(self, name: str, kind: Kind) -> bool:
        return path_of(self.folder, name, kind).is_file()

    def _score(
        self, backend: Backend, decision: DecisionKind, likelihood: LikelihoodKind | None, name: str, label: str
    ) -> None:
        kinds = [kind for kind in (decision, likelihood) if kind in self.items and not self._is_stored(name, kind)]
        if not kinds:
            return
        with ExitStack() as stack:
            by_kind = {kind: stack.enter_context(self._rows(name, kind)) for kind in kinds}
            of_task = {"decision": by_kind.get(decision), "likelihood": by_kind.get(likelihood) if likelihood else None}
            decided, scored = (rows.left if rows else [] for rows in of_task.values())

            def keep(task: Literal["decision", "likelihood"], row: Row) -> None:
                rows = of_task[task]
                assert rows is not None, f"no {task} was requested"
                rows.keep(row)

            backend.score(decided, scored, label, keep)
        if decision in by_kind:
            rows = by_kind[decision].rows.values()
            by_word = sum(row.get("by") == "word" for row in rows)
            if by_word:
                print(
                    f"{by_word} of {len(rows)} {TITLES[decision]} of {name} are based on the written text, because the "
                    "API returned no likelihoods. Therefore, the calibration error can't be measured.",
                    file=sys.stderr,
                )
            _report_unclear(decision, name, rows)

    def _write(self, backend: Backend, kind: Kind, name: str) -> None:
        if self._is_stored(name, kind):
            return
        with self._rows(name, kind) as rows:
            examples = {example.id: example for example in rows.items}

            def keep(id: str, text: str, omitted_passages: int) -> None:
                if kind == "written":
                    rows.keep(written_row(id, examples[id].decision, text))
                elif kind == "safety":
                    rows.keep(self.messages[id].row(text))
                else:
                    rows.keep(answer_row(examples[id], text, omitted_passages))

            if kind == "written":
                # An API returns the text of a decision together with its likelihoods.
                for row in read_jsonl(path_of(self.folder, name, "decision")):
                    if "text" in row and row["id"] not in rows.rows:
                        keep(row["id"], row["text"], 0)
                backend.write(rows.left, "decision", DECISION_TOKENS, _label(kind, name), keep)
            else:
                backend.write(rows.left, "answer", self.answer_tokens(kind), _label(kind, name), keep)
        if kind == "written":
            _report_unclear(kind, name, rows.rows.values())
        elif kind != "safety":
            empty = [id for id, row in rows.rows.items() if not row["prediction"].strip()]
            if empty:
                print(
                    f"{name} gave empty answers to {len(empty)} items, such as {empty[0]}: it stopped at once, or "
                    "wrote only whitespace. These answers are scored as empty texts.",
                    file=sys.stderr,
                )

    def _rows(self, name: str, kind: Kind) -> StoredRows:
        rows: StoredRows = StoredRows(path_of(self.folder, name, kind), self.items[kind], self.can.resumes)
        if rows.rows and rows.left:
            done = f"{len(rows.rows)} of {len(rows.items)} are done"
            print(f"Resuming the {TITLES[kind]} of {name}: {done}.", file=sys.stderr)
        return rows


class StoredRows:
    """The finished rows of one kind, which are written to the file at the end of the `with` block, in the items' order.

    With `resumes`, rows are stored in FILE.begun until then. `finish` converts the rows by id to the rows of the file.
    """

    def __init__(
        self,
        path: Path,
        items: Sequence[Any],
        resumes: bool,
        finish: Callable[[Mapping[str, Row]], Iterable[Row]] | None = None,
    ) -> None:
        self.path, self.items = path, items
        self._finish = finish or (lambda rows: (rows[item.id] for item in items))
        self._begun = path.with_name(f"{path.name}.begun") if resumes else None
        self._is_begun = False
        self.rows: dict[str, Row] = {}
        """The finished rows by id, initially those of an interrupted evaluation"""
        text = (
            self._begun.read_text(encoding="utf-8", errors="replace") if self._begun and self._begun.is_file() else ""
        )
        for line in text.split("\n"):
            try:
                row = json.loads(line)
                self.rows[row["id"]] = row
            except (ValueError, KeyError, TypeError):  # an incomplete line
                continue

    @property
    def left(self) -> list[Any]:
        """The items without a row."""
        return [item for item in self.items if item.id not in self.rows]

    def keep(self, row: Row) -> None:
        """Store a finished row, even if it arrives after an error has ended the `with` block."""
        if self._begun:
            # The file is created only for the first row, so that a rejected first request leaves no file behind.
            if not self._is_begun:
                write_jsonl(self._begun, self.rows.values())  # removes an incomplete line that a killed program left
                self._is_begun = True
            append_jsonl(self._begun, row)
        self.rows[row["id"]] = row

    def __enter__(self) -> StoredRows:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            write_jsonl(self.path, self._finish(self.rows))
            if self._begun:
                self._begun.unlink(missing_ok=True)


def _label(kind: Kind, name: str) -> str:
    title = TITLES[kind]
    return f"{title[:1].upper()}{title[1:]} of {name}"


def _report_unclear(kind: Kind, name: str, rows: Collection[Row]) -> None:
    unclear = sum(row["prediction"] is None for row in rows)
    if unclear:
        print(
            f"{unclear} of {len(rows)} {TITLES[kind]} of {name} are neither yes, no nor maybe, and count as wrong.",
            file=sys.stderr,
        )


# Items


def decided_on(
    examples: Sequence[Example], dev: Sequence[Example], spec: EvaluateSpec, retrieved: Sequence[Example] = ()
) -> dict[DecisionKind, list[Example]]:
    """Return the examples for each kind of decision, as the model sees them; kinds without examples are absent.

    `dev` are the examples to fit on, which are used only if something is fitted. `retrieved` contains the examples with
    retrieved passages instead of the given context.
    """
    kinds: dict[DecisionKind, list[Example]] = {"decision": _decided(examples)}
    if spec.fits_decisions:
        kinds["dev_decision"] = _decided(dev)
    for condition, items in under_conditions(examples, spec, retrieved).items():
        kinds[condition] = _decided(items)
    return {kind: items for kind, items in kinds.items() if items}


def under_conditions(
    examples: Sequence[Example], spec: EvaluateSpec, retrieved: Sequence[Example] = ()
) -> dict[Condition, list[Example]]:
    """Return condition -> examples as the model sees them, for each condition that is measured.

    Only examples with a context are also asked closed book.
    """
    ids = {example.id for example in examples}
    closed = [example.model_copy(update={"context": ()}) for example in examples if example.context]
    kinds: dict[Condition, list[Example]] = {
        "closed": closed if spec.closed_book else [],
        "retrieved": [example for example in retrieved if example.id in ids],
    }
    return {kind: items for kind, items in kinds.items() if items}


def _decided(examples: Sequence[Example]) -> list[Example]:
    return [example for example in examples if example.decision]


def chosen_answers(examples: Sequence[Example], count: int | None, seed: int) -> list[Example]:
    """Return the examples whose long answers are scored: a seeded subset in the original order."""
    return sample([example for example in examples if example.answer.strip()], count, f"{seed}/answers")


def coverage_remarks(predictions: Predictions, name: str, examples: Sequence[Example], recipe: Recipe) -> list[str]:
    """Return sentences about what is missing in a model's stored predictions.

    Raises DataError if the id of a prediction isn't among `examples`, or if a prediction and its example have different
    references, because such predictions were made from different data.
    """
    known = {example.id: example for example in examples}
    answered = chosen_answers(examples, recipe.evaluate.answers, recipe.seed)
    decided = [example.id for example in examples if example.decision]
    asked = [example.id for example in answered]
    expected = {"decision": decided, "likelihood": asked, "answer": asked, "rating": asked}
    found = []
    for kind, ids in expected.items():
        rows: list[dict[str, Any]] = getattr(predictions, kind)
        if not rows:
            continue
        _refuse_unknown_items(rows, known, f"{name}-{kind}.jsonl")
        predicted = {row["id"] for row in rows} | set(predictions.no_reference if kind == "answer" else ())
        missing = [each for each in ids if each not in predicted]
        if missing:
            found.append(
                f"{len(missing)} of {len(ids)} items have no prediction in {name}-{kind}.jsonl ({list_ids(missing)}); "
                "the metrics cover only the others."
            )
    if predictions.no_reference:
        found.append(
            f"{len(predictions.no_reference)} answers in {name}-answer.jsonl have an empty reference "
            f"({list_ids(predictions.no_reference)}) and are left out of the metrics."
        )
    return found


def unmeasured_ids(examples: Sequence[Example]) -> list[str]:
    """Return a list with one sentence if any test items have neither an answer nor a decision, else an empty list."""
    without = [example.id for example in examples if not (example.answer.strip() or example.decision or example.label)]
    if not without:
        return []
    return [
        f"{len(without)} of {len(examples)} items have neither an answer nor a decision to measure "
        f"({list_ids(without)})."
    ]


def _refuse_unknown_items(rows: Sequence[dict[str, Any]], known: Mapping[str, Example], file: str) -> None:
    unknown = [row["id"] for row in rows if row["id"] not in known]
    if unknown:
        raise DataError(
            f"{file}: {len(unknown)} of {len(rows)} predictions are for items that aren't in the test data "
            f"({list_ids(unknown)}). Evaluate the model again, or remove these predictions."
        )
    changed = [row["id"] for row in rows if row.get("reference") not in _references(known[row["id"]])]
    if changed:
        raise DataError(
            f"{file}: {len(changed)} of {len(rows)} predictions have a different reference from the data "
            f"({list_ids(changed)}). The data or the file has changed: evaluate the model again."
        )


def _references(example: Example) -> list[str | None]:
    return [None, example.decision, example.answer, *example.references()]
