"""Measure how reliable citations are: withholding thresholds, and the gain of retrieval over answering from memory.

    python benchmarks/citations.py INDEX --thresholds        # the thresholds of retrieval.py and citations.py
    python benchmarks/citations.py INDEX MODEL --questions 200 --engine auto --record answers.jsonl
    python benchmarks/citations.py --recorded answers.jsonl --judge RUN --scores scores.json --to-label l.jsonl
    python benchmarks/citations.py --recorded answers.jsonl --scores scores.json --labels l.jsonl

Build INDEX from MedQuAD or a part of it and, for the second command, also from PubMedQA's abstracts. MEDITUNE_DATA
names the folder with the publishers' data. All questions are from the train splits: MedQuAD's (a tenth of the topics is
held out, seed 17), PubMedQA's 500, and LiveQA's.

The second command answers each question with MODEL, with the passages and without: two fifths of the questions are from
MedQuAD, two fifths from PubMedQA, the rest from LiveQA. With --engine, an exported model writes many answers at once.
"Unsupported" is the share of an answer's sentences that no retrieved passage supports, as judged by the detector, not
by people; withheld sentences count, too. Recall is the share of sentences with a citation. Precision is the share of
citations whose source is about the question's own topic or is its own abstract; it is unknown for LiveQA.

The third command checks recorded answers again, with a judge. It prints how many answers and sentences the detector and
the judge show: the judge at the assistant's threshold, and at the threshold that shows as many answers as the detector.
The scores are stored in scores.json, and the sentences that any of these checks shows are written to l.jsonl in random
order, with question and sources, but without scores. People set `supported` in each row to true or false: do the
sources support the sentence? As the order is random, the first rows are a random sample.

The fourth command adds to the table, from the labels, the share of unsupported sentences among those shown, with its
95% interval (Wilson), and the difference from the detector's share (bootstrap over answers). A row's `answer` and
`sentence` are counted from 0, in answers.jsonl and in its row's `sentences`. With --labels other-scores.json, the
verdicts of another judge take the place of people's labels.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import faithfulness as planted
from meditune.assistant.answer_filter import SUPPORTED_SHARE, withheld
from meditune.assistant.assistant import PASSAGES, Assistant, load_assistant, open_assistant
from meditune.assistant.events import Answer
from meditune.assistant.triage import Triage
from meditune.assistant.writers import EngineWriter
from meditune.data.example import Example
from meditune.data.readers import liveqa, medquad, pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.data.splits import by_group
from meditune.engines.evidence_judge import JUDGED_SUPPORT, EvidenceJudge, load_judge
from meditune.evidence import lexical_detector
from meditune.evidence.lexical_detector import evidence
from meditune.files import numbered_jsonl, read_json, read_jsonl, write_json, write_jsonl
from meditune.progress import Progress
from meditune.retrieve.citations import SUPPORT, Citer, stated_sentences, support
from meditune.retrieve.context_packing import PackedPassage
from meditune.retrieve.documents.document import IndexedPassage
from meditune.retrieve.hybrid_search import Hit
from meditune.retrieve.index import Index
from meditune.statistics import Statistics, bootstrap, percentile_interval, ratio, wilson
from meditune.text import sentences

SEED = 17
SAMPLE = 200
RESAMPLES = 2000
AT_ONCE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", nargs="?")
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--thresholds", action="store_true", help="print tables for choosing the thresholds")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--engine", help="an engine for an exported model: auto, openvino, llamacpp")
    parser.add_argument("--show", action="store_true", help="print every answer")
    parser.add_argument("--record", type=Path, help="file for the answers with their sources")
    parser.add_argument("--recorded", type=Path, help="answers to check again, instead of an index")
    parser.add_argument("--judge", help="the run of a judge that checks the recorded answers")
    parser.add_argument("--scores", type=Path, help="file for the scores, which is read if it exists")
    parser.add_argument("--to-label", type=Path, help="file for the shown sentences, to be labelled")
    parser.add_argument("--labels", type=Path, help="which of the recorded sentences are supported")
    parser.add_argument("--at", type=float, nargs="+", default=[], help="more thresholds of the judge to compare")
    parser.add_argument(
        "--detector-at", type=float, nargs="+", default=[], help="thresholds of the detector to compare"
    )
    parser.add_argument(
        "--share",
        type=float,
        default=SUPPORTED_SHARE,
        help="smallest share of supported sentences in a recorded answer that is shown",
    )
    arguments = parser.parse_args()
    if arguments.recorded:
        for line in checked_again(
            arguments.recorded, arguments.judge, arguments.scores, arguments.to_label, arguments.labels, arguments.at,
            arguments.detector_at, arguments.share,
        ):  # fmt: skip
            print(line, flush=True)
        return
    if not arguments.index:
        parser.error("name an index, or --recorded answers")
    folder = Path(os.environ["MEDITUNE_DATA"]).expanduser() / "medquad"
    train, _ = by_group(list(medquad.read(folder, Rejects())), 0.1, SEED)
    if arguments.thresholds:
        index = Index.open(arguments.index)
        inside, outside = parted(train, index)
        print("\n".join((*nearest(index, inside, outside), *shares(inside, train, folder))))
        return
    if arguments.engine:
        assistant = served(arguments.model, arguments.engine, arguments.index)
    else:
        assistant = load_assistant(arguments.model, arguments.index)
    inside, _ = parted(train, assistant.index)
    for line in answered(
        assistant, mixed(inside, folder.parent, arguments.questions), arguments.show, arguments.record
    ):
        print(line, flush=True)


def mixed(inside: Sequence[Example], data: Path, count: int) -> list[Example]:
    """Return `count` questions: two fifths from MedQuAD, two fifths from PubMedQA, the rest from LiveQA."""
    abstracts, _ = pubmedqa.official_split(list(pubmedqa.read(data / "pubmedqa", Rejects())))
    messages, _ = liveqa.official_split(list(liveqa.read(data / "liveqa", Rejects())))
    # A message that was split into several questions, or answered twice, occurs several times.
    once = list({each.question: each for each in messages}.values())
    chance, share = random.Random(SEED), 2 * count // 5
    return [*inside[:share], *chance.sample(abstracts, share), *chance.sample(once, count - 2 * share)]


def served(model: str, engine: str, index: str) -> Assistant:
    """Return an assistant for an exported model whose engine writes many answers at once."""
    from meditune.engines.open_engine import open_engine
    from meditune.prompts import load_format

    form = next((found for at in ("", "model") if (found := load_format(Path(model) / at))), None)
    return open_assistant(EngineWriter(open_engine(model, engine), form), Path(model), index)


def groups_of(index: Index) -> dict[str, str]:
    """Return the group of each document in an index."""
    from meditune.retrieve import storage

    with storage.readable(index.store):
        table = storage.connect(index.store).open_table(index.manifest.table)
        rows = table.search().select(["document", "group"]).limit(index.manifest.passages).to_list()
    return {row["document"]: row["group"] for row in rows}


def parted(train: Sequence[Example], index: Index) -> tuple[list[Example], list[Example]]:
    """Return the questions whose own document is in the index, and those whose topic isn't in it, both shuffled."""
    groups = groups_of(index)
    topics = set(groups.values())
    inside = [each for each in train if each.id in groups]
    outside = [each for each in train if each.group not in topics]
    chance = random.Random(SEED)
    return chance.sample(inside, len(inside)), chance.sample(outside, min(SAMPLE, len(outside)))


def nearest(index: Index, inside: Sequence[Example], outside: Sequence[Example]) -> Iterator[str]:
    """Yield a table with the share of questions that would be answered at each minimum cosine of the nearest passage.

    Questions are those whose topic is in the index (their own document doesn't count) and those whose topic isn't.
    """
    found = []
    for questions in (inside[:SAMPLE], outside):
        best = []
        for each in questions:
            hits = index.search(each.question, PASSAGES + 1).hits
            best.append(max((h.meaning or -1.0 for h in hits if h.passage.document != each.id), default=-1.0))
        found.append(np.array(best))
    yield "| cosine at least | topic in the index: answered | topic not in it: answered |\n|---|---|---|"
    for least in (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7):
        yield f"| {least} | {np.mean(found[0] >= least):.0%} | {np.mean(found[1] >= least):.0%} |"


def shares(inside: Sequence[Example], train: Sequence[Example], folder: Path) -> Iterator[str]:
    """Yield a table that says how often true and false sentences would be cited at each minimum share of known words.

    True sentences are from the index's answers, reworded, and are compared with their whole answer.
    """
    topics = planted.half(planted.named(train, folder), 0)
    items = truths(inside)
    answers = [*items, *planted.corrupted(items, topics)]
    rows: dict[str, list[tuple[float, float, bool]]] = {}
    for each in answers:
        passage = lexical_detector.Sources([each.item.answer], each.item.question)
        for number, text in enumerate(sentences(each.text)):
            if each.kind == "true" or number in each.wrong:
                seen = evidence(lexical_detector.Sentence(text), passage)
                score, _ = support(lexical_detector.Sentence(text), passage)
                rows.setdefault(each.kind, []).append((score, seen.features["known"], bool(seen.spans)))
    kinds = list(rows)
    yield f"\n| | {' | '.join(f'{kind} ({len(rows[kind])})' for kind in kinds)} |\n|---|{'---|' * len(kinds)}"
    yield _row("detector alone", [[score >= SUPPORT for score, _, _ in rows[kind]] for kind in kinds])
    for least in (0.0, 0.5, 0.6, 0.7, 0.8, 0.9):
        kept = [[s >= SUPPORT and known >= least and not spans for s, known, spans in rows[kind]] for kind in kinds]
        yield _row(f"no mismatch, known words {least}", kept)


def _row(name: str, kept: Sequence[Sequence[bool]]) -> str:
    return f"| {name} | {' | '.join(f'{np.mean(each):.0%}' for each in kept)} |"


def truths(inside: Sequence[Example]) -> list[planted.Answer]:
    """Return two reworded sentences of each answer."""
    found = []
    for each in inside[:SAMPLE]:
        chance = random.Random(f"{SEED}/{each.id}")
        text = planted.reworded(planted.extract([each.answer], chance), chance)
        found += [planted.Answer("medquad", "true", text, each)] if text else []
    return found


def answered(
    assistant: Assistant, questions: Sequence[Example], show: bool, record: Path | None = None
) -> Iterator[str]:
    """Yield the metrics of a model's answers with and without passages, judged by the same passages."""

    def ask(each: Example) -> tuple[Answer, list[bool]]:
        # Triage is measured elsewhere; here every question reaches the model.
        *_, answer = assistant.ask(each.question, triaged=Triage("answer", question=each.question))
        limit = assistant.settings.max_new_tokens
        _, chunks = assistant.writer.start(each.question, (), "plain", limit, lambda: False)
        known = [lexical_detector.Sources([source.text], source.title) for source in answer.sources]
        sentences = map(lexical_detector.Sentence, stated_sentences("".join(chunk.text for chunk in chunks)))
        return answer, [any(support(sentence, passage)[1] for passage in known) for sentence in sentences]

    with ThreadPoolExecutor(AT_ONCE) as threads:
        found = list(threads.map(ask, questions))
    if record:
        write_jsonl(record, [recorded(answer) for answer, _ in found])
    groups = groups_of(assistant.index)
    rows: dict[str, list[Row]] = {"all": []}
    refused = 0
    for each, (answer, closed) in zip(questions, found, strict=True):
        refused += bool(answer.refused)
        if show:
            print(f"\n## {each.question}\n{answer}\n-- closed book: {closed}")
        if answer.sentences and closed:
            cited = [one.supported for one in answer.sentences]
            row = Row(1 - float(np.mean(cited)), 1 - float(np.mean(closed)), cited, _about(answer, each, groups))
            rows["all"].append(row)
            rows.setdefault(each.source, []).append(row)
    yield f"{len(questions)} questions, {refused} answers withheld, {len(rows['all'])} compared\n"
    yield "| questions | unsupported with passages | from memory | difference | citation recall | citation precision |"
    yield "|---|---|---|---|---|---|"
    for name, some in rows.items():
        gap, recall = _interval([row.found - row.closed for row in some]), [yes for row in some for yes in row.cited]
        about = [yes for row in some for yes in row.about]
        means = [f"{np.mean([getattr(row, which) for row in some]):.1%}" for which in ("found", "closed")]
        precise = f"{np.mean(about):.1%} of {len(about)}" if about else "not known"
        recalled = f"{np.mean(recall):.1%} of {len(recall)}"
        yield f"| {name} ({len(some)}) | {' | '.join((*means, gap, recalled, precise))} |"


def recorded(answer: Answer) -> dict[str, Any]:
    """Return what is needed to check an answer's sentences again."""
    # A source without a title is named by its document, which the model didn't read.
    titles = ["" if each.title == each.id.rpartition("#")[0] else each.title for each in answer.sources]
    return {
        "question": answer.question,
        "sentences": [each.text for each in answer.sentences],
        "sources": [{"title": title, "text": each.text} for title, each in zip(titles, answer.sources, strict=True)],
    }


def checked_again(
    path: Path,
    judge_name: str | None,
    scores: Path | None,
    to_label: Path | None,
    labels_path: Path | None,
    at: Sequence[float] = (),
    detector_at: Sequence[float] = (),
    share: float = SUPPORTED_SHARE,
) -> Iterator[str]:
    """Yield a table of what recorded answers show by the detector, by a judge, and by both; write the file to label."""
    rows = {number: row for number, row in enumerate(read_jsonl(path)) if row["sentences"] and row["sources"]}
    if not rows:
        raise SystemExit(f"{path} has no answer with sentences and sources.")
    labels = read_labels(labels_path, rows) if labels_path else {}
    found = scored(rows, judge_name, scores)
    policies = {"detector": [[score > 0 for score in each] for each in found["detector"]]}
    for least in detector_at:
        policies[f"detector, threshold {least:.3f}"] = _reaching(found["detector"], least)
    if judge := found["judge"]:
        count, seconds = sum(map(len, judge["scores"])), judge["seconds"]
        yield f"{judge['name']}: {seconds / count:.2f} s a sentence, {seconds / len(rows):.2f} s an answer"
        if judge["unjudged"]:
            yield f"Sentences that the judge couldn't check, so that the detector's scores count: {judge['unjudged']}"
        yield ""
        for least in (judge["threshold"], *at):
            policies[f"judge, threshold {least:.3f}"] = by_judge = _reaching(judge["scores"], least)
            policies[f"detector and judge, threshold {least:.3f}"] = [
                [one and other for one, other in zip(*pair, strict=True)]
                for pair in zip(policies["detector"], by_judge, strict=True)
            ]
        wanted = _answers(shown(rows, policies["detector"], share))
        # With a higher threshold, fewer answers are shown.
        for least in sorted({score for each in judge["scores"] for score in each if score > 0}, reverse=True):
            equal = _reaching(judge["scores"], least)
            if _answers(shown(rows, equal, share)) >= wanted:
                policies[f"judge, threshold {least:.3f} (as many answers as by the detector)"] = equal
                break
        else:
            yield f"At no threshold does the judge show as many answers as the detector ({wanted}).\n"
    visible = {name: shown(rows, policy, share) for name, policy in policies.items()}
    if to_label:
        yield f"{write_unlabelled(to_label, rows, visible.values())} sentences to label: {to_label}\n"
    yield "| checked by | answers shown | sentences shown | labelled | unsupported (95% interval) | minus detector's |"
    yield "|---|---|---|---|---|---|"
    wrong = {name: _unsupported(rows, places, labels) for name, places in visible.items()}
    for name, places in visible.items():
        labelled = [labels[place] for place in places if place in labels]
        cells = ["", ""]
        if labelled:
            low, high = wilson(labelled.count(False), len(labelled))
            cells[0] = f"{wrong[name].value():.1f}% ({low:.1f} to {high:.1f})"
        if labelled and name != "detector":
            sides = [(each.figure, each.items) for each in (wrong["detector"], wrong[name])]
            before, after = bootstrap(sides, RESAMPLES, SEED)
            if interval := percentile_interval(after - before):
                difference = wrong[name].value() - wrong["detector"].value()
                cells[1] = f"{difference:+.1f} ({interval[0]:+.1f} to {interval[1]:+.1f})"
        answers = f"{_answers(places)} of {len(rows)}"
        yield f"| {name} | {answers} | {len(places)} | {len(labelled)} | {' | '.join(cells)} |"


def scored(rows: dict[int, dict[str, Any]], judge_name: str | None, stored: Path | None) -> dict[str, Any]:
    """Return the scores of the answers' sentences by the detector and by the judge, 0 if nothing supports a sentence.

    `stored` is a file with these scores; it is written if it doesn't exist.
    """
    sentences = [row["sentences"] for row in rows.values()]
    if stored and stored.is_file():
        found: dict[str, Any] = read_json(stored)
        if found["sentences"] != sentences or (judge_name and found["judge"]["run"] != judge_name):
            raise SystemExit(f"{stored} has the scores of other answers or of another judge. Remove it.")
        return found
    found = {"sentences": sentences, "detector": [_scores(row, None)[0] for row in rows.values()], "judge": None}
    if judge_name:
        judge = load_judge(judge_name)
        facts: dict[str, Any] = {"run": judge_name, "name": judge.name, "threshold": JUDGED_SUPPORT}
        facts |= {"scores": [], "unjudged": 0}
        started = time.monotonic()
        with Progress("Judging", len(rows), "answers") as progress:
            for row in rows.values():
                scores, unjudged = _scores(row, judge)
                facts["scores"].append(scores)
                facts["unjudged"] += unjudged
                progress.advance()
        found["judge"] = facts | {"seconds": time.monotonic() - started}
    if stored:
        write_json(stored, found)
    return found


def shown(rows: dict[int, dict[str, Any]], supported: Sequence[Sequence[bool]], share: float) -> list[tuple[int, int]]:
    """Return answer and sentence, both counted from 0, of each sentence that an assistant would show."""
    found = []
    for (number, row), yes in zip(rows.items(), supported, strict=True):
        if sum(yes) >= share * len(yes):
            texts = enumerate(row["sentences"])
            found += [(number, place) for place, text in texts if yes[place] and not withheld(text, True, True, False)]
    return found


def write_unlabelled(path: Path, rows: dict[int, dict[str, Any]], visible: Iterable[Sequence[tuple[int, int]]]) -> int:
    """Write the sentences that any check shows, in random order, and return their number."""
    if path.is_file():
        raise SystemExit(f"{path} exists and may hold labels. Name another file.")
    places = sorted({place for each in visible for place in each})
    random.Random(SEED).shuffle(places)
    return write_jsonl(
        path,
        (
            {
                "answer": answer,
                "sentence": place,
                "question": rows[answer]["question"],
                "text": rows[answer]["sentences"][place],
                "sources": rows[answer]["sources"],
                "supported": None,
            }
            for answer, place in places
        ),
    )


def read_labels(path: Path, rows: dict[int, dict[str, Any]]) -> dict[tuple[int, int], bool]:
    """Return whether each labelled sentence is supported; rows without a label don't count.

    `path` may also be another judge's file of scores. Its judge supports a sentence with a probability of at least 0.5.
    """
    found = {}
    if path.suffix == ".json":
        other = read_json(path)
        if other["sentences"] != [row["sentences"] for row in rows.values()]:
            raise SystemExit(f"{path} has the scores of other answers.")
        for answer, scores in zip(rows, other["judge"]["scores"], strict=True):
            found |= {(answer, sentence): score >= 0.5 for sentence, score in enumerate(scores)}
        return found
    for line, each in numbered_jsonl(path):
        answer, sentence, label = each.get("answer"), each.get("sentence"), each.get("supported")
        if answer not in rows or sentence not in range(len(rows[answer]["sentences"])):
            raise SystemExit(f"{path}, line {line}: the recorded answers have no sentence {sentence} in {answer}.")
        if "text" in each and each["text"] != rows[answer]["sentences"][sentence]:
            raise SystemExit(f"{path}, line {line}: the text isn't that of the recorded sentence.")
        if label is not None and not isinstance(label, bool):
            raise SystemExit(f"{path}, line {line}: supported is {label!r}; write true, false or null.")
        if label is not None:
            found[answer, sentence] = label
    return found


def _answers(places: Iterable[tuple[int, int]]) -> int:
    return len({answer for answer, _ in places})


def _reaching(scores: Sequence[Sequence[float]], least: float) -> list[list[bool]]:
    return [[score > 0 and score >= least for score in each] for each in scores]


def _unsupported(
    rows: Iterable[int], places: Iterable[tuple[int, int]], labels: dict[tuple[int, int], bool]
) -> Statistics:
    """Return the share of unsupported sentences among the labelled ones, in percent, by answer."""
    wrong, count = dict.fromkeys(rows, 0.0), dict.fromkeys(rows, 0.0)
    for place in places:
        if place in labels:
            count[place[0]] += 1
            wrong[place[0]] += 100.0 * (not labels[place])
    return ratio([str(each) for each in count], list(wrong.values()), list(count.values()))


def _scores(row: dict[str, Any], judge: EvidenceJudge | None) -> tuple[list[float], int]:
    """Return each sentence's score, 0 if nothing supports it, and the number that the judge didn't check."""
    passages = [packed(each["title"], each["text"]) for each in row["sources"]]
    citer = Citer(passages, judge, seconds=float("inf"), threshold=0.0)
    found = [citer.judge(text) for text in row["sentences"]]
    return [each.score if each.places else 0.0 for each in found], citer.unjudged.total()


def packed(title: str, text: str) -> PackedPassage:
    """Return a passage as the model read it."""
    return PackedPassage(Hit(IndexedPassage("", "", "", text), 0.0, None, None), title, text)


@dataclass(frozen=True)
class Row:
    """The metrics of one question's two answers."""

    found: float
    """Share of unsupported sentences with passages"""
    closed: float
    """Share of unsupported sentences without passages"""
    cited: list[bool]
    """For each sentence written with passages, whether it cites a source"""
    about: list[bool]
    """For each citation, whether its source is about the question, where that is known"""


def _about(answer: Answer, question: Example, groups: dict[str, str]) -> list[bool]:
    if answer.refused or question.source == liveqa.SOURCE:
        return []
    documents = {source.number: source.id.rpartition("#")[0] for source in answer.sources}
    same = {number: question.id == one or question.group == groups.get(one) for number, one in documents.items()}
    return [same[citation.number] for one in answer.sentences for citation in one.citations]


def _interval(values: Sequence[float]) -> str:
    given = np.array(values)
    draws = np.random.default_rng(SEED).integers(0, len(given), (RESAMPLES, len(given)))
    low, high = np.quantile(given[draws].mean(axis=1), (0.025, 0.975))
    return f"{given.mean():+.1%} ({low:+.1%} to {high:+.1%})"


if __name__ == "__main__":
    main()
