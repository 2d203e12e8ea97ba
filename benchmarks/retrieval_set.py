"""The data of the retrieval benchmark: passages, consumers' questions, relevance judgments, and the metrics."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meditune.data.example import Example
from meditune.data.readers import liveqa, medquad, pubmedqa
from meditune.data.readers.medquad import tidy
from meditune.data.readers.tables import Rejects, rows
from meditune.models.sentence_encoder import load_encoder
from meditune.retrieve import collections, topics
from meditune.retrieve.build_index import build
from meditune.retrieve.collections import JUDGED
from meditune.retrieve.documents.document import Document, Section
from meditune.retrieve.index import Index
from meditune.retrieve.storage import MANIFEST, index_storage
from meditune.retrieve.topics import key

RELEVANT = 3
"""The lowest judgment of a relevant answer: 3 (incomplete) or 4 (excellent)"""
LETTERS = 1500
"""Number of characters of a passage, with its title, that the sentence model reads"""
RESAMPLES = 10_000
SEED = 17
OPENINGS = (
    "Hello, my mother is 67 and lives with us since last summer, she has her good and her bad days.",
    "Hi, I am writing from Ohio, I work nights in a warehouse and can't get hold of my doctor.",
    "Dear sir or madam, our son was always a healthy boy who played football until this spring.",
    "I have been reading about this for weeks now and everyone in the family says something else.",
    "My sister called me yesterday, she was crying on the phone after she came back from the clinic.",
)
ASKING = {
    "symptoms": ("How would we notice {}, what does it look like?", "What signs should I watch for with {}?"),
    "treatment": ("What can be done against {}?", "Is there a cure or a medicine for {}?"),
    "causes": ("Where does {} come from?", "Why do people get {}?"),
    "inheritance": ("Can {} be passed on to the children?", "Does {} run in families?"),
    "exams and tests": ("How can a doctor tell that it is {}?", "Which tests are made for {}?"),
    "prevention": ("How can we keep from getting {}?", "Is there a way to avoid {}?"),
    "outlook": ("How long do people live with {}?", "Will {} get worse over the years?"),
    "information": ("They said it is {}, what is that?", "Please tell me more about {}."),
}
"""Possible wordings of MedQuAD's question types"""
ENDS = ("Thank you so much in advance, God bless.", "I am really worried, please answer soon.", "Best regards, Ann")
FIGURES = ("MRR@10", "nDCG@10", "MAP@10", "recall@100")
_JUDGED = re.compile(r"Question:(.*?)\nURL:.*?\nAnswer:(.*)\)", re.DOTALL)
_DOCUMENT = re.compile(r"_(\d+)_Sec")


@dataclass(frozen=True)
class Text:
    """A passage: an answer under the question that it answers."""

    id: str
    title: str
    text: str
    focus: str = ""
    kind: str = ""
    """MedQuAD's question type, if known"""

    @property
    def whole(self) -> str:
        """Return the searched text."""
        return f"{self.title}\n{self.text}"


@dataclass(frozen=True)
class Asked:
    """A question with the passages (their numbers) that answer it."""

    id: str
    wording: str
    summary: str
    relevant: frozenset[int]


@dataclass
class Task:
    """Passages and questions about them."""

    passages: list[Text] = field(default_factory=list)
    questions: list[Asked] = field(default_factory=list)


def liveqa_medquad(data: Path) -> Task:
    """Return LiveQA's odd test questions with a relevant answer, over MedQuAD's answered pairs and the judged answers.

    A judged answer that is in MedQuAD word for word is that passage, preferably the one of the same document.
    """
    task = Task([_medquad(each) for each in medquad.read(data / "medquad", Rejects())])
    number = _judged(data / "medquad-judged", task.passages)
    judged: dict[str, set[int]] = defaultdict(set)
    for path in sorted((data / "medquad-judged").glob("*qrels*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            question, judgment, answer = line.split()
            if int(judgment[0]) >= RELEVANT:
                judged[f"{liveqa.SOURCE}-test:TQ{question}"].add(number[answer])
    for each in liveqa.read(data / "liveqa", Rejects()):
        if each.id in judged:
            summary = str(each.meta["summary"])
            task.questions.append(Asked(each.id, each.question, summary, frozenset(judged[each.id])))
    return task


def _medquad(example: Example) -> Text:
    kind = str(example.meta["question_type"])
    return Text(example.id, example.question, example.answer, str(example.meta["focus"]), kind)


def _judged(folder: Path, passages: list[Text]) -> dict[str, int]:
    """Add the judged answers that aren't among the passages, and return the passage of each AnswerID."""
    same: dict[str, list[int]] = defaultdict(list)
    for index, passage in enumerate(passages):
        same[" ".join(passage.text.split())].append(index)
    number: dict[str, int] = {}
    for path in sorted(folder.glob("*Answers*.csv")):
        for _, row in rows(path, "medquad-judged", Rejects()):
            found = _JUDGED.fullmatch(str(row["Answer"]).strip())
            if not found:
                raise SystemExit(f"{path}: the answer {row['AnswerID']} doesn't consist of Question, URL and Answer.")
            known = same.get(" ".join(found[2].split()))
            if known is None:
                same[" ".join(found[2].split())] = known = [len(passages)]
                passages.append(Text(row["AnswerID"], " ".join(found[1].split()), tidy(found[2])))
            document = _DOCUMENT.search(row["AnswerID"])
            own = [index for index in known if document and document[1] in passages[index].id]
            number[row["AnswerID"]] = (own or known)[0]
    return number


def pubmedqa_abstracts(data: Path) -> Task:
    """Return PubMedQA's 1,000 questions over their abstracts, without titles and conclusions."""
    task = Task()
    for index, each in enumerate(pubmedqa.read(data / "pubmedqa", Rejects())):
        task.passages.append(Text(each.id, "", "\n".join(passage.text for passage in each.context)))
        task.questions.append(Asked(each.id, each.question, each.question, frozenset({index})))
    return task


def rambling(passages: Sequence[Text], count: int = 300) -> Task:
    """Return MedQuAD's questions as a patient might write them, with a typing error in the topic's longest word.

    All passages on that topic that answer that type of question are relevant.
    """
    chance = random.Random(SEED)
    same: dict[tuple[str, str], set[int]] = defaultdict(set)
    for index, passage in enumerate(passages):
        same[key(topics.read(passage.title).topic), topics.read(passage.title).kind].add(index)
    asked = [passage for passage in passages if passage.kind in ASKING and len(passage.focus.split()) <= 4]
    task = Task(list(passages))
    for number, passage in enumerate(chance.sample(asked, count)):
        topic = _slip(passage.focus, chance)
        message = f"{chance.choice(OPENINGS)} {chance.choice(ASKING[passage.kind]).format(topic)} {chance.choice(ENDS)}"
        relevant = frozenset(same[key(topics.read(passage.title).topic), passage.kind])
        task.questions.append(Asked(f"rambling:{number}", message, passage.title, relevant))
    return task


def _slip(topic: str, chance: random.Random) -> str:
    """Return the topic with a letter of its longest word left out, doubled or swapped; short words stay."""
    longest = max(re.findall(r"[A-Za-z]+", topic), key=len, default="")
    if len(longest) < 6:
        return topic
    at = chance.randrange(2, len(longest) - 2)
    kinds = (
        longest[:at] + longest[at + 1 :],
        longest[: at + 1] + longest[at:],
        longest[:at] + longest[at + 1] + longest[at] + longest[at + 2 :],
    )
    return topic.replace(longest, chance.choice(kinds), 1).lower()


def trained(data: Path) -> set[str]:
    """Return the ids of the 500 PubMedQA items outside the publisher's test set."""
    train, _ = pubmedqa.official_split(pubmedqa.read(data / "pubmedqa", Rejects()))
    return {each.id for each in train}


def index(data: Path, task: Task, where: Path) -> Index:
    """Return the index of the task's passages and PubMedQA's abstracts without titles; build it if it doesn't exist.

    Judged answers that are in MedQuAD word for word are in the index once, as in the task.
    """
    register(task)
    if not (where / MANIFEST).exists():
        names = (JUDGED, pubmedqa.SOURCE, medquad.SOURCE)
        build(
            index_storage(where),
            [collections.collection_named(f"{name}={data / name}") for name in names],
            load_encoder(),
        )
    return Index.open(where)


def register(task: Task) -> None:
    """Register readers for the task's judged answers and for abstracts without titles, by collection name."""
    judged = [passage for passage in task.passages if not passage.id.startswith(medquad.SOURCE)]

    def read_judged(_: Path, __: Rejects) -> Iterator[Document]:
        for each in judged:
            yield Document(document(each.id), JUDGED, [Section(each.text)], each.title)

    def read_abstracts(path: Path, rejects: Rejects) -> Iterator[Document]:
        for each in pubmedqa.read(path, rejects):
            sections = [Section(passage.text, passage.label.capitalize()) for passage in each.context]
            yield Document(each.id, pubmedqa.SOURCE, sections)

    collections.NAMED.update({JUDGED: read_judged, pubmedqa.SOURCE: read_abstracts})


def document(name: str) -> str:
    """Return the name of a passage's document in the index."""
    return name if name.startswith((medquad.SOURCE + ":", pubmedqa.SOURCE)) else f"{JUDGED}:{name}"


def figures(ranking: Sequence[int], relevant: frozenset[int]) -> tuple[float, float, float, float]:
    """Return MRR@10, nDCG@10 (binary), MAP@10 (over at most 10 relevant passages) and recall@100."""
    hits = [passage in relevant for passage in ranking]
    places = [place for place, hit in enumerate(hits[:10], start=1) if hit]
    most = min(10, len(relevant))
    gain = sum(1 / np.log2(place + 1) for place in places)
    ideal = sum(1 / np.log2(place + 1) for place in range(1, most + 1))
    precision = sum(count / place for count, place in enumerate(places, start=1))
    first = 1 / places[0] if places else 0.0
    return first, gain / ideal, precision / most, sum(hits[:100]) / len(relevant)


def intervals(values: NDArray[np.float64]) -> list[tuple[float, float, float]]:
    """Return the mean and the 95% interval over questions (rows) of each metric (column)."""
    draws = np.random.default_rng(SEED).integers(0, len(values), (RESAMPLES, len(values)))
    means = values[draws].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return [(float(m), float(a), float(b)) for m, a, b in zip(values.mean(axis=0), low, high, strict=True)]


def best(scores: NDArray[Any], count: int) -> list[int]:
    """Return the indices of the highest scores, best first."""
    count = min(count, len(scores))
    top = np.argpartition(-scores, count - 1)[:count]
    return [int(index) for index in top[np.argsort(-scores[top], kind="stable")]]


def fused(rankings: Iterable[Sequence[int]], constant: float = 60.0) -> list[int]:
    """Return the rankings merged by reciprocal rank fusion (Cormack, Clarke and Büttcher 2009)."""
    scores: dict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, passage in enumerate(ranking, start=1):
            scores[passage] += 1 / (constant + rank)
    return sorted(scores, key=lambda passage: -scores[passage])
