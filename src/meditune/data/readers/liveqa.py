"""LiveQA-Medical (TREC 2017): consumers' health questions with reference answers.

Ben Abacha et al., "Overview of the Medical Question Answering Task at TREC 2017 LiveQA"
(https://trec.nist.gov/pubs/trec26/papers/Overview-QA.pdf),
https://github.com/abachaa/LiveQA_MedicalTask_TREC2017. The reader supports both training layouts and both versions of
the test file.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from meditune.data.example import Example, problem_in_text
from meditune.data.readers.medquad import children, parse_xml, texts, tidy, xml_files
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError

SOURCE = "liveqa"
LICENCE = "not stated; cite Ben Abacha et al. 2017"
MAX_QUESTIONS = 5000
"""Limit for one file; each question is compared with all earlier ones, which would take hours with many more"""
SAME_WORDS = 0.6
"""Questions that share this part of all their words count as one (in these files, 0.69 and above are retypings)"""

_ROLES = (  # the version with summaries comes first: it replaces the plain test file
    ("test", "test-questions-w-summaries.xml"),
    ("test", "medical-test.xml"),
    ("train-1", "train-1.xml"),
    ("train-2", "train-2.xml"),
)


def read(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield the test questions, then the training pairs, from the publisher's folder or zip (or one of the files).

    The question is SUBJECT and MESSAGE on separate lines (MESSAGE alone if the SUBJECT is empty or repeated at its
    start). A test question is one Example with the first reference as its answer; a training Example is one question
    with one answer. Each meta has `subject`, `paraphrase`, `summary`, `focus` (list), `question_type`
    (list), `references` (list of {answer, url, comment}), `split_hint` ("train" or "test"), `licence`.

    Repeated questions, exact or nearly so, share a `group`, so they stay in the same split. Training pairs whose
    question is also a test question have its id as `meta["test_question"]`: `official_split` leaves them out. Raises
    DataError if there are no LiveQA files.
    """
    files = _by_role(xml_files(path))
    if not files:
        raise DataError(f"{path}: no TREC-2017-LiveQA-Medical XML files here. Give the publisher's folder or zip.")
    groups = _Groups()
    seen: set[str] = set()
    for role, (name, data) in files.items():
        try:
            root = parse_xml(data)
        except ValueError as error:
            raise DataError(f"{path} ({name}): {error}. The file may be truncated; download it again.") from error
        questions = list(children(root, "NLM-QUESTION"))
        if not questions:
            raise DataError(
                f"{path} ({name}): no questions in this file. It isn't the publisher's file; download it again."
            )
        if len(questions) > MAX_QUESTIONS:
            raise DataError(
                f"{path} ({name}): {len(questions):,} questions, but the publisher's files have a few hundred. Use "
                "the source own for files of your own."
            )
        for number, question in enumerate(questions, start=1):
            identifier = question.get("qid") or question.get("questionid") or str(number)
            where = f"{name}, question {identifier}"
            text = _question(question)
            if not text:
                rejects.add(SOURCE, where, "no question", "")
                continue
            group = groups.group_of(text, f"{role}:{identifier}")
            make = _test_examples if role == "test" else _training_examples
            for example in make(question, f"{SOURCE}-{role}:{identifier}", text, group):
                if problem := problem_in_text([example.question, example.answer]):
                    rejects.add(SOURCE, where, problem, example.id)
                elif not example.answer:
                    rejects.add(SOURCE, where, "no answer", example.question)
                elif example.id in seen:
                    rejects.add(SOURCE, where, "duplicate id", example.id)
                else:
                    seen.add(example.id)
                    yield example


def official_split(examples: Iterable[Example]) -> tuple[list[Example], list[Example]]:
    """Return the training pairs whose question isn't a test question, and the test questions.

    The publisher's training files repeat 16 of the 104 test questions; training on them would inflate the results.
    """
    train, test = [], []
    for example in examples:
        if example.meta.get("split_hint") == "test":
            test.append(example)
        elif "test_question" not in example.meta:
            train.append(example)
    return train, test


class _Groups:
    """An assignment of the same group to questions with nearly the same words."""

    def __init__(self) -> None:
        self._known: list[tuple[frozenset[str], str]] = []

    def group_of(self, text: str, new_group: str) -> str:
        words = frozenset(re.findall(r"\w+", text.casefold()))
        alike = max(self._known, key=lambda known: _overlap(words, known[0]), default=None)
        if alike is not None and _overlap(words, alike[0]) >= SAME_WORDS:
            new_group = alike[1]
        self._known.append((words, new_group))
        return new_group


def _overlap(first: frozenset[str], second: frozenset[str]) -> float:
    return len(first & second) / max(1, len(first | second))


def _by_role(files: Iterable[tuple[PurePosixPath, bytes]]) -> dict[str, tuple[PurePosixPath, bytes]]:
    found = {name.name.lower(): (name, data) for name, data in files}
    by_role: dict[str, tuple[PurePosixPath, bytes]] = {}
    for role, ending in _ROLES:
        matching = sorted(name for name in found if name.endswith(ending))
        if matching:
            by_role.setdefault(role, found[matching[0]])
    return by_role


def _question(question: ET.Element) -> str:
    subject = next(iter(texts(question, "SUBJECT")), "")
    message = next(iter(texts(question, "MESSAGE")), "")
    if subject and not message.casefold().startswith(subject.casefold()):
        return f"{subject}\n{message}".strip()
    return message


def _test_examples(question: ET.Element, identifier: str, text: str, group: str) -> Iterator[Example]:
    references = []
    for reference in children(question, "ReferenceAnswer", "RefAnswer"):
        answer = "\n".join(_unwrapped(each) for each in children(reference, "ANSWER"))
        if answer:
            url, comment = ("".join(texts(reference, name)) for name in ("AnswerURL", "COMMENT"))
            references.append({"answer": answer, "url": url, "comment": comment})
    yield _example(question, question, identifier, text, group, "test", references)


def _training_examples(question: ET.Element, identifier: str, text: str, group: str) -> Iterator[Example]:
    several = len(list(children(question, "ANSWER"))) > 1
    position = 0
    for part in children(question, "SUB-QUESTION"):
        for answer in children(part, "ANSWER"):
            position += 1
            fallback = f"{identifier}-{position}" if several else identifier
            own = answer.get("answerid")
            pair = f"{identifier.split(':')[0]}:{own}" if own else fallback
            body = _unwrapped(answer)
            references = [{"answer": body, "url": "", "comment": ""}] if body else []
            yield _example(question, part, pair, text, group, "train", references)


def _unwrapped(element: ET.Element) -> str:
    """Return the text with wrapped lines joined (the test file wraps anywhere), but paragraphs and list items kept."""
    return tidy(re.sub(r"(?<=\S)[ \t]*\n[ \t]*(?=\S)", " ", "".join(element.itertext())))


def _example(
    question: ET.Element,
    annotated: ET.Element,
    identifier: str,
    text: str,
    group: str,
    split: str,
    references: list[dict[str, str]],
) -> Example:
    meta = {
        "subject": next(iter(texts(question, "SUBJECT")), ""),
        "paraphrase": next(iter(texts(question, "NIST-PARAPHRASE")), ""),
        "summary": next(iter(texts(question, "NLM-Summary")), ""),
        "focus": texts(annotated, "FOCUS"),
        "question_type": [kind.casefold() for kind in texts(annotated, "TYPE")],
        "references": references,
        "split_hint": split,
        "licence": LICENCE,
    }
    if split == "train" and group.startswith("test:"):
        meta["test_question"] = group.removeprefix("test:")
    return Example(
        id=identifier,
        source=SOURCE,
        question=text,
        answer=references[0]["answer"] if references else "",
        group=group,
        meta=meta,
    )
