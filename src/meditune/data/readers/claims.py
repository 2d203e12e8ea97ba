"""Published claims with evidence: SciFact, HealthVer, Citation-Integrity, NLI4CT and MedHallu.

Each reader yields claims: the claim is the `question` of the Example, the evidence its `context`. The layouts are those
of the publishers' files and documentation:

- SciFact (Wadden et al. 2020): `doc/data.md` in https://github.com/allenai/scifact.
- HealthVer (Sarrouti et al. 2021): the CSV files in https://github.com/sarrouti/HealthVer.
- Citation-Integrity (Sarol et al. 2024): `Data/multivers-format` in https://github.com/ScienceNLP-Lab/Citation-Integrity
  (nine classes), and the files for training that its README links (ACCURATE or NOT_ACCURATE).
- NLI4CT (Jullien et al. 2023): `Complete_dataset.zip` in https://github.com/ai-systems/nli4ct, as read by the published
  systems of SemEval-2023 task 7.
- MedHallu (Pandit et al. 2025): the columns of https://huggingface.co/datasets/UTAustin-AIHealth/MedHallu.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from meditune.data.example import ANSWERED_QUESTION, LABEL, Example, Label, Passage, problem_in_text
from meditune.data.readers.tables import Rejects, Row, rows
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
"""Source -> the terms that its publisher states"""
TEST_SPLITS = {
    SCIFACT: ("dev",),
    HEALTHVER: ("test",),
    CITATION_INTEGRITY: ("test",),
    NLI4CT: ("test", "dev"),
}
"""Source -> the published splits that can be its test set; the first one with rows is used. The labels of SciFact's
test split are not published; those of NLI4CT's are only in the later, complete archive."""

LEVELS = ("", "*/", "*/*/")
"""Folders in which files are searched for: publishers put them into subfolders such as `data`"""

Maker = Callable[[Mapping[str, Any]], Sequence[Example] | str]
"""Returns the claims of a row, or the reason for rejecting it"""


def accepted(source: str, found: Iterable[Row], make: Maker, rejects: Rejects) -> list[Example]:
    """Return the claims that `make` returns for (place, row) pairs; other rows and repeated ids go to `rejects`.

    The claims are marked with the labels that the source uses if it uses only two.
    """
    claims: dict[str, Example] = {}
    for where, row in found:
        result = problem_in_text(row) or make(row)
        if isinstance(result, str):
            rejects.add(source, where, result, row)
            continue
        for claim in result:
            if claim.id in claims:
                rejects.add(source, where, "duplicate id", row)
            else:
                claims[claim.id] = claim
    return with_labels(list(claims.values()))


def claim_of(
    source: str,
    identifier: str,
    claim: str,
    evidence: Sequence[Passage],
    label: Label,
    group: str,
    **meta: Any,
) -> Example:
    """Return a claim, whose `meta` has no values that are None and, if no licence is given, the source's licence."""
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
    """Return the rows of the other splits, and those of the first of `test_splits` that has any.

    Rows of other splits that share a group (document, trial) with a test row are left out, because the leakage check
    would reject them. Raises DataError if there are no test rows.
    """
    examples = list(examples)
    stated = {example.meta.get("split") for example in examples}
    name = next((name for name in test_splits if name in stated), None)
    if name is None:
        source = examples[0].source if examples else "this source"
        raise DataError(
            f"{source}: no rows of its published {' or '.join(test_splits)} split, which is the official test set. Add "
            "the publisher's file, or split the rows that you have: --set data.split=group."
        )
    test = [example for example in examples if example.meta.get("split") == name]
    held = {document for example in test for document in _documents(example)}
    others = (example for example in examples if example.meta.get("split") != name)
    return [example for example in others if not held.intersection(_documents(example))], test


def _documents(example: Example) -> set[str]:
    return {example.group, *example.meta.get("trials", ())}


def find_files(path: Path, names: Iterable[str], what: str) -> list[Path]:
    """Return the files with these names or patterns in a folder or up to two levels below, or the file `path` itself.

    Raises DataError, saying `what` is needed, if there are none.
    """
    if path.is_file():
        return [path]
    for name in names:
        for level in LEVELS:
            found = sorted(path.glob(level + name)) if path.is_dir() else []
            if found:
                return found
    raise DataError(f"{path}: none of {', '.join(names)} here. {what}")


def _split_files(path: Path, patterns: Mapping[str, Sequence[str]], what: str) -> dict[str, Path]:
    """Return published split -> file, for the splits that are there; earlier names of a split are preferred.

    Raises DataError, saying `what` is needed, if there are none.
    """
    if path.is_file():
        return {next((split for split in patterns if split in path.stem.lower()), path.stem): path}
    found = {}
    for split, names in patterns.items():
        paths = (file for name in names for level in LEVELS for file in sorted(path.glob(level + name)))
        file = next(paths, None)
        if file is not None:
            found[split] = file
    if not found:
        raise DataError(f"{path}: none of {', '.join(name for names in patterns.values() for name in names)}. {what}")
    return found


def _corpus(folder: Path, source: str, rejects: Rejects) -> dict[str, str]:
    """Return document id -> text, the sentences of `abstract` joined by spaces; titles are not included."""
    file = folder / "corpus.jsonl"
    if not file.is_file():
        raise DataError(
            f"{file}: no such file. It contains the documents that the claims cite: copy the publisher's corpus.jsonl "
            "into the folder of the claims."
        )
    documents = {}
    for where, row in rows(file, source, rejects):
        identifier, abstract = cell(row.get("doc_id")), row.get("abstract")
        problem = problem_in_text(row)
        if not problem and (not identifier or not isinstance(abstract, list)):
            problem = "no doc_id, or the abstract isn't a list of sentences"
        if problem:
            rejects.add(source, where, problem, row)
            continue
        documents[identifier] = " ".join(each.strip() for each in abstract or () if isinstance(each, str)).strip()
    return documents


def _rationales(row: Mapping[str, Any]) -> dict[str, set[str]] | None:
    """Return document id -> labels of its rationales, in SciFact's layout; None for another layout."""
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
NOT_SCIFACT = "evidence is not an object that maps documents to lists of rationales"
NOT_IN_CORPUS = "a document of the evidence is missing from corpus.jsonl, or empty"


def read_scifact(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield one claim for each document with evidence: the document's abstract (without its title) and its label.

    A claim without evidence yields its first cited abstract with the label not_enough_information. `path` is the folder
    of `claims_train.jsonl`, `claims_dev.jsonl` and `corpus.jsonl`, or one of the claim files beside the corpus. The
    group is the document; `meta["split"]` is train or dev.
    """
    patterns = {"train": ("claims_train.jsonl",), "dev": ("claims_dev.jsonl",)}
    files = _split_files(path, patterns, "Unpack data.tar.gz of SciFact there.")
    corpus = _corpus(next(iter(files.values())).parent, SCIFACT, rejects)

    def make(row: Mapping[str, Any]) -> list[Example] | str:
        claim, identifier, found = cell(row.get("claim")), cell(row.get("id")), _rationales(row)
        if not claim or not identifier:
            return NO_CLAIM if not claim else "no id"
        if found is None:
            return NOT_SCIFACT
        if not found and not _first_cited(row):
            return "neither evidence nor a cited document"
        claims = []
        for document, stated in (found or {_first_cited(row): {"nei"}}).items():
            labels = {LABEL_WORDS.get(word.casefold()) for word in stated}
            label = labels.pop() if len(labels) == 1 else None
            if label is None:
                return "the labels of a document's rationales are unknown or differ"
            if not corpus.get(document):
                return NOT_IN_CORPUS
            evidence = (Passage(text=corpus[document]),)
            key = f"{identifier}-{document}"
            claims.append(claim_of(SCIFACT, key, claim, evidence, label, document, split=row["split"]))
        return claims

    yield from accepted(SCIFACT, _rows_of_splits(files, SCIFACT, rejects, "id", "claim", "evidence"), make, rejects)


def _rows_of_splits(files: Mapping[str, Path], source: str, rejects: Rejects, *columns: str) -> Iterator[Row]:
    """Yield the rows of each file with its published `split`.

    Raises DataError if the first row of a file lacks one of the columns.
    """
    for split, file in files.items():
        for where, row in with_columns(file, source, columns, rejects):
            yield where, row | {"split": split}


def read_healthver(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield the claims of `healthver_train.csv`, `healthver_dev.csv` and `healthver_test.csv` with their evidence.

    `meta` has the `split` and the question of the `topic`. The group is the claim, not the evidence, because the same
    evidence occurs in several published splits. The leakage check reports this: a run with the official split needs
    `evaluate.allow_leakage: [context]`, while data.split: group keeps each evidence in one split.
    """
    patterns = {split: (f"healthver_{split}.csv",) for split in ("train", "dev", "test")}
    files = _split_files(path, patterns, "Copy the CSV files of HealthVer's folder data there.")

    def make(row: Mapping[str, Any]) -> list[Example] | str:
        claim, evidence, split = cell(row.get("claim")), cell(row.get("evidence")), str(row["split"])
        label = LABEL_WORDS.get(cell(row.get("label")).casefold())
        if not claim or not evidence:
            return NO_CLAIM if not claim else NO_EVIDENCE
        if label is None:
            return "unknown label (not Supports, Refutes or Neutral)"
        identifier = f"{split}-{cell(row.get('id'))}"
        topic = cell(row.get("question")) or None
        text = (Passage(text=evidence),)
        return [claim_of(HEALTHVER, identifier, claim, text, label, group_of("", claim), split=split, topic=topic)]

    found = _rows_of_splits(files, HEALTHVER, rejects, "id", "evidence", "claim", "label")
    yield from accepted(HEALTHVER, found, make, rejects)


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
    **dict.fromkeys(("ACCURATE", "INDIRECT", "INDIRECT_NOT_REVIEW", "SUPPORT"), "supported"),
    **dict.fromkeys((*_INACCURATE, "REFUTE"), "refuted"),
    **dict.fromkeys(("IRRELEVANT", "NEI"), "not_enough_information"),
}
"""Citation-Integrity's label -> label. The nine classes are joined as in the publisher's own files with three classes,
in which indirect citations are accurate"""


def read_citation_integrity(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield the citing sentences of Citation-Integrity with the evidence sentences of the cited article.

    Three layouts are read: `claims_train.jsonl` (also dev, test) with labels ACCURATE and NOT_ACCURATE and no evidence
    for irrelevant citations; `claims-train.jsonl` with nine classes, where claims without evidence have no label and go
    to `rejects`; and rows {id, claim, evidence (a text), label}. The first two need `corpus.jsonl` in the same folder.

    The claims keep the publisher's markers: <|cit|> and <|multi_cit|> mark the citation that is judged. The group is
    the cited article: the publisher numbers its evidence 31000, 31001, .... A row without document ids is grouped by
    its evidence.
    """
    names = ("train", "dev", "test")
    patterns = {name: (f"claims_{name}.jsonl", f"claims-{name}.jsonl", f"{name}.jsonl") for name in names}
    files = _split_files(path, patterns, "Copy claims_train.jsonl (also dev, test) and corpus.jsonl there.")
    first = next(iter(files.values()))
    corpus = _corpus(first.parent, CITATION_INTEGRITY, rejects) if first.name.startswith("claims") else {}
    nine_classes = {split for split, file in files.items() if file.name.startswith("claims-")}

    def make(row: Mapping[str, Any]) -> list[Example] | str:
        claim, split, found = cell(row.get("claim")), row["split"], _rationales(row)
        if not claim:
            return NO_CLAIM
        if found is None:
            texts, stated, group = [cell(row.get("evidence"))], {cell(row.get("label"))}, ""
        elif not found and split in nine_classes:
            return "no evidence, so the label isn't stated in this layout"
        else:
            documents = list(found) or [_first_cited(row)]
            stated = set().union(*found.values()) if found else {"IRRELEVANT"}
            if not all(corpus.get(document) for document in documents):
                return NOT_IN_CORPUS
            texts, group = [corpus[document] for document in documents], documents[0][:-3]
        labels = {CITATION_LABELS.get(word) for word in stated}
        label = labels.pop() if len(labels) == 1 else None
        if label is None:
            return f"the labels are unknown or differ (known: {', '.join(CITATION_LABELS)})"
        if not any(texts):
            return NO_EVIDENCE
        evidence = [Passage(text=text) for text in texts]
        key, group = f"{split}-{cell(row.get('id'))}", group or group_of("", texts[0])
        meta = {"split": split, "classes": sorted(stated)}
        return [claim_of(CITATION_INTEGRITY, key, claim, evidence, label, group, **meta)]

    found = _rows_of_splits(files, CITATION_INTEGRITY, rejects, "claim", "evidence")
    yield from accepted(CITATION_INTEGRITY, found, make, rejects)


def read_nli4ct(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield the statements of `train.json`, `dev.json` and `Gold_test.json` with the named section of their trials.

    The trials are the files NCTnnn.json in the same folder or in a folder beside it (`CT json` in the publisher's
    archive). The text names the primary and secondary trial, as the statements do. `meta` has `split`, `section`,
    `type` and `trials`; the group is the primary trial.
    """
    patterns = {"train": ("train.json",), "dev": ("dev.json",), "test": ("Gold_test.json", "gold_test.json")}
    files = _split_files(path, patterns, "Unpack Complete_dataset.zip of NLI4CT there.")
    folder = next(iter(files.values())).parent
    reports = {file.stem: file for file in sorted(folder.rglob("NCT*.json"))}
    if not reports:
        raise DataError(f"{folder}: no trials (NCT*.json) here. Copy the publisher's folder 'CT json' there.")
    sections: dict[tuple[str, str], str] = {}

    def section(trial: str, name: str) -> str:
        if (trial, name) not in sections:
            report = read_json(reports[trial]) if trial in reports else {}
            if not isinstance(report, dict):
                raise DataError(f"{reports[trial]}: expected an object with the sections of a trial. Copy it again.")
            lines = next((report[key] for key in report if key.casefold() == name.casefold()), None)
            usable = isinstance(lines, list) and not problem_in_text(lines)
            texts = [each.strip() for each in lines or () if isinstance(each, str)] if usable else []
            sections[trial, name] = "\n".join(filter(None, texts))
        return sections[trial, name]

    def make(row: Mapping[str, Any]) -> list[Example] | str:
        statement, name = cell(row.get("Statement")), cell(row.get("Section_id"))
        label = LABEL_WORDS.get(cell(row.get("Label")).casefold())
        if not statement:
            return NO_CLAIM
        if label not in ("supported", "refuted"):
            return "unknown label (not Entailment or Contradiction)"
        named = (("Primary", cell(row.get("Primary_id"))), ("Secondary", cell(row.get("Secondary_id"))))
        trials = [(role, trial) for role, trial in named if trial]
        evidence = []
        for role, trial in trials:
            text = section(trial, name)
            if not text:
                return f"no section {name!r} in the {role.lower()} trial"
            evidence.append(Passage(text=f"{role} trial, {name}:\n{text}"))
        if not evidence:
            return NO_EVIDENCE
        meta = {
            "split": row["split"],
            "section": name,
            "type": cell(row.get("Type")) or None,
            "trials": [trial for _, trial in trials],
            "url": f"https://clinicaltrials.gov/study/{trials[0][1]}",
        }
        return [claim_of(NLI4CT, str(row["id"]), statement, evidence, label, trials[0][1], **meta)]

    found = (
        (f"{file}, item {identifier}", dict(row) | {"id": identifier, "split": split})
        for split, file in files.items()
        for identifier, row in _items(file).items()
    )
    yield from accepted(NLI4CT, found, make, rejects)


def _items(file: Path) -> dict[str, dict[str, Any]]:
    value = read_json(file)
    if not isinstance(value, dict) or not all(isinstance(row, dict) for row in value.values()):
        raise DataError(f"{file}: expected an object that maps ids to statements. Copy the publisher's file again.")
    return value


_MEDHALLU_COLUMNS = {
    "question": ("Question", "question"),
    "knowledge": ("Knowledge", "contexts"),
    "supported": ("Ground Truth", "ground_truth"),
    "refuted": ("Hallucinated Answer", "hallucinated_answer"),
    "difficulty": ("Difficulty Level", "difficulty"),
    "category": ("Category of Hallucination", "category"),
    "pmid": ("pmid",),
}
"""Field -> the publisher's column, and the column of the rows given as JSON Lines"""


def read_medhallu(path: Path, rejects: Rejects) -> Iterator[Example]:
    """Yield two claims for each item: the ground truth (supported) and the hallucinated answer (refuted).

    Both have the item's "Knowledge", a PubMed abstract, as evidence. `path` is a folder with the Parquet or JSON Lines
    files of `pqa_labeled` and `pqa_artificial`, or one such file; rows given as JSON Lines with `pmid`, `contexts`,
    `ground_truth` and `hallucinated_answer` are read too. `meta` has the `split` (the published configuration),
    `difficulty`, `category`, and the question that the claims answer.

    The items of `pqa_labeled` are PubMedQA's 1,000 labelled items, its 500 official test items included. The leakage
    check finds them by their abstract or their question. Items of one question share a group.
    """
    names = ("pqa_*/*.parquet", "pqa_*.parquet", "pqa_*.jsonl", "training_half.jsonl")
    files = find_files(path, names, "Copy the files of UTAustin-AIHealth/MedHallu there.")

    def make(row: Mapping[str, Any]) -> list[Example] | str:
        values = {
            field: next((row[name] for name in columns if name in row), None)
            for field, columns in _MEDHALLU_COLUMNS.items()
        }
        question, evidence = cell(values["question"]), passages(values["knowledge"])
        if not question or not evidence:
            return "no question" if not question else NO_EVIDENCE
        pmid = cell(values["pmid"]) or None
        meta = {
            "split": row["split"],
            ANSWERED_QUESTION: question,
            "difficulty": cell(values["difficulty"]) or None,
            "category": cell(values["category"]) or None,
            "pmid": pmid,
            "url": f"https://pubmed.ncbi.nlm.nih.gov/{pmid}/" if pmid else None,
        }
        claims = []
        labels: tuple[Label, ...] = ("supported", "refuted")
        for label in labels:
            claim = cell(values[label])
            if not claim:
                return "no ground truth or no hallucinated answer"
            identifier = f"{pmid or row['number']}-{label}"
            claims.append(
                claim_of(MEDHALLU, identifier, claim, evidence, label, pmid or group_of("", question), **meta)
            )
        return claims

    def numbered() -> Iterator[Row]:
        counts: Counter[str] = Counter()
        for file in files:
            named = f"{file.parent.name}/{file.name}"
            split = next((name for name in ("pqa_labeled", "pqa_artificial") if name in named), file.stem)
            for where, row in rows(file, MEDHALLU, rejects):
                counts[split] += 1
                yield where, row | {"split": split, "number": f"{split}-{counts[split]}"}

    yield from accepted(MEDHALLU, numbered(), make, rejects)
