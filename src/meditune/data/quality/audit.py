"""Quality control: apply all rules in order, record the changes in the ledger, and collect facts about the data."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, groupby
from typing import Any

from meditune.config.data_options import QUALITY_RULES, QualitySpec
from meditune.data.diversity import diversity
from meditune.data.example import Example
from meditune.data.near_duplicates import MIN_PASSAGE_WORDS
from meditune.data.quality import deduplication, quality_filters
from meditune.data.quality.deduplication import Pair
from meditune.data.quality.ledger import Entry, Ledger
from meditune.data.read_sources import is_restricted
from meditune.data.splits import SPLITS, Splits, backgrounds, context_key, instructions, question_key
from meditune.progress import track

NEAR_DUPLICATE_SIMILARITY = 0.7
"""Minimum Jaccard index of words and word pairs for near duplicates"""
EXAMPLES = 5
CHARACTERS = 240


@dataclass
class Audit:
    """The state and findings of a quality-control run."""

    spec: QualitySpec
    protected: Collection[str]
    """Ids of official test items"""
    ledger: Ledger = field(default_factory=Ledger)
    read: int = 0
    remaining: dict[str, list[Example]] = field(default_factory=dict)
    pairs: list[tuple[str, str, Pair]] = field(default_factory=list)
    """(first id, second id, result of the comparison) of rows that are (nearly) identical"""
    thresholds: list[dict[str, Any]] = field(default_factory=list)
    hidden: Container[str] | None = ()
    """Ids of rows whose text is never shown as an example; None means all rows"""
    dropped_rows: dict[str, str] = field(default_factory=dict)
    """Id of a dropped row -> the rule that dropped it, and what the rule found"""
    _shown: dict[str, list[dict[str, str]]] = field(default_factory=lambda: defaultdict(list))
    _changed: set[str] = field(default_factory=set)

    def rows(self, by_source: Mapping[str, list[Example]]) -> None:
        """Apply the rules to the rows of all sources, and set `remaining`.

        If rows are duplicates, the row from the earliest source normally stays.
        """
        source_of = {example.id: name for name, examples in by_source.items() for example in examples}
        rows = [example for examples in by_source.values() for example in examples]
        self.read = len(rows)
        checked = []
        for example in track(rows, "Checking each row", unit="rows"):
            after, entries = quality_filters.apply_rules(example, self.spec, self._is_fixed(example))
            self.note(entries)
            if after is not None:
                checked.append(after)
        unique = self._duplicates(checked)
        changed: dict[int, Example] = {}
        gone: set[int] = set()
        if self.spec.action("repeated_question") != "off":
            found = deduplication.repeated_questions(deduplication.keys(map(deduplication.asked_key, unique)))
            changed, gone = self.asked_again(unique, found)
        self.remaining = {name: [] for name in by_source}
        for at, example in enumerate(unique):
            if at not in gone:
                self.remaining[source_of[example.id]].append(changed.get(at, example))

    def between(self, splits: Splits) -> Splits:
        """Return the splits after the rule cross_split, which drops or flags (near) duplicates of held-out rows.

        A training row is compared with development and test items, and a development item with test items.
        """
        action = self.spec.action("cross_split")
        if action == "off":
            return splits
        split_of = {example.id: name for name, examples in splits.named().items() for example in examples}
        rows = {example.id: example for examples in splits.named().values() for example in examples}
        gone: set[str] = set()
        for one, two, pair in self.pairs:
            if one not in split_of or two not in split_of or split_of[one] == split_of[two]:
                continue
            low, high = sorted((one, two), key=lambda each: SPLITS.index(split_of[each]))
            if low not in gone and high not in gone:
                detail = f"{_similarity(pair)} as {high}, a {split_of[high]} item"
                if self._leave_out("cross_split", action, rows[low], detail):
                    gone.add(low)
        left: dict[str, Any] = {
            name: [e for e in examples if e.id not in gone] for name, examples in splits.named().items()
        }
        return replace(splits, **left)

    def note_row(self, row: dict[str, str | None], example: dict[str, str] | None) -> None:
        """Record a ledger row, and an example to show. The caller must count the dropped and changed rows."""
        self.ledger.add_row(row)
        examples = self._shown[str(row["rule"])]
        if example is not None and len(examples) < EXAMPLES:
            examples.append(example)

    def note(self, entries: Iterable[Entry]) -> None:
        """Record entries, and count the rows that they drop or change."""
        for entry in entries:
            if entry.after is None:
                self.dropped_rows[entry.before.id] = f"{entry.rule}: {entry.detail}"
            elif entry.after is not entry.before:
                self._changed.add(entry.before.id)
            is_shown = len(self._shown[entry.rule]) < EXAMPLES
            is_hidden = self.hidden is None or entry.before.id in self.hidden
            self.note_row(entry.row(), excerpt(entry, is_hidden) if is_shown else None)

    def facts(self, dropped: int | None = None, changed: int | None = None) -> dict[str, Any]:
        """Return the entry `audit` of quality.json; the arguments, if given, replace the counts that `note` made."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for (rule, action), count in self.ledger.counts.items():
            found[rule][action] = count
        return {
            "rows": self.read,
            "dropped": len(self.dropped_rows) if dropped is None else dropped,
            "changed": len(self._changed - self.dropped_rows.keys()) if changed is None else changed,
            "rules": {
                name: {
                    "meaning": rule.description,
                    "action": self.spec.action(name),
                    "rows": found[name].total(),
                    "share": found[name].total() / max(self.read, 1),
                    "done": dict(found[name]),
                    "examples": self._shown[name],
                }
                for name, rule in QUALITY_RULES.items()
            },
            "alike": NEAR_DUPLICATE_SIMILARITY,
            "near_duplicates": self.thresholds,
        }

    def dropped(self) -> dict[str, int]:
        """Return the number of rows that each rule dropped or merged."""
        return {rule: count for (rule, action), count in self.ledger.counts.items() if action in ("drop", "merge")}

    def left_out(self) -> str:
        """Return how many rows the rules dropped, why, and how to keep them; empty if fewer than half were dropped."""
        if not self.dropped_rows or 2 * len(self.dropped_rows) < self.read:
            return ""
        counts = Counter(self.dropped()).most_common()
        shares = ", ".join(f"{rule} {count:,} ({count / self.read:.0%})" for rule, count in counts)
        rule = counts[0][0]
        action = "keep" if rule == "repeated_question" else "flag"
        keep = f"To keep the rows that {rule} left out: --set data.quality.rules.{rule}={action}."
        if rule == "language":
            found = Counter(
                reason.split()[-1] for reason in self.dropped_rows.values() if reason.startswith("language: ")
            )
            allowed = ", ".join([*self.spec.languages, *(code for code, _ in found.most_common(1))])
            keep += f" To allow the language of most of them: --set 'data.quality.languages=[{allowed}]'."
        return f"{len(self.dropped_rows):,} of {self.read:,} rows were left out: {shares}. {keep}"

    def _duplicates(self, examples: list[Example]) -> list[Example]:
        """Return the examples without duplicates; official test items and rows to keep take precedence."""
        ranked = sorted(examples, key=lambda each: (each.id not in self.protected, each.id not in self.spec.keep))
        found = deduplication.pairs(ranked)
        self.pairs = [(ranked[pair.first].id, ranked[pair.repeat].id, pair) for pair in self._similar(found)]
        out = {ranked[index].id for index in self.repeats(ranked, found)}
        return [example for example in examples if example.id not in out]

    def _similar(self, pairs: Sequence[Pair]) -> list[Pair]:
        return [pair for pair in pairs if pair.alike >= NEAR_DUPLICATE_SIMILARITY]

    def repeats(self, ranked: Sequence[Example], duplicates: Sequence[Pair]) -> set[int]:
        """Return the indices of the duplicates that are dropped; in `ranked`, rows that always stay come first."""
        self.thresholds = deduplication.by_threshold(duplicates)
        gone: dict[int, Pair] = {}
        for again, pairs in groupby(self._similar(duplicates), key=lambda pair: pair.repeat):
            if (chosen := self._chosen(list(pairs), gone, ranked)) is not None:
                pair, rule = chosen
                detail = f"{_similarity(pair)} as {ranked[pair.first].id}"
                if self._leave_out(rule, self.spec.action(rule), ranked[again], detail):
                    gone[again] = pair
        return set(gone)

    def _chosen(
        self, pairs: Sequence[Pair], dropped: Mapping[int, Pair], ranked: Sequence[Example]
    ) -> tuple[Pair, str] | None:
        """Return the pair that decides whether a row is dropped, and the pair's rule; None if no rule applies.

        Rules that drop rows take precedence. A row that is only similar to a dropped row stays; a row that is identical
        to a dropped row is dropped, too.
        """
        staying = []
        for pair in pairs:
            if pair.first in dropped:
                if not pair.exact:
                    continue
                pair = replace(dropped[pair.first], repeat=pair.repeat)
            rule = self._rule_of(pair, ranked)
            action = "off" if rule == "cross_split" else self.spec.action(rule)
            if action != "off":
                staying.append((action == "drop", pair.alike, pair, rule))
        return max(staying, key=lambda each: each[:2])[2:] if staying else None

    def asked_again(
        self, examples: Sequence[Example], repeated: Iterable[tuple[int, int]]
    ) -> tuple[dict[int, Example], set[int]]:
        """Apply the rule repeated_question; return the changed rows by index, and the indices of the dropped rows."""
        action = self.spec.action("repeated_question")
        changed: dict[int, Example] = {}
        gone: set[int] = set()
        members = Counter((example.source, example.group) for example in examples) if action == "group" else Counter()
        for first, again in repeated:
            later, earlier = examples[again], changed.get(first, examples[first])
            after: Example | None = later
            detail, done = f"same question as {earlier.id}", "flag"
            if action == "keep" or self._is_fixed(later) or (action == "merge" and self._is_fixed(earlier)):
                pass
            elif action == "merge":
                after, done = None, "merge"
                references = [*(earlier.meta.get("references") or []), *later.references()]
                changed[first] = earlier.model_copy(update={"meta": earlier.meta | {"references": references}})
                gone.add(again)
            elif members[later.source, later.group] == 1:
                # A row that shares its group with others keeps it; the splits keep repeated questions together anyway.
                if later.group == earlier.group:
                    continue
                changed[again] = after = later.model_copy(update={"group": earlier.group})
                done = "group"
            self.note([Entry("repeated_question", done, later, after, detail)])
        return changed, gone

    def _leave_out(self, rule: str, action: str, example: Example, detail: str) -> bool:
        """Record a duplicate row; return True if it is dropped."""
        out = action == "drop" and not self._is_fixed(example)
        self.note([Entry(rule, "drop" if out else "flag", example, None if out else example, detail)])
        return out

    def _rule_of(self, pair: Pair, ranked: Sequence[Example]) -> str:
        first, again = ranked[pair.first], ranked[pair.repeat]
        if first.id in self.protected:
            return "cross_split"
        if first.source != again.source:
            return "cross_source"
        return "exact_duplicate" if pair.exact else "near_duplicate"

    def _is_fixed(self, example: Example) -> bool:
        """Return True if the row is never dropped or changed."""
        return example.id in self.protected or example.id in self.spec.keep


def _similarity(pair: Pair) -> str:
    return "same text" if pair.exact else f"nearly the same text ({pair.alike:.2f})"


def excerpt(entry: Entry, hidden: bool = False) -> dict[str, str]:
    """Return an entry's row for display, without its text if the row is restricted or `hidden`."""
    before, after = entry.before, entry.after
    if hidden or is_restricted(before):
        return {"id": before.id, "action": entry.action, "detail": "", "question": "", "answer": ""}
    row = {
        "id": before.id,
        "action": entry.action,
        "detail": entry.detail[:CHARACTERS],
        "question": before.question[:CHARACTERS],
    }
    if after is None or after.answer == before.answer:
        return row | {"answer": before.answer[:CHARACTERS]}
    pairs = enumerate(zip(before.answer, after.answer, strict=False))
    start = max(0, next((at for at, (one, two) in pairs if one != two), 0) - CHARACTERS // 4)
    window = slice(start, start + CHARACTERS)
    return row | {"answer": before.answer[window], "after": after.answer[window]}


BINS = 20


def facts(splits: Splits, read: dict[str, dict[str, Any]], dropped: dict[str, int]) -> dict[str, Any]:
    """Return entries of `quality.json`: counts per source and split, dropped rows, overlap, lengths, diversity."""
    everything = [*splits.train, *splits.dev, *splits.test]
    lengths = Lengths()
    questions = Counter(question_key(example.user_text) for example in lengths.counted(everything))
    return {
        "sources": read,
        "dropped": dropped,
        "repeated_questions": sum(count - 1 for count in questions.values()),
        "test_set": splits.test_set,
        "shared": shared(splits),
        "splits": {name: _facts(examples) for name, examples in splits.named().items()},
        "lengths": lengths.facts(),
        "diversity": diversity(splits),
    }


class Lengths:
    """Histograms of the number of words in questions, contexts and answers."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[int]] = {"question": Counter(), "context": Counter(), "answer": Counter()}

    def counted(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Yield the examples, and count the words of their texts; empty answers aren't counted."""
        for example in examples:
            texts = {"question": example.question, "context": example.context_text, "answer": example.answer}
            for part, text in texts.items():
                if text or part != "answer":
                    self._counts[part][len(text.split())] += 1
            yield example

    def facts(self) -> dict[str, Any]:
        """Return the entry `lengths` of quality.json."""
        return {part: {"words": histogram(counts)} for part, counts in self._counts.items()}


def shared(splits: Splits) -> dict[str, dict[str, int]]:
    """Return, for each pair of splits, how many ids, groups, distinctive questions and contexts are in both splits."""
    everything = [*splits.train, *splits.dev, *splits.test]
    asked, common = instructions(everything), backgrounds(everything)
    found: dict[str, dict[str, set[Any]]] = {}
    for name, examples in splits.named().items():
        contexts = {context_key(example) for example in examples}
        found[name] = {
            "ids": {example.id for example in examples},
            "groups": {(example.source, example.group) for example in examples},
            "questions": {question_key(example.user_text) for example in examples} - asked,
            "contexts": {key for key in contexts - common if len(key.split()) >= MIN_PASSAGE_WORDS},
        }
    return {
        f"{one} and {two}": {trait: len(found[one][trait] & found[two][trait]) for trait in found[one]}
        for one, two in combinations(found, 2)
    }


def _facts(examples: Sequence[Example]) -> dict[str, Any]:
    years = [example.meta["year"] for example in examples if isinstance(example.meta.get("year"), int)]
    return {
        "examples": len(examples),
        "groups": len({(example.source, example.group) for example in examples}),
        "sources": dict(Counter(example.source for example in examples)),
        "decisions": dict(Counter(example.decision for example in examples if example.decision)),
        "with_answer": sum(bool(example.answer) for example in examples),
        "years": [min(years), max(years)] if years else None,
    }


def histogram(values: Counter[int]) -> list[dict[str, int]]:
    """Return up to BINS bins of equal width, {"from", "to" (exclusive), "count"}; `values` maps values to counts."""
    if not values:
        return []
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // BINS))
    counts: Counter[int] = Counter()
    for value, times in values.items():
        counts[(value - low) // width] += times
    return [
        {"from": low + slot * width, "to": low + (slot + 1) * width, "count": counts[slot]}
        for slot in range(max(counts) + 1)
    ]
