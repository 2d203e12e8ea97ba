"""LiveQA-Medical (TREC 2017): consumers' health questions with reference answers.

Ben Abacha et al., "Overview of the Medical Question Answering Task at TREC 2017 LiveQA"
(https://trec.nist.gov/pubs/trec26/papers/Overview-QA.pdf), https://github.com/abachaa/LiveQA_MedicalTask_TREC2017. The
reader supports both layouts of the training files and both versions of the test file.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from meditune.data.example import Example, problem_in_text
from meditune.data.readers.medquad import children, parse_xml, texts, tidy, xml_files
from meditune.data.readers.tables import Rejects
from meditune.errors import DataError

SOURCE = "liveqa"
LICENCE = "not stated; cite Ben Abacha et al. 2017"
MAX_QUESTIONS = 5000
"""Maximum number of questions in a file. All pairs are compared, which would take hours for a larger file"""
SAME_WORDS = 0.6
"""Two questions count as the same if they share at least this part of their distinct words; retyped questions in these
files share 0.69"""

_ROLES = (  # the version with summaries comes first, because it takes precedence over the plain test file
    ("test", "test-questions-w-summaries.xml"),
    ("test", "medical-test.xml"),
    ("train-1", "train-1.xml"),
    ("train-2", "train-2.xml"),
)


def read(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield the test questions, then the training pairs, from the publisher's folder or zip (or one of the files).

    The question is SUBJECT and MESSAGE on separate lines, or MESSAGE alone if SUBJECT is empty or MESSAGE begins with
    SUBJECT. A test question is one Example with all references; a training Example has one answer. Questions that are
    (nearly) the same share a `group`. If a training pair repeats a test question, the id of the test question is in
    `meta["test_question"]`. Raises DataError if there are no LiveQA files.
    """
    files = _by_role(xml_files(path))
    if not files:
        raise DataError(f"{path}: no TREC-2017-LiveQA-Medical XML files here. Specify the publisher's folder or zip.")
    known: list[tuple[frozenset[str], str]] = []
    seen: set[str] = set()
    for role, (name, data) in files.items():
        for number, question in enumerate(_questions(data, f"{path} ({name})"), start=1):
            identifier = question.get("qid") or question.get("questionid") or str(number)
            where = f"{name}, question {identifier}"
            subject, message = _first(question, "SUBJECT"), _first(question, "MESSAGE")
            repeats = not subject or message.casefold().startswith(subject.casefold())
            text = message if repeats else f"{subject}\n{message}".strip()
            if not text:
                rejects.add(SOURCE, where, "no question", "")
                continue
            group = _group_of(text, known, f"{role}:{identifier}")
            answered = _tested if role == "test" else _trained
            for key, annotated, references in answered(question, f"{SOURCE}-{role}:", identifier):
                answer = references[0]["answer"] if references else ""
                if problem := problem_in_text([text, answer]):
                    rejects.add(SOURCE, where, problem, key)
                elif not answer:
                    rejects.add(SOURCE, where, "no answer", text)
                elif key in seen:
                    rejects.add(SOURCE, where, "duplicate id", key)
                else:
                    seen.add(key)
                    meta = _meta(question, annotated, role) | {"references": references}
                    if role != "test" and group.startswith("test:"):
                        meta["test_question"] = group.removeprefix("test:")
                    yield Example(id=key, source=SOURCE, question=text, answer=answer, group=group, meta=meta)


def official_split(examples: Iterable[Example]) -> tuple[list[Example], list[Example]]:
    """Return the training pairs, except those for 16 questions that repeat test questions, and the test questions."""
    examples = list(examples)
    test = [example for example in examples if example.meta.get("split_hint") == "test"]
    others = (example for example in examples if example.meta.get("split_hint") != "test")
    return [example for example in others if "test_question" not in example.meta], test


def _by_role(files: Iterable[tuple[PurePosixPath, bytes]]) -> dict[str, tuple[PurePosixPath, bytes]]:
    found = {name.name.lower(): (name, data) for name, data in files}
    by_role: dict[str, tuple[PurePosixPath, bytes]] = {}
    for role, ending in _ROLES:
        matching = sorted(name for name in found if name.endswith(ending))
        if matching:
            by_role.setdefault(role, found[matching[0]])
    return by_role


def _questions(data: bytes, file: str) -> list[ET.Element]:
    try:
        questions = list(children(parse_xml(data), "NLM-QUESTION"))
    except ValueError as error:
        raise DataError(f"{file}: {error}. The file may be truncated; download it again.") from error
    if not questions:
        raise DataError(f"{file}: no questions in this file. It isn't the publisher's file; download it again.")
    if len(questions) > MAX_QUESTIONS:
        raise DataError(
            f"{file}: {len(questions):,} questions, but the publisher's files contain a few hundred. For your own "
            "files, use the source own."
        )
    return questions


def _group_of(text: str, known: list[tuple[frozenset[str], str]], new_group: str) -> str:
    """Return the group of a known question with nearly the same words, or `new_group`; add the question to `known`."""
    words = frozenset(re.findall(r"\w+", text.casefold()))
    overlaps = [len(words & other) / max(1, len(words | other)) for other, _ in known]
    if max(overlaps, default=0) >= SAME_WORDS:
        new_group = known[overlaps.index(max(overlaps))][1]
    known.append((words, new_group))
    return new_group


Answered = Iterator[tuple[str, ET.Element, list[dict[str, str]]]]
"""Id of a question, the element with its focus and type, and the reference answers"""


def _tested(question: ET.Element, prefix: str, identifier: str) -> Answered:
    references = []
    for reference in children(question, "ReferenceAnswer", "RefAnswer"):
        answer = "\n".join(_unwrapped(each) for each in children(reference, "ANSWER"))
        if answer:
            url, comment = ("".join(texts(reference, name)) for name in ("AnswerURL", "COMMENT"))
            references.append({"answer": answer, "url": url, "comment": comment})
    yield prefix + identifier, question, references


def _trained(question: ET.Element, prefix: str, identifier: str) -> Answered:
    parts = [(part, answer) for part in children(question, "SUB-QUESTION") for answer in children(part, "ANSWER")]
    several = len(list(children(question, "ANSWER"))) > 1
    for position, (part, answer) in enumerate(parts, start=1):
        key = answer.get("answerid") or (f"{identifier}-{position}" if several else identifier)
        body = _unwrapped(answer)
        yield prefix + key, part, [{"answer": body, "url": "", "comment": ""}] if body else []


def _unwrapped(element: ET.Element) -> str:
    """Return the text without line wraps, which the test file has anywhere; paragraphs and list items stay separate."""
    return tidy(re.sub(r"(?<=\S)[ \t]*\n[ \t]*(?=\S)", " ", "".join(element.itertext())))


def _first(element: ET.Element, name: str) -> str:
    return next(iter(texts(element, name)), "")


def _meta(question: ET.Element, annotated: ET.Element, role: str) -> dict[str, Any]:
    return {
        "subject": _first(question, "SUBJECT"),
        "paraphrase": _first(question, "NIST-PARAPHRASE"),
        "summary": _first(question, "NLM-Summary"),
        "focus": texts(annotated, "FOCUS"),
        "question_type": [kind.casefold() for kind in texts(annotated, "TYPE")],
        "references": [],
        "split_hint": "test" if role == "test" else "train",
        "licence": LICENCE,
    }
