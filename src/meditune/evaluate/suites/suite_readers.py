"""Readers for files of public medical tests, in the layouts of the publishers and of the Hugging Face hub.

A reader converts one row to an Example. The example's `meta` contains the texts of the choices (`choices`) and the
0-based index of the correct choice (`correct`), or the statements by which an open answer is graded (`statements`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from meditune.config.recipe import SuiteName
from meditune.data.example import (
    CHOICES,
    DECISIONS,
    EXAM_SUBJECT,
    Example,
    Passage,
    Role,
    Turn,
    problem_in_text,
)
from meditune.data.readers import pubmedqa
from meditune.data.readers.claims import medhallu_item
from meditune.data.readers.tables import Rejects, Row, open_unchanging, refuse_other_kinds, rows
from meditune.data.readers.user_files import cell
from meditune.errors import DataError
from meditune.files import numbered_jsonl, parse_json, read_text
from meditune.text import sentences

CORRECT, STATEMENTS, QUESTION_TYPE = "correct", "statements", "question_type"
LETTERS = ("A", "B", "C", "D")
MMLU_SUBJECTS = (
    *("anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics"),
    "professional_medicine",
)
"""The medical subjects of MMLU, as in MultiMedQA (Singhal et al. 2023, https://doi.org/10.1038/s41586-023-06291-2)"""
MAX_STATEMENTS = 12
"""Maximum number of sentences of a reference answer that are used as statements"""
NOT_ANSWERED = ("", "no answers", "unanswerable")
"""Texts in MedicationQA's column of answers, in lowercase, of questions without a reference answer"""
Make = Callable[[Mapping[str, Any], str], Example | str]
"""A function that converts a row and its number (as text) to an example, or returns the reason to reject the row"""


def table_rows(path: Path, suite: str, rejects: Rejects) -> Iterator[Row]:
    """Yield the rows of a file; a .json file can contain JSON Lines, a list, or an object with the list `questions`.

    Raises DataError if the file can't be read.
    """
    if path.suffix.lower() != ".json":
        yield from rows(path, suite, rejects)
        return
    with open_unchanging(path):
        refuse_other_kinds(path)
        text = read_text(path)
        if len([line for line in text.splitlines() if line.strip().startswith("{") and line.strip().endswith("}")]) > 1:
            for number, row in numbered_jsonl(path):
                yield f"{path}:{number}", row
            return
        value = parse_json(text, path)
        found = value.get("questions", [value]) if isinstance(value, dict) else value
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise DataError(f"{path}: expected a list of questions. Copy the publisher's file again.")
        for number, row in enumerate(found, start=1):
            yield f"{path}, item {number}", row


def examples_of(suite: str, found: Iterable[Row], make: Make, rejects: Rejects) -> list[Example]:
    """Return the examples that `make` creates from the rows; rejected rows and repeated ids go to `rejects`."""
    examples: dict[str, Example] = {}
    for number, (where, row) in enumerate(found, start=1):
        problem = problem_in_text(row)
        made = problem or make(row, str(number))
        if isinstance(made, Example) and made.id in examples:
            made = "duplicate id"
        if isinstance(made, Example):
            examples[made.id] = made
        else:
            rejects.add(suite, where, made, row)
    return list(examples.values())


def with_choices(
    suite: str,
    identifier: str,
    question: object,
    choices: Sequence[object],
    correct: int | None,
    subject: str = "",
    **meta: Any,
) -> Example | str:
    """Return a multiple-choice question, or the reason why the row can't be used. Texts aren't stripped."""
    if not isinstance(question, str) or not question.strip():
        return "no question"
    texts = [choice for choice in choices if isinstance(choice, str) and choice.strip()]
    if len(texts) != len(choices) or len(texts) < 2:
        return "a choice without text"
    if len(texts) > len(LETTERS):
        return "more than four choices"
    if correct is None or not 0 <= correct < len(texts):
        return "no correct choice"
    subjects = {EXAM_SUBJECT: [subject]} if subject else {}
    more = {key: value for key, value in meta.items() if value}
    return _item(suite, identifier, question, texts[correct], {CHOICES: texts, CORRECT: correct} | subjects | more)


def _item(suite: str, identifier: str, question: str, answer: str, meta: dict[str, Any], **fields: Any) -> Example:
    return Example(
        id=f"{suite}:{identifier}",
        source=suite,
        question=question,
        answer=answer,
        group=identifier,
        meta=meta,
        **fields,
    )


def _options(row: Mapping[str, Any]) -> list[object]:
    """Return the texts of a row's options, from an object {A: ..., B: ...} or a list."""
    options = row.get("options") or row.get("choices") or []
    return [options[key] for key in sorted(options)] if isinstance(options, Mapping) else list(options)


def _place(letter: object) -> int | None:
    return LETTERS.index(letter) if letter in LETTERS else None


def medqa(row: Mapping[str, Any], number: str) -> Example | str:
    """Convert a row of `phrases_no_exclude_test.jsonl`, or of the hub's `GBaker/MedQA-USMLE-4-options-hf`."""
    if "sent1" in row:
        label = row.get("label")
        choices = [row.get(f"ending{index}") for index in range(4)]
        return with_choices("medqa", str(row.get("id") or number), row["sent1"], choices, _integer(label))
    step = cell(row.get("meta_info"))
    return with_choices("medqa", number, row.get("question"), _options(row), _place(row.get("answer_idx")), step)


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def medmcqa_rows(found: Iterable[Row]) -> Iterator[Row]:
    """Yield the rows with `cop`, the index of the correct option, converted to 0-based.

    `cop` is 1-based in the publisher's files, and 0-based in the hub's Parquet files. Raises DataError if a file
    contains both 0 and 4. Raises it also if a file contains neither and isn't Parquet, for example a short excerpt.
    """
    every = list(found)
    places = {row["cop"] for _, row in every if _integer(row.get("cop")) is not None}
    if {0, 4} <= places:
        raise DataError(f"{every[0][0]}: `cop` contains both 0 and 4. Use files from a single publisher.")
    is_parquet = bool(every) and ".parquet, row " in every[0][0]
    if places and not places & {0, 4} and not is_parquet:
        raise DataError(
            f"{every[0][0]}: no row has 0 or 4 in `cop`, so it's unclear whether `cop` is 0-based or "
            "1-based. Use the publisher's complete file, or replace the columns opa to opd and cop by `options` (a "
            "list of texts) and `answer` (the letter of the correct option)."
        )
    first = 0 if 0 in places or is_parquet else 1
    for where, row in every:
        place = _integer(row.get("cop"))
        yield where, row | ({} if place is None else {"cop": place - first})


def medmcqa(row: Mapping[str, Any], number: str) -> Example | str:
    """Convert a row of `dev.json` whose `cop` is 0-based already, or a row with `options` and `answer`."""
    identifier = cell(row.get("id")) or number
    subject = cell(row.get("subject_name")) or cell(row.get("subject"))
    kind = {QUESTION_TYPE: [cell(row.get("choice_type"))]} if cell(row.get("choice_type")) else {}
    if "opa" in row:
        choices: list[object] = [row.get(key) for key in ("opa", "opb", "opc", "opd")]
        return with_choices(
            "medmcqa", identifier, row.get("question"), choices, _integer(row.get("cop")), subject, **kind
        )
    correct = _place(row.get("answer"))
    return with_choices("medmcqa", identifier, row.get("question"), _options(row), correct, subject, **kind)


def mmlu_csv_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of the publisher's `SUBJECT_test.csv`, which has no header: question, four choices, letter."""
    import csv

    subject = re.sub(r"_test$", "", path.stem)
    with open_unchanging(path), path.open(encoding="utf-8-sig", newline="") as stream:
        refuse_other_kinds(path)
        for number, fields in enumerate(csv.reader(stream), start=1):
            if len(fields) != 6:
                raise DataError(f"{path}:{number}: {len(fields)} columns instead of question, four choices and letter.")
            row = {"subject": subject, "question": fields[0], "choices": fields[1:5], "answer": fields[5].strip()}
            yield f"{path}:{number}", row | {"id": f"{subject}-{number - 1:03}"}


def mmlu(row: Mapping[str, Any], number: str) -> Example | str:
    """Convert a row of MMLU; a row of a subject that isn't medical is rejected."""
    subject = cell(row.get("subject"))
    if subject not in MMLU_SUBJECTS:
        return "not a medical subject"
    answer = row.get("answer")
    correct = _place(answer) if isinstance(answer, str) else _integer(answer)
    identifier = cell(row.get("id")) or f"{subject}-{number}"
    return with_choices("mmlu-medical", identifier, row.get("question"), _options(row), correct, subject)


def read_pubmedqa(path: Path, rejects: Rejects) -> list[Example]:
    """Return PubMedQA's 500 official test items, from the publisher's files.

    Raises DataError if the official test set can't be determined.
    """
    every = list(pubmedqa.read(path, rejects))
    file = path / pubmedqa.GROUND_TRUTH if path.is_dir() else path.parent / pubmedqa.GROUND_TRUTH
    ids = list(pubmedqa.ground_truth(file)) if file.is_file() else None
    return official_pubmedqa(every, ids)


def official_pubmedqa(every: Iterable[Example], ids: Collection[str] | None = None) -> list[Example]:
    """Return PubMedQA's official test items, with their choices. Raises the DataError of `official_split`."""
    official = pubmedqa.official_split(every, ids)[1]
    choices = [{CHOICES: list(DECISIONS), CORRECT: DECISIONS.index(str(example.decision))} for example in official]
    return [
        example.model_copy(update={"meta": example.meta | each})
        for example, each in zip(official, choices, strict=True)
    ]


def bioasq(row: Mapping[str, Any], number: str) -> Example | str:
    """Convert a yes/no question of a BioASQ file; its snippets become the context.

    In older files, some exact answers end in a full stop: "Yes.".
    """
    if row.get("type") != "yesno":
        return "not a yes/no question"
    answer = row.get("exact_answer")
    answer = answer[0] if isinstance(answer, list) and answer else answer
    word = cell(answer).lower().removesuffix(".")
    question = cell(row.get("body"))
    snippets = [cell(each.get("text")) for each in row.get("snippets") or [] if isinstance(each, Mapping)]
    ideal = row.get("ideal_answer")
    if not question or word not in DECISIONS[:2]:
        return "no question" if not question else "the exact answer is neither yes nor no"
    return _item(
        "bioasq-yesno",
        cell(row.get("id")) or number,
        question,
        cell(ideal[0] if isinstance(ideal, list) and ideal else ideal),
        {CHOICES: list(DECISIONS[:2]), CORRECT: DECISIONS.index(word)},
        context=tuple(Passage(text=text) for text in dict.fromkeys(snippets) if text),
        decision=word,
    )


def medhallu(row: Mapping[str, Any], number: str) -> Example | str:
    """Convert a row of MedHallu, with a true and a hallucinated answer; column names can also be in lower case."""
    values = medhallu_item(row)
    knowledge = values["knowledge"]
    texts = [knowledge] if isinstance(knowledge, str) else _texts(knowledge)
    pmid = cell(values.get("pmid"))
    kinds = {"difficulty": cell(values["difficulty"]), "category": cell(values["category"])}
    meta: dict[str, Any] = {QUESTION_TYPE: [f"{key}: {value}" for key, value in kinds.items() if value], "pmid": pmid}
    answers = [cell(values.get("ground truth")), cell(values.get("hallucinated answer"))]
    found = with_choices("medhallu", pmid or number, values.get("question"), answers, 0, **meta)
    if isinstance(found, str) or not any(texts):
        return found if isinstance(found, str) else "no knowledge"
    return found.model_copy(update={"context": tuple(Passage(text=text) for text in texts if text)})


def k_qa(row: Mapping[str, Any], number: str) -> Example | str:
    """Convert a row of K-QA's `questions_w_answers.jsonl`."""
    question = cell(row.get("Question"))
    must, nice = (_texts(row.get(key)) for key in ("Must_have", "Nice_to_have"))
    if not question or not must:
        return "no question" if not question else "no must-have statement"
    statements = [{"text": text, "kind": kind} for kind, texts in (("must", must), ("nice", nice)) for text in texts]
    return _item("k-qa", number, question, cell(row.get("Free_form_answer")), {STATEMENTS: statements})


def _texts(value: object) -> list[str]:
    values = [value] if isinstance(value, str) else value
    return [text for each in values if (text := cell(each))] if isinstance(values, Sequence) else []


def medicationqa(row: Mapping[str, Any], number: str) -> Example | str:
    """Convert a row of MedicationQA's table; sentences of the reference answer become the statements."""
    by_name = {" ".join(key.casefold().split()): cell(value) for key, value in row.items() if isinstance(key, str)}
    question, answer = by_name.get("question", ""), by_name.get("answer", "")
    if not question or answer.casefold() in NOT_ANSWERED:
        return "no question" if not question else "no answer"
    kind = by_name.get("question type", "")
    statements = [{"text": text, "kind": "must"} for text in sentences(answer)[:MAX_STATEMENTS]]
    meta = {STATEMENTS: statements, "focus": by_name.get("focus (drug)")} | ({QUESTION_TYPE: [kind]} if kind else {})
    return _item("medicationqa", number, question, answer, meta)


def healthbench(row: Mapping[str, Any], number: str) -> Example | str:
    """Convert a row of HealthBench, whose prompt is a conversation that ends with the user's message."""
    prompt, rubrics = row.get("prompt"), row.get("rubrics")
    if not isinstance(prompt, list) or not prompt or not isinstance(rubrics, list):
        return "no prompt or no rubrics"
    turns = conversation(prompt)
    if not turns:
        return "the last message isn't the user's, or a message has another role than system, user or assistant"
    statements: list[dict[str, Any]] = [
        {"text": cell(each.get("criterion")), "points": float(each["points"])}
        for each in rubrics
        if isinstance(each, Mapping) and cell(each.get("criterion")) and isinstance(each.get("points"), int | float)
    ]
    if not any(each["points"] > 0 for each in statements):
        return "no criterion with points"
    tags = [tag for tag in _texts(row.get("example_tags")) if tag.startswith("theme:")]
    meta = {QUESTION_TYPE: [tag.removeprefix("theme:") for tag in tags]} if tags else {}
    return _item(
        "healthbench",
        cell(row.get("prompt_id")) or number,
        turns[-1].text,
        "",
        {STATEMENTS: statements} | meta,
        turns=tuple(turns[:-1]) or None,
    )


def conversation(messages: Sequence[object]) -> list[Turn]:
    """Return the turns of a conversation that ends with the user's message; empty if `messages` isn't one."""
    turns = []
    for each in messages:
        if not isinstance(each, Mapping) or each.get("role") not in get_args(Role) or not cell(each.get("content")):
            return []
        turns.append(Turn(role=each["role"], text=cell(each["content"])))
    return turns if turns and turns[-1].role == "user" else []


def k_qa_labels(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the label in a row of K-QA's `NLI_medical_annotator.csv`: the majority on a statement, or None."""
    word = {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}.get(cell(row.get("majority_label")).lower())
    columns = {"question": "Question", "answer": "answer", "statement": "claim"}
    values = {key: cell(row.get(column)) for key, column in columns.items()}
    return values | {"turns": [], "label": word} if word and all(values.values()) else None


def healthbench_labels(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the label in a row of HealthBench's meta evaluation: the majority on a criterion, or None."""
    prompt, labels = row.get("prompt"), row.get("binary_labels")
    statement, answer = cell(row.get("rubric")), cell(row.get("completion"))
    if not isinstance(prompt, list) or not isinstance(labels, list) or not (labels and statement and answer):
        return None
    turns, met = conversation(prompt), sum(label is True for label in labels)
    if not turns or 2 * met == len(labels):
        return None
    earlier = [turn.model_dump() for turn in turns[:-1]]
    label = "yes" if 2 * met > len(labels) else "no"
    return {"question": turns[-1].text, "turns": earlier, "answer": answer, "statement": statement, "label": label}


MAKE: dict[SuiteName, Make] = {
    "medqa": medqa,
    "medmcqa": medmcqa,
    "mmlu-medical": mmlu,
    "bioasq-yesno": bioasq,
    "medhallu": medhallu,
    "k-qa": k_qa,
    "medicationqa": medicationqa,
    "healthbench": healthbench,
}
LABEL: dict[SuiteName, Callable[[Mapping[str, Any]], dict[str, Any] | None]] = {
    "k-qa": k_qa_labels,
    "healthbench": healthbench_labels,
}
