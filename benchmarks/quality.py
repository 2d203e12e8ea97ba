"""Measure how well quality control finds planted defects, what it reports on published rows, and its speed.

    MEDITUNE_DATA=... python benchmarks/quality.py [--held-out]

The rows are the training parts of PubMedQA (official split), MedQuAD (by group, seed 17) and LiveQA. With --held-out,
they are MedQuAD's test groups and LiveQA's test questions, which influenced no choice. PubMedQA's test set is never
used.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from defects import (
    Damage,
    copied,
    cut,
    endless,
    foreign,
    mojibake,
    negated,
    one_word,
    other_number,
    other_topic,
    paged,
    rewritten,
    spread,
    stated,
    swapped,
)
from meditune.config.data_options import QualitySpec
from meditune.data.example import Example
from meditune.data.quality import deduplication, quality_filters
from meditune.data.quality.audit import NEAR_DUPLICATE_SIMILARITY, Audit
from meditune.data.quality.ledger import FILE_NAME, entries
from meditune.data.readers import liveqa, medquad, pubmedqa
from meditune.data.readers.tables import Rejects
from meditune.data.splits import Splits, official_tests, split

PLANTED = 600
SPEC = QualitySpec()
BY_ROW: dict[str, Damage] = {
    "encoding": mojibake,
    "layout": spread,
    "boilerplate": paged,
    "language": foreign,
    "not_a_question": stated,
    "too_short": one_word,
    "too_long": endless,
    "truncated": cut,
    "off_topic": swapped,
}


def found(example: Example, rule: str) -> bool:
    """Return whether the rule alone finds something."""
    return quality_filters.RULES[rule](example, SPEC) is not None


def clean(examples: Sequence[Example]) -> list[Example]:
    """Return the rows after quality control."""
    after = (quality_filters.apply_rules(example, SPEC)[0] for example in examples)
    return [example for example in after if example is not None and example.answer]


def row_rules(rows: Sequence[Example], data: Path) -> None:
    """Print precision and recall of each rule for single rows, with equal numbers of good and damaged rows."""
    print("| rule | planted | found | recall | good rows found | precision |\n|---|---|---|---|---|---|")
    for rule, damage in BY_ROW.items():
        chance = random.Random(rule)
        planted: list[Example] = []
        while len(planted) < PLANTED:
            damaged = damage(chance.choice(rows), chance, rows)
            if damaged is not None:
                planted.append(damaged)
        line(rule, planted, chance.sample(list(rows), PLANTED))
    line("not_medical", encyclopedia(data / "wikitext-2" / "valid.txt"), random.Random(1).sample(list(rows), PLANTED))


def line(rule: str, planted: Sequence[Example], good: Sequence[Example]) -> None:
    """Print one line of the table."""
    right, wrong = sum(found(example, rule) for example in planted), sum(found(example, rule) for example in good)
    expected = wrong * len(planted) / len(good)
    precision = right / (right + expected) if right else 0.0
    print(
        f"| {rule} | {len(planted)} | {right} | {right / len(planted):.3f} | {wrong} of {len(good)} | {precision:.3f} |"
    )


def encyclopedia(path: Path) -> list[Example]:
    """Return paragraphs of encyclopedia articles, each as the answer to a question about its first words."""
    texts = [text.strip() for text in path.read_text(encoding="utf-8").splitlines() if len(text.split()) > 60]
    asked = [f"What is known about {' '.join(text.split()[:4])}?" for text in texts]
    return [
        Example(id=f"wiki:{n}", source="wiki", question=question, answer=text, group=str(n))
        for n, (question, text) in enumerate(zip(asked, texts, strict=True))
    ][:PLANTED]


def restored(rows: Sequence[Example]) -> None:
    """Print how much of the planted damage is repaired exactly, or with all words kept."""
    chance = random.Random(5)
    print("\n| repaired | planted | exactly as before | all words kept |\n|---|---|---|---|")
    for rule, damage in (("encoding", mojibake), ("layout", spread), ("boilerplate", paged)):
        exact = words_kept = count = 0
        while count < PLANTED:
            before = chance.choice(rows)
            damaged = damage(before, chance, rows)
            if damaged is None:
                continue
            count += 1
            finding = quality_filters.RULES[rule](damaged, SPEC)
            after = finding.corrected if finding and finding.corrected else damaged
            # The planted text has curly quotes and dashes, and one letter with an accent.
            plain = before.answer.replace("'", "’").replace(" - ", " – ") if rule == "encoding" else before.answer
            exact += _bare(after.answer) == _bare(plain) if rule == "encoding" else after.answer == plain
            words_kept += _words(after.answer) >= _words(plain)
        print(f"| {rule} | {count} | {exact / count:.3f} | {words_kept / count:.3f} |")


def _bare(text: str) -> str:
    """Return the text without accents."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", _bare(text)))


def duplicate_rules(rows: Sequence[Example]) -> None:
    """Print how many planted copies and rewrites are found among all rows, and how many near misses are."""
    chance = random.Random(3)
    number = 0

    def plant(damage: Damage, kind: str) -> dict[str, str]:
        nonlocal number
        made = {}
        while len(made) < PLANTED:
            original = chance.choice(rows)
            other = damage(original, chance, rows)
            if other is not None:
                number += 1
                made[f"planted:{kind}-{number}"] = original.id
                added.append(other.model_copy(update={"id": f"planted:{kind}-{number}"}))
        return made

    added: list[Example] = []
    kinds = {name: plant(damage, name) for name, damage in (("copied", copied), ("rewritten", rewritten))}
    near = {"other_number": other_number, "negated": negated, "other_topic": other_topic}
    misses = {name: plant(damage, name) for name, damage in near.items()}
    everything = [*rows, *added]
    pairs = [(everything[pair.first].id, everything[pair.repeat].id, pair) for pair in deduplication.pairs(everything)]
    before = {frozenset((rows[pair.first].id, rows[pair.repeat].id)) for pair in deduplication.pairs(list(rows))}
    print("\n| rows | planted | found as their original's duplicate | share |\n|---|---|---|---|")
    alike = {frozenset((one, two)) for one, two, pair in pairs if pair.alike >= NEAR_DUPLICATE_SIMILARITY}
    twin = {row.id: row.id for row in rows} | {
        rows[pair.repeat].id: rows[pair.first].id for pair in deduplication.pairs(list(rows)) if pair.exact
    }
    for name, made in {**kinds, **misses}.items():
        hits = sum(
            bool({frozenset((identifier, original)), frozenset((identifier, twin[original]))} & alike)
            for identifier, original in made.items()
        )
        print(f"| {name} | {len(made)} | {hits} | {hits / len(made):.3f} |")
    # A copy of an exact duplicate is paired with the first of the duplicates.
    twins = {**kinds["copied"], **kinds["rewritten"]}
    print("\n| minimum similarity | recall of rewrites | precision |\n|---|---|---|")
    for least in deduplication.THRESHOLDS:
        now = {frozenset((one, two)) for one, two, pair in pairs if pair.alike >= least}
        recall = sum(
            bool({frozenset((identifier, original)), frozenset((identifier, twin[original]))} & now)
            for identifier, original in kinds["rewritten"].items()
        )
        recall /= PLANTED
        right = wrong = 0
        for pair in now - before:
            if all(identifier.startswith("planted:") and identifier not in twins for identifier in pair):
                continue  # two near misses of one row; neither is a duplicate
            roots = {twins.get(identifier, identifier) for identifier in pair}
            if len(roots) == 1 or frozenset(roots) in before:
                right += 1
            else:
                wrong += 1
        print(f"| {least} | {recall:.3f} | {right / max(right + wrong, 1):.3f} ({wrong} wrong) |")


def between(rows: Sequence[Example]) -> None:
    """Print how many rewrites in another source, rewrites of test items and repeated questions are found."""
    chance = random.Random(11)
    shuffled = chance.sample(list(rows), len(rows))
    test, others = shuffled[: PLANTED // 2], shuffled[PLANTED // 2 :]
    made: dict[str, list[Example]] = {}
    for rule, damage, among in (
        ("cross_source", rewritten, others),
        ("cross_split", rewritten, test),
        ("repeated_question", swapped, others),
    ):
        damaged = (damage(example, chance, rows) for example in among)
        chosen = [example for example in damaged if example is not None][: PLANTED // 2]
        made[rule] = [
            example.model_copy(update={"id": f"{rule}-{n}", "source": "planted"}) for n, example in enumerate(chosen)
        ]
    spec = QualitySpec(rules=dict.fromkeys(quality_filters.RULES, "off"))
    audit = Audit(spec, {example.id for example in test})
    planted = [example for examples in made.values() for example in examples]
    audit.rows({"real": list(rows), "planted": planted})
    left = {example.id: example for examples in audit.remaining.values() for example in examples}
    tested = [left.pop(example.id) for example in test]
    audit.between(Splits(list(left.values()), [], tested, "test"))
    with tempfile.TemporaryDirectory() as folder:
        audit.ledger.write(Path(folder) / FILE_NAME)
        found_by = Counter(
            (row["rule"], row["id"].rpartition("-")[0]) for row in entries(Path(folder)) if row["source"] == "planted"
        )
    print("\n| rule | planted | found | recall | other planted rows found | precision |\n|---|---|---|---|---|---|")
    for rule, examples in made.items():
        right = found_by[rule, rule]
        wrong = sum(count for (name, kind), count in found_by.items() if name == rule and kind != rule)
        # A rewrite that isn't removed repeats its question, too.
        share = "" if rule == "repeated_question" else f"{right / max(right + wrong, 1):.3f}"
        print(f"| {rule} | {len(examples)} | {right} | {right / len(examples):.3f} | {wrong} | {share} |")


def as_they_are(read: dict[str, list[Example]]) -> None:
    """Print the number of findings of each rule in rows as published."""
    print("\n| rule |", " | ".join(read), "|\n|---|" + "---|" * len(read))
    for rule in quality_filters.RULES:
        shares = []
        for examples in read.values():
            count = sum(found(example, rule) for example in examples)
            shares.append(f"{count:,} ({count / len(examples):.2%})")
        print(f"| {rule} |", " | ".join(shares), "|")


def speed(read: dict[str, list[Example]]) -> None:
    """Print time and memory of the whole audit."""
    started, used = time.monotonic(), time.process_time()
    audit = Audit(SPEC, official_tests(read))
    audit.rows(read)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    facts = audit.facts()
    print(f"\n{audit.read:,} rows: {time.monotonic() - started:.1f} s, {time.process_time() - used:.1f} CPU-seconds,")
    print(f"Peak {peak:.2f} GB. Dropped {facts['dropped']:,}, changed {facts['changed']:,}.")
    for name, row in facts["rules"].items():
        print(f"  {name}: {row['done']}")
    print(f"  near duplicates by threshold: {facts['near_duplicates']}")


def parts_of(read: dict[str, list[Example]]) -> dict[str, Splits]:
    """Return each source split as in a run."""
    return {name: split({name: examples}, True, 0.2, 0.1, 17) for name, examples in read.items()}


def main() -> None:
    """Print the tables of docs/explanation/data-preparation.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-out", action="store_true", help="measure on rows that influenced no choice")
    held_out = parser.parse_args().held_out
    data = Path(os.environ["MEDITUNE_DATA"])
    readers = {"pubmedqa": pubmedqa.read, "medquad": medquad.read, "liveqa": liveqa.read}
    read = {name: list(reader(data / name, Rejects())) for name, reader in readers.items()}
    if not held_out:
        speed(read)
    parts = parts_of(read)
    if held_out:
        chosen = {name: parts[name].test for name in ("medquad", "liveqa")}
    else:
        chosen = {name: [*part.train, *part.dev] for name, part in parts.items()}
    as_they_are(chosen)
    rows = clean([example for examples in chosen.values() for example in examples])
    print()
    row_rules(rows, data)
    restored(rows)
    duplicate_rules(rows)
    between(rows)


if __name__ == "__main__":
    main()
