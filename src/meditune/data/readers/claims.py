"""Published claims with evidence: SciFact, HealthVer, Citation-Integrity, NLI4CT and MedHallu.

The claim is the `question` of an Example, and the evidence is its `context`. The readers support the layouts of the
files in the repositories that sources.yaml names. For SciFact, `doc/data.md` describes the layout. For
Citation-Integrity, the layouts are those of `Data/multivers-format` (nine classes) and of the training files to which
the README links. For NLI4CT, the layout is that of `Complete_dataset.zip`, which is read in the same way as by the
systems of SemEval-2023 task 7.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from meditune.data.example import ANSWERED_QUESTION, LABEL, Example, Label, Passage, problem_in_text
from meditune.data.readers.tables import Rejects, Row, accepted, find_files, rows
from meditune.data.readers.user_files import LABEL_WORDS, cell, group_of, passages, with_labels
from meditune.errors import DataError
from meditune.files import read_json

SCIFACT, HEALTHVER, CITATION_INTEGRITY = "scifact", "healthver", "citation-integrity"
NLI4CT, MEDHALLU = "nli4ct", "medhallu"
LICENCES = {
    SCIFACT: "CC BY 4.0 (claims), ODC-By (abstracts)",
    HEALTHVER: "not stated; cite Sarrouti et al. 2021",
    CITATION_INTEGRITY: "MIT",
    NLI4CT: "not stated; cite Jullien et al. 2023",
    MEDHALLU: "MIT",
}
TEST_SPLITS = {SCIFACT: ("dev",), HEALTHVER: ("test",), CITATION_INTEGRITY: ("test",), NLI4CT: ("test", "dev")}
"""Source -> the published splits that can be its test set; the first one with rows is used. The labels of SciFact's
test split are not published; NLI4CT's test labels are only in the later, complete archive."""
Maker = Callable[[Mapping[str, Any]], Sequence[Example] | str]


def labelled(source: str, found: Iterable[Row], make: Maker, rejects: Rejects) -> list[Example]:
    """Return the claims that `make` creates from the rows, with the marks that `with_labels` adds."""
    return with_labels(list(accepted(source, found, make, rejects)))


def claim_of(
    source: str, identifier: str, claim: str, evidence: Sequence[Passage], label: Label, group: str, **meta: Any
) -> Example:
    """Return a claim. By default, its licence is that of the source; values of `meta` that are None are left out."""
    known = {"licence": LICENCES.get(source), LABEL: label} | meta
    return Example(
        id=f"{source}:{identifier}",
        source=source,
        question=claim,
        context=tuple(evidence),
        group=group,
        meta={key: value for key, value in known.items() if value is not None},
    )


def official_split(
    examples: Iterable[Example], test_splits: Sequence[str] = ("test",)
) -> tuple[list[Example], list[Example]]:
    """Return (rest, test): `test` is the first of `test_splits` that has rows, and `rest` is all other splits.

    Rows that share a document with a test row are left out of `rest`. Raises DataError if there are no test rows.
    """
    examples = list(examples)
    stated = {example.meta.get("split") for example in examples}
    name = next((name for name in test_splits if name in stated), None)
    if name is None:
        source = examples[0].source if examples else "this source"
        raise DataError(
            f"{source}: no rows of the published {' or '.join(test_splits)} split, which is the official test set. Add "
            "the publisher's file, or split the rows that you have: --set data.split=group."
        )
    test = [example for example in examples if example.meta.get("split") == name]
    held = {document for example in test for document in _documents(example)}
    others = (example for example in examples if example.meta.get("split") != name)
    return [example for example in others if not held.intersection(_documents(example))], test


def _documents(example: Example) -> set[str]:
    return {example.group, *example.meta.get("trials", ())}


def _split_files(path: Path, patterns: Mapping[str, str], what: str) -> dict[str, Path]:
    """Return published split -> file, for the splits that exist. Raises DataError like `find_files`."""
    if path.is_file():
        return {next((split for split in patterns if split in path.stem.lower()), path.stem): path}
    files = {}
    for split, name in patterns.items():
        with contextlib.suppress(DataError):
            files[split] = find_files(path, [name], what)[0]
    return files or {path.stem: find_files(path, patterns.values(), what)[0]}


def _corpus(folder: Path, source: str, rejects: Rejects) -> dict[str, str]:
    """Return document id -> text: the sentences of `abstract`, joined by spaces, without the title."""
    file = folder / "corpus.jsonl"
    if not file.is_file():
        raise DataError(
            f"{file}: no such file. This file contains the documents that the claims cite: "
            "copy the publisher's corpus.jsonl into the folder of the claims."
        )
    documents = {}
    for where, row in rows(file, source, rejects):
        identifier, abstract = cell(row.get("doc_id")), row.get("abstract")
        if problem := problem_in_text(row):
            rejects.add(source, where, problem, row)
        elif not identifier or not isinstance(abstract, list):
            rejects.add(source, where, "no doc_id, or the abstract isn't a list of sentences", row)
        else:
            documents[identifier] = " ".join(each.strip() for each in abstract if isinstance(each, str)).strip()
    return documents


def _rationales(row: Mapping[str, Any]) -> dict[str, set[str]] | None:
    """Return document id -> labels of its rationales; None if the row isn't in SciFact's layout."""
    evidence = row.get("evidence")
    if not isinstance(evidence, Mapping):
        return None
    found: dict[str, set[str]] = {}
    for document, rationales in evidence.items():
        if not isinstance(rationales, list) or not all(isinstance(each, Mapping) for each in rationales):
            return None
        found[str(document)] = {cell(each.get("label")) for each in rationales}
    return found


def _first_cited(row: Mapping[str, Any]) -> str:
    cited = row.get("cited_doc_ids")
    return cell(cited[0]) if isinstance(cited, list) and cited else ""


NO_CLAIM, NO_EVIDENCE = "no claim", "no evidence"
NO_RATIONALES = "evidence is not an object that maps documents to lists of rationales"
NOT_IN_CORPUS = "a document of the evidence is missing from corpus.jsonl, or empty"


def read_scifact(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield one claim for each document with evidence, with the document's abstract (without title) and label.

    A claim without evidence gets its first cited abstract and the label not_enough_information. `path` is the folder
    of `claims_train.jsonl`, `claims_dev.jsonl` and `corpus.jsonl`. The group is the document.
    """
    patterns = {"train": "claims_train.jsonl", "dev": "claims_dev.jsonl"}
    files = _split_files(path, patterns, "Unpack SciFact's data.tar.gz there.")
    corpus = _corpus(next(iter(files.values())).parent, SCIFACT, rejects)

    def make(row: Mapping[str, Any]) -> list[Example] | str:
        claim, identifier, found = cell(row.get("claim")), cell(row.get("id")), _rationales(row)
        if not claim or not identifier:
            return NO_CLAIM if not claim else "no id"
        if found is None:
            return NO_RATIONALES
        if not found and not _first_cited(row):
            return "neither evidence nor a cited document"
        claims = []
        for document, stated in (found or {_first_cited(row): {"nei"}}).items():
            label = _one_label(map(str.casefold, stated), LABEL_WORDS)
            if label is None:
                return "the labels of a document's rationales are unknown or differ"
            if not corpus.get(document):
                return NOT_IN_CORPUS
            key, evidence = f"{identifier}-{document}", (Passage(text=corpus[document]),)
            claims.append(claim_of(SCIFACT, key, claim, evidence, label, document, split=row["split"]))
        return claims

    yield from _labelled_splits(SCIFACT, files, ("id", "claim", "evidence"), make, rejects)


def _labelled_splits(
    source: str, files: Mapping[str, Path], columns: Sequence[str], make: Maker, rejects: Rejects
) -> list[Example]:
    """Return the claims in the files of the published splits; `make` gets rows to which `split` has been added."""
    found = (
        (where, row | {"split": split})
        for split, file in files.items()
        for where, row in with_columns(file, source, columns, rejects)
    )
    return labelled(source, found, make, rejects)


def _one_label(stated: Iterable[str], known: Mapping[str, Label]) -> Label | None:
    """Return the label that all the words stand for; None if a word is unknown or the labels differ."""
    labels = {known.get(word) for word in stated}
    return labels.pop() if len(labels) == 1 else None


def read_healthver(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield the claims of `healthver_train.csv`, `healthver_dev.csv` and `healthver_test.csv` with their evidence.

    The group is the claim, not the evidence, because the same evidence occurs in several published splits. Therefore,
    a run with the official split needs `evaluate.allow_leakage: [context]`. With `data.split: group`, each piece of
    evidence stays in one split.
    """
    patterns = {split: f"healthver_{split}.csv" for split in ("train", "dev", "test")}
    files = _split_files(path, patterns, "Copy the CSV files in HealthVer's data folder there.")

    def make(row: Mapping[str, Any]) -> list[Example] | str:
        claim, evidence, split = cell(row.get("claim")), cell(row.get("evidence")), str(row["split"])
        label = LABEL_WORDS.get(cell(row.get("label")).casefold())
        if not claim or not evidence:
            return NO_CLAIM if not claim else NO_EVIDENCE
        if label is None:
            return "unknown label (not Supports, Refutes or Neutral)"
        key, text = f"{split}-{cell(row.get('id'))}", (Passage(text=evidence),)
        meta = {"split": split, "topic": cell(row.get("question")) or None}
        return [claim_of(HEALTHVER, key, claim, text, label, group_of("", claim), **meta)]

    yield from _labelled_splits(HEALTHVER, files, ("id", "evidence", "claim", "label"), make, rejects)


def with_columns(file: Path, source: str, columns: Iterable[str], rejects: Rejects) -> Iterator[Row]:
    """Yield the rows of a table. Raises DataError if its first row lacks one of the columns."""
    for number, (where, row) in enumerate(rows(file, source, rejects)):
        missing = [column for column in columns if column not in row] if number == 0 else []
        if missing:
            raise DataError(
                f"{where}: no column {missing[0]!r}. The columns are {', '.join(map(repr, row))}. Use the publisher's "
                "file without changes."
            )
        yield where, row


_INACCURATE = ("NOT_ACCURATE", "CONTRADICT", "NOT_SUBSTANTIATE", "OVERSIMPLIFY", "MISQUOTE", "ETIQUETTE")
CITATION_LABELS: dict[str, Label] = {
    **dict.fromkeys(("ACCURATE", "INDIRECT", "INDIRECT_NOT_REVIEW"), "supported"),
    **dict.fromkeys(_INACCURATE, "refuted"),
    "IRRELEVANT": "not_enough_information",
}
"""Citation-Integrity's class -> label. The publisher's own files with three classes map the nine classes like this
and count indirect citations as accurate"""


def read_citation_integrity(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield the citing sentences of Citation-Integrity with the evidence sentences of the cited article.

    `claims_train.jsonl` (also dev, test) has the labels ACCURATE and NOT_ACCURATE, and no evidence for irrelevant
    citations. `claims-train.jsonl` has nine classes, and no label for claims without evidence. Both layouts
    need `corpus.jsonl`. The claims keep the publisher's marker of the judged citation, <|cit|> or <|multi_cit|>. The
    group is the cited article: the evidence of article 31 has the numbers 31000, 31001 and so on.
    """
    patterns = {split: f"claims[-_]{split}.jsonl" for split in ("train", "dev", "test")}
    files = _split_files(path, patterns, "Copy claims_train.jsonl (also dev, test) and corpus.jsonl there.")
    corpus = _corpus(next(iter(files.values())).parent, CITATION_INTEGRITY, rejects)
    nine_classes = {split for split, file in files.items() if file.name.startswith("claims-")}

    def make(row: Mapping[str, Any]) -> list[Example] | str:
        claim, split, found = cell(row.get("claim")), row["split"], _rationales(row)
        if not claim:
            return NO_CLAIM
        if found is None:
            return NO_RATIONALES
        if not found and split in nine_classes:
            return "no evidence, so the label isn't stated in this layout"
        documents = list(found) or [_first_cited(row)]
        stated = set().union(*found.values()) if found else {"IRRELEVANT"}
        if not all(corpus.get(document) for document in documents):
            return NOT_IN_CORPUS
        label = _one_label(stated, CITATION_LABELS)
        if label is None:
            return f"the labels are unknown or differ (known: {', '.join(CITATION_LABELS)})"
        evidence = [Passage(text=corpus[document]) for document in documents]
        key, meta = f"{split}-{cell(row.get('id'))}", {"split": split, "classes": sorted(stated)}
        return [claim_of(CITATION_INTEGRITY, key, claim, evidence, label, documents[0][:-3], **meta)]

    yield from _labelled_splits(CITATION_INTEGRITY, files, ("claim", "evidence"), make, rejects)


def read_nli4ct(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield the statements of `train.json`, `dev.json` and `Gold_test.json`, each with a section of its trials.

    The trials are the files NCT*.json in the same folder or below it (`CT json` in the publisher's archive). The
    evidence says which trial is primary and which is secondary, because the statements use these words. The group is
    the primary trial.
    """
    patterns = {"train": "train.json", "dev": "dev.json", "test": "[Gg]old_test.json"}
    files = _split_files(path, patterns, "Unpack NLI4CT's Complete_dataset.zip there.")
    folder = next(iter(files.values())).parent
    reports = {file.stem: file for file in sorted(folder.rglob("NCT*.json"))}
    if not reports:
        raise DataError(f"{folder}: no trials (NCT*.json) here. Copy the publisher's folder 'CT json' there.")

    @functools.cache
    def section(trial: str, name: str) -> str:
        report = read_json(reports[trial]) if trial in reports else {}
        if not isinstance(report, dict):
            raise DataError(f"{reports[trial]}: expected an object with the sections of a trial. Copy the file again.")
        lines = next((report[key] for key in report if key.casefold() == name.casefold()), None)
        if not isinstance(lines, list) or problem_in_text(lines):
            return ""
        return "\n".join(filter(None, (each.strip() for each in lines if isinstance(each, str))))

    def make(row: Mapping[str, Any]) -> list[Example] | str:
        statement, name = cell(row.get("Statement")), cell(row.get("Section_id"))
        label = LABEL_WORDS.get(cell(row.get("Label")).casefold())
        if not statement:
            return NO_CLAIM
        if label not in ("supported", "refuted"):
            return "unknown label (not Entailment or Contradiction)"
        trials = {role: cell(row.get(f"{role}_id")) for role in ("Primary", "Secondary")}
        trials = {role: trial for role, trial in trials.items() if trial}
        evidence = []
        for role, trial in trials.items():
            text = section(trial, name)
            if not text:
                return f"no section {name!r} in the {role.lower()} trial"
            evidence.append(Passage(text=f"{role} trial, {name}:\n{text}"))
        if not evidence:
            return NO_EVIDENCE
        first = next(iter(trials.values()))
        meta = {
            "split": row["split"],
            "section": name,
            "type": cell(row.get("Type")) or None,
            "trials": list(trials.values()),
            "url": f"https://clinicaltrials.gov/study/{first}",
        }
        return [claim_of(NLI4CT, str(row["id"]), statement, evidence, label, first, **meta)]

    def items() -> Iterator[Row]:
        for split, file in files.items():
            value = read_json(file)
            if not isinstance(value, dict) or not all(isinstance(row, dict) for row in value.values()):
                raise DataError(
                    f"{file}: expected an object that maps ids to statements. Copy the publisher's file again."
                )
            for identifier, row in value.items():
                yield f"{file}, item {identifier}", row | {"id": identifier, "split": split}

    yield from labelled(NLI4CT, items(), make, rejects)


def medhallu_item(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return MedHallu's values by lowercase column name: as published, or converted (`ground_truth`, `contexts`)."""
    item = {" ".join(key.casefold().replace("_", " ").split()): value for key, value in row.items()}
    for name, other in (
        ("knowledge", "contexts"),
        ("difficulty", "difficulty level"),
        ("category", "category of hallucination"),
    ):
        item[name] = item.get(name) or item.get(other)
    return item


def read_medhallu(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield two claims for each item: the ground truth (supported) and the hallucinated answer (refuted).

    The evidence is a PubMed abstract. `meta` has the published configuration as `split`, and the question that the
    claims answer. `pqa_labeled` contains PubMedQA's 1,000 labelled items, including the 500 official test items. The
    leakage check finds the test items by abstract or question. Claims that answer the same question share a group.
    """
    names = ("pqa_*/*.parquet", "pqa_*.parquet", "pqa_*.jsonl", "*.jsonl")
    files = find_files(path, names, "Copy the files of UTAustin-AIHealth/MedHallu there.")

    def make(row: Mapping[str, Any]) -> list[Example] | str:
        item = medhallu_item(row)
        question, evidence = cell(item.get("question")), passages(item.get("knowledge"))
        if not question or not evidence:
            return "no question" if not question else NO_EVIDENCE
        claims: dict[Label, str] = {
            "supported": cell(item.get("ground truth")),
            "refuted": cell(item.get("hallucinated answer")),
        }
        if not all(claims.values()):
            return "no ground truth or no hallucinated answer"
        meta = {
            "split": row["split"],
            ANSWERED_QUESTION: question,
            "difficulty": cell(item.get("difficulty")) or None,
            "category": cell(item.get("category")) or None,
        }
        return [
            claim_of(MEDHALLU, f"{row['number']}-{label}", claim, evidence, label, group_of("", question), **meta)
            for label, claim in claims.items()
        ]

    def numbered() -> Iterator[Row]:
        counts: Counter[str] = Counter()
        for file in files:
            named = f"{file.parent.name}/{file.name}"
            split = next((name for name in ("pqa_labeled", "pqa_artificial") if name in named), file.stem)
            for where, row in rows(file, MEDHALLU, rejects):
                counts[split] += 1
                yield where, row | {"split": split, "number": f"{split}-{counts[split]}"}

    yield from labelled(MEDHALLU, numbered(), make, rejects)
