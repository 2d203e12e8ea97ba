"""The public medical tests that a recipe can name: where their files are, and how they are read and scored."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditune.config.recipe import SuiteName, SuiteSpec
from meditune.data.example import Example
from meditune.data.readers import pubmedqa
from meditune.data.readers.tables import Rejects, Row
from meditune.data.readers.user_files import hub_rows
from meditune.data.sources import data_places, locate_own, locate_source
from meditune.errors import DataError
from meditune.evaluate.predictions import Kind, suite_kind
from meditune.evaluate.suites import suite_readers as readers

BY_LETTERS = "by likelihood, letters and full options"
BY_WORDS = "by likelihood, of the words"


@dataclass(frozen=True)
class Suite:
    """A public medical test."""

    name: SuiteName
    title: str
    licence: str
    homepage: str
    files: tuple[str, ...]
    """Names or patterns of the publisher's files; the first that exists is used"""
    how: str
    """How to get the files"""
    scoring: str
    hub: tuple[tuple[str | None, str], ...] = ((None, "test"),)
    """Configurations and splits that are read from a data set of the hub"""
    make: readers.Make | None = None
    read: Callable[[Path, Rejects], list[Example]] | None = None
    """Reads files that can't be read row by row with `make`"""
    labels: tuple[str, ...] = ()
    """Names or patterns of the file with physicians' labels of answers"""
    label: Callable[[Mapping[str, Any]], dict[str, Any] | None] | None = None

    @property
    def kind(self) -> Kind:
        """The kind of its predictions."""
        return suite_kind(self.name)


SUITES: dict[SuiteName, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "medqa",
            "MedQA",
            "MIT",
            "https://github.com/jind11/MedQA",
            (
                "**/4_options/phrases_no_exclude_test.jsonl",
                "phrases_no_exclude_test.jsonl",
                "test.jsonl",
                "**/test*.parquet",
            ),
            "Get data_clean.zip from https://github.com/jind11/MedQA and unpack it (the test is "
            "questions/US/4_options/phrases_no_exclude_test.jsonl)",
            BY_LETTERS,
            make=readers.medqa,
        ),
        Suite(
            "medmcqa",
            "MedMCQA",
            "MIT",
            "https://github.com/medmcqa/medmcqa",
            ("dev.json", "**/dev.json", "dev.jsonl", "**/validation*.parquet"),
            "Get data.zip from https://github.com/medmcqa/medmcqa and unpack it (the answers of its test set aren't "
            "public, so dev.json is measured)",
            BY_LETTERS,
            ((None, "validation"),),
            readers.medmcqa,
        ),
        Suite(
            "mmlu-medical",
            "MMLU, medical subjects",
            "MIT",
            "https://github.com/hendrycks/test",
            ("**/*_test.csv", "test.jsonl", "**/test*.parquet"),
            "Get data.tar from https://github.com/hendrycks/test and unpack it (the tests are test/SUBJECT_test.csv)",
            BY_LETTERS,
            tuple((subject, "test") for subject in readers.MMLU_SUBJECTS),
            readers.mmlu,
        ),
        Suite(
            "pubmedqa",
            "PubMedQA",
            "MIT",
            "https://github.com/pubmedqa/pubmedqa",
            ("ori_pqal.json", "pqa_labeled/*.parquet", "pqa_*.parquet", "pqa_*.jsonl"),
            "Get data/ori_pqal.json and data/test_ground_truth.json from https://github.com/pubmedqa/pubmedqa",
            BY_WORDS,
            (("pqa_labeled", "train"),),
            read=readers.read_pubmedqa,
        ),
        Suite(
            "bioasq-yesno",
            "BioASQ, yes/no questions",
            "CC BY 2.5",
            "http://participants-area.bioasq.org/datasets/",
            ("*golden*.json", "**/*golden*.json", "training*.json", "**/training*.json"),
            "Register at http://participants-area.bioasq.org and get the golden files of task b, such as "
            "Task11BGoldenEnriched",
            BY_WORDS,
            make=readers.bioasq,
        ),
        Suite(
            "medhallu",
            "MedHallu",
            "MIT",
            "https://huggingface.co/datasets/UTAustin-AIHealth/MedHallu",
            (
                *("pqa_labeled/*.parquet", "pqa_labeled*.parquet", "pqa_labeled*.jsonl"),
                *("pqa_*/*.parquet", "pqa_*.parquet", "pqa_*.jsonl", "training_half.jsonl"),
            ),
            'Get the folder pqa_labeled of Hugging Face\'s "UTAustin-AIHealth/MedHallu"',
            "by likelihood, true against hallucinated answer",
            (("pqa_labeled", "train"),),
            readers.medhallu,
        ),
        Suite(
            "k-qa",
            "K-QA",
            "MIT",
            "https://github.com/Itaymanes/K-QA",
            ("**/questions_w_answers.jsonl",),
            "Get the folder dataset of https://github.com/Itaymanes/K-QA (questions_w_answers.jsonl, and "
            "NLI_medical_annotator.csv for the judge's agreement)",
            "written answers, must-have and nice-to-have statements judged",
            make=readers.k_qa,
            labels=("NLI_medical_annotator.csv", "**/NLI_medical_annotator.csv"),
            label=readers.k_qa_labels,
        ),
        Suite(
            "medicationqa",
            "MedicationQA",
            "not stated",
            "https://github.com/abachaa/Medication_QA_MedInfo2019",
            ("MedInfo2019*.csv", "**/MedInfo2019*.csv", "*.csv", "**/*.parquet"),
            "Get MedInfo2019-QA-Medications.xlsx from https://github.com/abachaa/Medication_QA_MedInfo2019 and save "
            "its sheet as CSV in UTF-8",
            "written answers, sentences of the reference answer judged",
            ((None, "train"),),
            readers.medicationqa,
        ),
        Suite(
            "healthbench",
            "HealthBench",
            "MIT",
            "https://github.com/openai/simple-evals",
            ("*oss_eval.jsonl", "hard_*.jsonl", "consensus_*.jsonl"),
            "Get the file named in healthbench_eval.py of https://github.com/openai/simple-evals, "
            "2025-05-07-06-14-12_oss_eval.jsonl, and the meta evaluation for the judge's agreement",
            "written answers, rubric criteria judged",
            make=readers.healthbench,
            labels=("*meta_eval*.jsonl",),
            label=readers.healthbench_labels,
        ),
    )
}


def suite_of(kind: str) -> Suite:
    """Return the suite of a kind of predictions."""
    return next(suite for suite in SUITES.values() if suite.kind == kind)


def read_suite(spec: SuiteSpec, seed: int, rejects: Rejects) -> tuple[list[Example], str]:
    """Return the items to measure, a seeded sample if the recipe limits them, and where they come from.

    Raises DataError, with the way to get the files, if there are none or no row is usable.
    """
    suite = SUITES[spec.name]
    place = locate_suite(suite, spec.path)
    if isinstance(place, Path) and suite.read:
        examples = suite.read(place, rejects)
    elif suite.name == "pubmedqa":
        every = pubmedqa.from_rows(
            ((where, row, pubmedqa.LABELED) for where, row in _rows(suite, place, rejects)), rejects
        )
        examples = readers.official_pubmedqa(every)
    else:
        assert suite.make, f"{suite.name} has no reader"
        examples = readers.examples_of(suite.name, _rows(suite, place, rejects), suite.make, rejects)
    if not examples:
        reasons = ", ".join(f"{count} rows: {why}" for why, count in rejects.counts().get(suite.name, {}).items())
        raise DataError(
            f"evaluate.suites: no usable rows of {suite.name} in {place}{f' ({reasons})' if reasons else ''}. "
            f"{suite.how}."
        )
    if spec.limit is not None and len(examples) > spec.limit:
        chosen = random.Random(f"{seed}/{suite.name}").sample(range(len(examples)), spec.limit)
        examples = [examples[index] for index in sorted(chosen)]
    return examples, str(place)


def locate_suite(suite: Suite, path: str | None) -> Path | str:
    """Return the suite's file or folder, or a hub id as given. Raises DataError if there are no files."""
    if path is not None:
        found = locate_own(path, suite.homepage)
        return Path(found) if Path(found).exists() else found
    if suite.name == "pubmedqa":
        return locate_source("pubmedqa")
    places = data_places(suite.name)
    for place in places:
        if _files(suite, place):
            return place
    raise DataError(
        f"evaluate.suites: no files of {suite.name} in {' or '.join(map(str, places))}. {suite.how}, and put it into "
        f"{places[-1]}, or name its place: --set 'evaluate.suites=[{{name: {suite.name}, path: FOLDER}}]'."
    )


def _files(suite: Suite, place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    for pattern in suite.files if place.is_dir() else ():
        found = sorted(place.glob(pattern))
        if suite.name == "mmlu-medical":
            subjects = readers.MMLU_SUBJECTS
            found = [
                file
                for file in found
                if file.suffix == ".jsonl"
                or file.stem.removesuffix("_test") in subjects
                or file.parent.name in subjects
            ]
        if found:
            return found
    return []


def _rows(suite: Suite, place: Path | str, rejects: Rejects) -> Iterator[Row]:
    if isinstance(place, str):
        for config, split in suite.hub:
            yield from hub_rows(place, split, config)
        return
    files = _files(suite, place)
    if not files:
        raise DataError(f"{place}: none of {', '.join(suite.files)} here. {suite.how}.")
    for file in files:
        if suite.name == "mmlu-medical" and file.suffix == ".csv":
            yield from readers.mmlu_csv_rows(file)
        elif suite.name == "medmcqa":
            yield from readers.medmcqa_rows(readers.table_rows(file, suite.name, rejects))
        else:
            yield from readers.table_rows(file, suite.name, rejects)


MAX_LABELS = 200
"""Number of physicians' labels on which a judge's agreement is measured, a seeded sample"""


def read_labels(suite: Suite, place: str, seed: int, rejects: Rejects) -> list[dict[str, Any]]:
    """Return physicians' labels of answers: `id`, `question`, `turns`, `answer`, `statement` and `label`.

    The label is yes, no or maybe. The result is empty if the suite has no such labels or their file isn't there.
    """
    folder = Path(place) if Path(place).is_dir() else Path(place).parent
    if suite.label is None or not folder.is_dir() or not Path(place).exists():
        return []
    files = next((some for pattern in suite.labels if (some := sorted(folder.glob(pattern)))), [])
    found = [suite.label(row) for file in files for _, row in readers.table_rows(file, suite.name, rejects)]
    labels = [dict(row, id=f"label-{number}") for number, row in enumerate(found) if row]
    if len(labels) > MAX_LABELS:
        chosen = random.Random(f"{seed}/{suite.name}/labels").sample(range(len(labels)), MAX_LABELS)
        labels = [labels[index] for index in sorted(chosen)]
    return labels
