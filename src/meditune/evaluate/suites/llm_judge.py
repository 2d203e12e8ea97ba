"""Grading of answers to K-QA, MedicationQA and HealthBench by a judge, and the judge's agreement with physicians.

A judge decides for each answer and statement: yes (the answer contains the statement, or meets the criterion), no (it
contradicts the statement, or doesn't meet the criterion) or maybe (neither). The judge is a model behind an API, an
evidence judge, or another model that judges support. Meditune's questions to the judge are shorter than the publishers'
questions, so scores are comparable with published scores only to the extent that the judge agrees with the physicians'
labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meditune.config.recipe import SUITE_TOKENS, Recipe, SuiteName
from meditune.data.example import Example
from meditune.errors import ModelError
from meditune.evaluate.backends import request_all
from meditune.evaluate.evaluator import StoredRows
from meditune.evaluate.predictions import GRADES_OF, path_of
from meditune.evaluate.suites.load_suites import FOLDER, SUITES, stored_labels, stored_suites, suite_facts
from meditune.evaluate.suites.suite_readers import STATEMENTS
from meditune.evidence.support_model import ClaimVerdict
from meditune.files import read_jsonl
from meditune.models.api_client import ApiModel, Chat, Client, find_api_model, of_chat
from meditune.models.catalogue import is_hub_id
from meditune.progress import Progress
from meditune.prompts import DECISION_TOKENS, decision_in
from meditune.statistics import wilson

if TYPE_CHECKING:
    from meditune.engines.evidence_judge import EvidenceJudge, SupportJudge

KEY = "evaluate.suite_judge"
"""The recipe key that names the judge"""
Verdict = str | None
"""yes, no or maybe; None if the judge answered with something else"""


@dataclass(frozen=True)
class Graded:
    """An answer to be graded, with the statements that the judge is to decide on."""

    id: str
    suite: SuiteName
    question: str
    answer: str
    statements: tuple[dict[str, Any], ...]
    """Each statement has `text`, and further keys that are stored with the verdict"""

    def messages(self, statement: str) -> list[dict[str, str]]:
        """Return the chat messages that ask a judge behind an API about one statement."""
        named, rule = _CRITERION if self.suite == "healthbench" else _STATEMENT
        text = f"{self.question}\n\nAnswer:\n{self.answer}\n\n{named}: {statement}\n\n{rule}"
        return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": text}]


_SYSTEM = "You check answers to health questions. Judge only what an answer says, not whether it is polite or long."
_STATEMENT = (
    "Statement",
    "Does the answer contain the statement? Write yes if the answer states it or clearly implies it, no if the answer "
    "contradicts it, or maybe if the answer does neither. Write this one word and nothing else.",
)
_CRITERION = (
    "Criterion",
    "Does the answer do what the criterion describes, whether that is good or bad? Write yes only if all parts of the "
    'criterion hold; of things named after "such as" or "for example", one is enough. Otherwise write no. Write this '
    "one word and nothing else.",
)


@dataclass(frozen=True)
class Decided:
    """A statement that a judge is to decide on."""

    id: str
    """ITEM/NUMBER, where NUMBER is the 0-based position of the statement"""
    item: Graded
    text: str


class LocalJudge:
    """A model on this machine, which decides whether the answer, read as a passage, supports a statement."""

    def __init__(self, name: str) -> None:
        from meditune.engines.evidence_judge import open_judge

        self._judge, self.name = open_judge(name, option=KEY), name
        self.refutes = self._judge.refutes

    def grade(self, statements: Sequence[Decided], label: str, keep: Callable[[dict[str, Any]], None]) -> None:
        """Pass to `keep` a row of each statement: `id`, `by`, `verdict`. An answer's statements are judged together."""
        by_answer = [list(group) for _, group in groupby(statements, key=lambda each: each.item.id)]
        with Progress(label, len(by_answer), "answers") as progress:
            for group in by_answer:
                verdicts = verdicts_on(self._judge, [each.text for each in group], group[0].item.answer)
                for each, verdict in zip(group, verdicts, strict=True):
                    keep({"id": each.id, "by": self.name, "verdict": verdict})
                progress.advance()


def verdicts_on(judge: EvidenceJudge | SupportJudge, statements: Sequence[str], answer: str) -> list[str]:
    """Return for each statement whether the answer contains it (yes), contradicts it (no) or does neither (maybe).

    A judge that can't tell contradictions (`refutes` is False) never says no.
    """
    if not answer.strip():
        return ["maybe"] * len(statements)
    return [verdict_on(each, judge.threshold) for each in judge.supports(statements, [answer])]


def cannot_refute(judge: EvidenceJudge | SupportJudge | LocalJudge | ApiJudge) -> dict[str, bool]:
    """Return the key `refutes` for the rows of a judge that can't tell contradictions, else nothing."""
    return {} if judge.refutes else {"refutes": False}


def verdict_on(claim: ClaimVerdict, threshold: float) -> str:
    """Return no if a contradiction is most likely, else yes if the support reaches the threshold, else maybe.

    The threshold can be low, so a statement whose support reaches it may still be contradicted more than supported.
    """
    if claim.refuted > max(claim.supported, claim.unclear):
        return "no"
    return "yes" if claim.supported >= threshold else "maybe"


class ApiJudge:
    """A model behind an API, which is asked one question for each statement."""

    refutes = True

    def __init__(self, model: ApiModel, client: Client) -> None:
        self.name, self.model, self.client = model.title, model, client
        self._chat = Chat(client, model.name)

    def grade(self, statements: Sequence[Decided], label: str, keep: Callable[[dict[str, Any]], None]) -> None:
        """Judge several statements concurrently, and pass to `keep` a row for each statement.

        An empty answer contains no statement, but it can meet a criterion of HealthBench, such as "Fails to ...".
        """

        def ask(each: Decided) -> Callable[[], None]:
            verdict: Verdict = "maybe"
            if each.item.answer.strip() or each.item.suite == "healthbench":
                verdict = decision_in(self._chat.write(each.item.messages(each.text), DECISION_TOKENS))
            return lambda: keep({"id": each.id, "by": self.name, "verdict": verdict})

        request_all(self.client, ask, statements, label, "statements")


def api_judge(recipe: Recipe) -> ApiModel | None:
    """Return the recipe's judge if it is a model behind an API, else None."""
    spec = recipe.evaluate
    return find_api_model(spec.suite_judge, spec.suite_judge_api) if spec.open_suites and spec.suite_judge else None


def refuse_unusable_judge(recipe: Recipe) -> None:
    """Raise ModelError if the recipe's judge can't be used, so that the error is reported before training starts."""
    if not recipe.evaluate.open_suites or recipe.evaluate.suite_judge is None:
        return
    model, name = api_judge(recipe), recipe.evaluate.suite_judge
    if model:
        model.key()
        return
    from meditune.models.nli import check, kind_and_model

    place = kind_and_model(name)[1]
    if not Path(place).is_dir() and not is_hub_id(place):
        raise ModelError(
            f"{KEY}: {name} isn't the folder of an evidence judge's run, or the folder or hub id of another model that "
            "judges support. Train a judge with `meditune run evidence` and name its run, or name a model behind an "
            "API: api:NAME."
        )
    check(name, KEY)


@dataclass(frozen=True)
class Grading:
    """Items that aren't graded yet, in order, and the file for their grades."""

    path: Path
    items: tuple[Graded, ...]
    label: str


def pending(recipe: Recipe, folder: Path, models: Iterable[str]) -> list[Grading]:
    """Return the gradings still to be done: of the models' answers, and of the answers that physicians labelled."""
    found = []
    names = recipe.evaluate.open_suites
    suites = stored_suites(recipe, folder) if names else {}
    for name in names:
        for model in models:
            answers = path_of(folder / "predictions", model, SUITES[name].kind)
            path = _grades_file(folder, model, name)
            if answers.is_file() and not path.is_file():
                written = {row["id"]: row["prediction"] for row in read_jsonl(answers)}
                items = tuple(_graded(name, item, written[item.id]) for item in suites[name] if item.id in written)
                found.append(Grading(path, items, f"Judging {SUITES[name].title} of {model}"))
        labels, path = stored_labels(folder, name), agreement_file(folder, name)
        if labels and not path.is_file():
            found.append(Grading(path, tuple(_labelled(name, row) for row in labels), f"Agreement on {name}"))
    return found


def _grades_file(folder: Path, model: str, name: SuiteName) -> Path:
    return path_of(folder / "predictions", model, GRADES_OF[SUITES[name].kind])


def agreement_file(folder: Path, name: SuiteName) -> Path:
    """Return the file with the judge's verdicts on the answers that physicians labelled."""
    return folder / FOLDER / f"{name}-agreement.jsonl"


def _graded(name: SuiteName, item: Example, answer: str) -> Graded:
    earlier = [(turn.role, turn.text) for turn in item.turns or ()]
    return Graded(item.id, name, _asked(earlier, item.question), answer, tuple(item.meta[STATEMENTS]))


def _labelled(name: SuiteName, row: dict[str, Any]) -> Graded:
    question = _asked([(each["role"], each["text"]) for each in row["turns"]], row["question"])
    return Graded(row["id"], name, question, row["answer"], ({"text": row["statement"], "label": row["label"]},))


def _asked(earlier: Sequence[tuple[str, str]], question: str) -> str:
    lines = [f"{role.capitalize()}: {text}" for role, text in earlier]
    return "\n".join([*lines, f"Question: {question}"])


def tokens_to_send(gradings: Iterable[Grading], answer_tokens: int = 0) -> tuple[int, int, int]:
    """Return the number of requests to a judge behind an API, their estimated input tokens and maximum output tokens.

    `answer_tokens` is added to the input of each request, for answers that don't exist yet.
    """
    requests = read = 0
    for item in (item for grading in gradings for item in grading.items):
        for statement in item.statements:
            requests += 1
            read += of_chat(item.messages(statement["text"])) + answer_tokens
    return requests, read, requests * DECISION_TOKENS


def planned(recipe: Recipe, folder: Path, models: Iterable[str]) -> tuple[int, int, int]:
    """Return the result of `tokens_to_send` for everything that the judge hasn't graded yet, as an upper bound.

    Answers that the models haven't written yet are included. Every answer of a model counts with the maximum length.
    """
    suites, models = stored_suites(recipe, folder), list(models)
    answers = [
        Grading(folder, tuple(_graded(name, item, "") for item in suites[name]), "")
        for name in recipe.evaluate.open_suites
        for model in models
        if not _grades_file(folder, model, name).is_file()
    ]
    parts = (tokens_to_send(answers, SUITE_TOKENS), tokens_to_send(pending(recipe, folder, ())))
    requests, read, written = (sum(column) for column in zip(*parts, strict=True))
    return requests, read, written


def grade_suites(gradings: Sequence[Grading], judge: LocalJudge | ApiJudge) -> None:
    """Have the judge grade, and store each verdict as it arrives, so that an interruption loses no verdict."""
    for grading in gradings:

        def finish(decided: Mapping[str, dict[str, Any]], items: tuple[Graded, ...] = grading.items) -> Iterator[Any]:
            """Yield a row for each answer: `id`, `by`, and `statements` with their `verdict` and further keys.

            `refutes` is False if the judge can't tell contradictions.
            """
            for item in items:
                statements = [
                    {key: value for key, value in each.items() if key != "text"}
                    | {"verdict": decided[f"{item.id}/{number}"]["verdict"]}
                    for number, each in enumerate(item.statements)
                ]
                yield {"id": item.id, "by": judge.name, "statements": statements} | cannot_refute(judge)

        asked = [
            Decided(f"{item.id}/{number}", item, each["text"])
            for item in grading.items
            for number, each in enumerate(item.statements)
        ]
        with StoredRows(grading.path, asked, resumes=True, finish=finish) as rows:
            judge.grade(rows.left, grading.label, rows.keep)


def agreement(folder: Path, name: SuiteName) -> dict[str, Any] | None:
    """Return how often the judge agrees with physicians on whether an answer contains a statement; None without labels.

    `agree` is in percent, with Wilson's `ci95`; `kappa` is None if all labels and verdicts are the same.
    """
    path = agreement_file(folder, name)
    if not path.is_file():
        return None
    pairs = [(each["label"] == "yes", each["verdict"]) for row in read_jsonl(path) for each in row["statements"]]
    same = sum(label == (verdict == "yes") for label, verdict in pairs)
    count = len(pairs)
    physicians, judge = sum(label for label, _ in pairs) / count, sum(verdict == "yes" for _, verdict in pairs) / count
    chance = physicians * judge + (1 - physicians) * (1 - judge)
    return {
        "items": count,
        "agree": 100 * same / count,
        "ci95": wilson(same, count),
        "kappa": (same / count - chance) / (1 - chance) if chance < 1 else None,
        "unclear": sum(verdict is None for _, verdict in pairs),
    }


def described_suites(folder: Path, models: Sequence[str], judge: str | None) -> dict[SuiteName, Any]:
    """Return the `suites` of report.json (docs/reference/report.md): the facts of suites.json, with the judges."""
    found: dict[SuiteName, Any] = {}
    known = suite_facts(folder)
    for name in (each for each in SUITES if each in known):
        kind = SUITES[name].kind
        measured = all(path_of(folder / "predictions", model, kind).is_file() for model in models)
        found[name] = dict(known[name], measured=measured)
        if kind in GRADES_OF:
            graded = [model for model in models if _grades_file(folder, model, name).is_file()]
            unclear = {
                model: sum(
                    each["verdict"] is None
                    for row in read_jsonl(_grades_file(folder, model, name))
                    for each in row["statements"]
                )
                for model in graded
            }
            found[name]["judge"] = {"name": judge, "agreement": agreement(folder, name), "unclear": unclear}
    return found


def suite_remarks(suites: dict[SuiteName, Any]) -> list[str]:
    """Return a sentence for each suite that wasn't measured, and about the judge of each suite of open answers."""
    remarks = []
    for name, facts in suites.items():
        if not facts.get("measured", True):
            why = (
                "the model wrote no answers to it"
                if "judge" in facts
                else "it needs the likelihood of given text from a model that Meditune loads itself"
            )
            remarks.append(f"{facts['title']} (evaluate.suites: {name}) was not measured: {why}.")
            continue
        judge = facts.get("judge")
        if not judge:
            continue
        measured = judge["agreement"]
        if not judge["unclear"]:
            remarks.append(f"{facts['title']}: the answers aren't graded yet. Repeat the command that measured them.")
            continue
        if measured:
            kappa = "" if measured["kappa"] is None else f", kappa {measured['kappa']:.2f}"
            low, high = measured["ci95"]
            text = (
                f"agrees with the physicians on {measured['agree']:.1f}% of {measured['items']} labels (95% interval "
                f"{low:.1f} to {high:.1f}{kappa})"
            )
        elif labels := SUITES[name].labels:
            why = f"{labels[0]} isn't among the suite's files"
            if not Path(facts["from"]).exists() and is_hub_id(facts["from"]):
                why = f"labels are read only from a folder with {labels[0]}, not from {facts['from']}"
            text = f"has an unknown agreement with physicians, because {why}"
        else:
            text = "has an unknown agreement with physicians, because the suite has no labels of answers"
        unclear = sum(judge["unclear"].values()) + (measured["unclear"] if measured else 0)
        more = f" Verdicts other than yes, no and maybe, which count as not met: {unclear}." if unclear else ""
        remarks.append(f"{facts['title']}: the judge {judge['name']} {text}.{more}")
    return remarks
