"""Which texts say nearly the same: questions that are light rewrites, and passages that hold each other's words.

Both searches are exact joins over sparse matrices, not sketches, so nothing is missed by chance, and 500 questions
against 200,000 take seconds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUESTIONS_ALIKE, LOOSELY = 0.65, 0.62
"""Least similarity of two questions' character trigrams (weighted Jaccard) for their words to be compared.

Loosely is for splitting, which had better keep together a little more than what is refused afterwards.
"""
WORDS_PER_CHANGE = 8
"""Questions may differ in one word that carries meaning for every so many words, beside typing errors and order."""
PASSAGES_ALIKE = 0.6
"""Share of the smaller passage's word triples that the other one holds too."""
LEAST_MEANT = 3
"""With fewer words in common that carry meaning, function words must be the same, too."""
FILLINGS, LOOSE_FILLINGS = 4, 6
"""If more questions have the words that two have in common, these are a template, and the two no rewrites."""
PUT_IN = 4
"""Words by which a text that is otherwise the same can be made to say something else."""
LEAST_WORDS = 20
"""Shorter passages aren't compared: they may be a phrase that many rows share."""
BLOCK = 200_000
"""Candidates compared at a time."""

Matches = list[tuple[int, int, float]]
"""Index in the first list, index in the second, similarity up to 1"""

_NEGATIONS = frozenset({"no", "not", "non", "nor", "never", "without"})
_FILLERS = frozenset({"so", "and", "please", "well", "also", "hi", "hello", "now"})
_NUMERAL = re.compile(r"(?=[ivx]{2})x{0,3}(?:ix|iv|v?i{0,3})")
_FUNCTION_WORDS = frozenset(
    word
    for line in (
        "a an and any are as at be been by can could did do does for from had has have how i if in into is it its may",
        "me my of on or our s should some than that the their there these they this those to was we were what when",
        "where which who whose why will with would you your",
    )
    for word in line.split()
)


def words(text: str) -> list[str]:
    """The words of a text without case and punctuation."""
    return re.findall(r"\w+", text.casefold())


def near_questions(
    first: Sequence[str], second: Sequence[str], others: Sequence[str] = (), loosely: bool = False
) -> Matches:
    """Pairs of questions of which one is a light rewrite of the other, or the same.

    Light are other punctuation, case and order, a typing error in a word, and one word in eight that is replaced,
    added or left out. Questions with other numbers, single letters, numerals or negations are different ones:
    "type 1" is no typing error for "type 2"; and so are those that fill a template ("What are the symptoms of ...?"),
    which is known by how many of all questions, `others` included, have the same words. Similarity is the weighted
    Jaccard index of their character trigrams, each weighted by how rare it is. Of one list given twice, each pair
    comes once.
    """
    from scipy.sparse import diags

    if not first or not second:
        return []
    least, fillings = (LOOSELY, LOOSE_FILLINGS) if loosely else (QUESTIONS_ALIKE, FILLINGS)
    vocabulary: dict[str, int] = {}
    grams = [_matrix([_trigrams(text, vocabulary) for text in texts], 0) for texts in (first, second)]
    for matrix in grams:
        matrix.resize(matrix.shape[0], len(vocabulary))
    shared = sum(np.asarray(matrix.sum(axis=0)).ravel() for matrix in grams)
    weights = np.log((len(first) + len(second) + 1) / shared)
    order = np.argsort(-weights, kind="stable")
    one, two = (matrix[:, order] @ diags(weights[order]) for matrix in grams)
    totals = [np.asarray(matrix.sum(axis=1)).ravel() for matrix in (one, two)]
    parts = [_prefixes(matrix, total, least) for matrix, total in zip((one, two), totals, strict=True)]
    said = [[words(text) for text in texts] for texts in (first, second)]
    binary = grams[1][:, order]
    found: Matches = []
    changes: list[_Change | None] = []
    for rows, columns in _candidates(parts[0], parts[1]):
        if first is second:
            rows, columns = rows[rows < columns], columns[rows < columns]
        both = np.asarray(one[rows].multiply(binary[columns]).sum(axis=1)).ravel()
        alike = both / np.maximum(totals[0][rows] + totals[1][columns] - both, 1e-12)
        for index in np.flatnonzero(alike >= least):
            row, column = int(rows[index]), int(columns[index])
            change = _change(said[0][row], said[1][column])
            if change is None or change.is_light:
                found.append((row, column, min(1.0, float(alike[index]))))
                changes.append(change)
    templates = _templates({change.kept for change in changes if change}, [*first, *second, *others], fillings)
    return [
        match for match, change in zip(found, changes, strict=True) if change is None or change.kept not in templates
    ]


def near_passages(first: Sequence[str], second: Sequence[str], least_alike: float = PASSAGES_ALIKE) -> Matches:
    """Pairs of passages of which one holds at least that share of the other's word triples.

    So an abstract is found in an article that quotes it, and with about one word in seven replaced. Passages of fewer
    than LEAST_WORDS words match nothing.
    """
    known: dict[str, int] = {}
    triples, sizes = [], []
    for texts in (first, second):
        ids = [np.array([known.setdefault(word, len(known)) for word in words(text)], dtype=np.int64) for text in texts]
        triples.append([_triples(each) for each in ids])
        sizes.append(np.array([len(each) for each in triples[-1]], dtype=np.float64))
    everything = np.unique(np.concatenate([np.empty(0, np.int64), *triples[0]]))
    placed = [[_places(each, everything) for each in part] for part in triples]
    one, two = (_matrix(part, len(everything)) for part in placed)
    shared = (one @ two.T).tocoo()
    least = np.minimum(sizes[0][shared.row], sizes[1][shared.col])
    alike = shared.data / np.maximum(least, 1)
    long = least >= LEAST_WORDS - 4  # of triples, a few of which may come twice
    chosen = np.flatnonzero(long & (alike >= least_alike))
    return [(int(shared.row[k]), int(shared.col[k]), float(alike[k])) for k in chosen]


class Questions:
    """Tells of two questions whether they ask the same, knowing all that were asked.

    Stricter than `near_questions`, because rows are dropped by it. Another word makes another question, however long
    they are ("... for Ovarian Germ Cell Tumors"), unless a context shows what is meant; and where many questions have
    the words that two have in common, so does another letter, unless the row's own text spells it as the other does.
    """

    def __init__(self, questions: Iterable[str], pairs: Iterable[tuple[str, str]]) -> None:
        """`questions` are all that were asked, of those with the same words one; they are gone through twice.

        `pairs` are those that may be compared; memory grows with them only.
        """
        self._fillings: Counter[frozenset[str]] = Counter()
        about: set[str] = set()
        for pair in pairs:
            mine, yours = map(_asked, pair)
            if mine != yours:
                self._fillings[frozenset(mine) & frozenset(yours)] = 0
                about |= {*mine, *yours}
        self._holders: Counter[str] = Counter()
        if about:
            for question in questions:
                self._holders.update(about.intersection(words(question)))
        self._count(questions)

    def _count(self, questions: Iterable[str]) -> None:
        """How many questions hold each set of words that two have in common; beyond FILLINGS it doesn't matter."""
        by_rarest: dict[str, set[frozenset[str]]] = {}
        for kept in self._fillings:
            if kept:
                by_rarest.setdefault(min(kept, key=lambda word: (self._holders[word], word)), set()).add(kept)
        for question in questions if by_rarest else ():
            said = frozenset(words(question))
            for word in said & by_rarest.keys():
                held = {kept for kept in by_rarest[word] if kept <= said}
                self._fillings.update(held)
                by_rarest[word] -= {kept for kept in held if self._fillings[kept] > FILLINGS}

    def same(self, first: str, second: str, texts: tuple[str, str], has_context: bool) -> bool:
        """Whether they ask the same; `texts` are what stands beside each, context and answer."""
        mine, yours = map(_asked, (first, second))
        if mine == yours:
            return True
        change = _change(mine, yours)
        is_template = self._is_template(frozenset(mine) & frozenset(yours))
        if change is not None:
            return has_context and change.is_light and not is_template
        return self._are_slips(mine, yours, texts, is_template)

    def _are_slips(self, mine: Sequence[str], yours: Sequence[str], texts: tuple[str, str], surely: bool) -> bool:
        """Whether the words that differ by a letter are one word, misspelt once, and not two that the texts use.

        `surely` asks for a proof: a word isn't in its own text, which spells it as the other question does, or it is in
        no other question, and that spelling is.
        """
        left, right = list(_unshared(mine, yours)), list(_unshared(yours, mine))
        said = [frozenset(_worded(text)) for text in texts]
        twins = [(one, two) for one in left for two in right if _one_slip(one, two)]
        if not surely:
            return not any(one in said[0] and two in said[1] for one, two in twins)
        return len(twins) >= max(len(left), len(right)) and all(
            (one not in said[0] and (two in said[0] or self._is_odd(one, two)))
            or (two not in said[1] and (one in said[1] or self._is_odd(two, one)))
            for one, two in twins
        )

    def _is_odd(self, word: str, other: str) -> bool:
        """Whether a word is in one question only, and the other in more."""
        return self._holders[word] == 1 < self._holders[other]

    def _is_template(self, kept: frozenset[str]) -> bool:
        return not kept or self._fillings[kept] > FILLINGS


def same_facts(first: str, second: str) -> bool:
    """Whether no number or negation of one text stands in another's place, or was put in by a word or two.

    "50 mg" for "5 mg", and "is not safe" for "is safe", change a text that is otherwise the same.
    """
    mine, yours = Counter(words(first)), Counter(words(second))
    left, right = sorted(
        (list((mine - yours).elements()), list((yours - mine).elements())), key=lambda side: bool(_marks(side))
    )
    return not _marks(right) or (not _marks(left) and len(right) - len(left) > PUT_IN)


def share_within(part: str, whole: str, length: int) -> float:
    """Of all runs of `length` words in `part`, the share that stands in `whole`; 0 where it is shorter than that."""
    of_part, of_whole = (words(text) for text in (part, whole))
    runs = {tuple(of_part[at : at + length]) for at in range(len(of_part) - length + 1)}
    there = {tuple(of_whole[at : at + length]) for at in range(len(of_whole) - length + 1)}
    return len(runs & there) / len(runs) if runs else 0.0


def _trigrams(text: str, vocabulary: dict[str, int]) -> NDArray[np.int64]:
    padded = [f" {word} " for word in words(text)]
    grams = {word[at : at + 3] for word in padded for at in range(len(word) - 2)}
    return np.array([vocabulary.setdefault(gram, len(vocabulary)) for gram in sorted(grams)], dtype=np.int64)


def _triples(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each run of three words once, as a number."""
    base = np.int64(1 << 21)
    return np.unique((ids[:-2] * base + ids[1:-1]) * base + ids[2:]) if len(ids) > 2 else np.empty(0, np.int64)


def _places(values: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the values that are among others stand there."""
    places = np.searchsorted(among, values)
    inside = places < len(among)
    places, values = places[inside], values[inside]
    there: NDArray[np.int64] = places[among[places] == values]
    return there


def _matrix(rows: Sequence[NDArray[np.int64]], width: int) -> Any:
    """A sparse matrix of ones at the rows' columns."""
    from scipy.sparse import csr_matrix

    ends = np.cumsum([0, *map(len, rows)])
    columns = np.concatenate([np.empty(0, np.int64), *rows])
    width = width or int(columns.max(initial=0)) + 1
    return csr_matrix((np.ones(len(columns)), columns, ends), shape=(len(rows), width))


def _prefixes(matrix: Any, totals: NDArray[np.float64], least: float) -> Any:
    """Of each row the rarest features, as many as must share one with any row that is alike (prefix filtering).

    If the other features' weight is below the share `least` of the row's, two rows that share none of these can't reach
    it (Chaudhuri et al. 2006, https://doi.org/10.1109/ICDE.2006.9). Columns are in order of rarity.
    """
    matrix.sort_indices()
    starts, ends = matrix.indptr[:-1], matrix.indptr[1:]
    lengths = ends - starts
    running = np.cumsum(matrix.data)
    before = np.repeat(np.concatenate([[0.0], running])[starts], lengths) if len(running) else running
    passed = running - matrix.data - before
    kept = passed <= (1 - least) * np.repeat(totals, lengths) + 1e-9
    rows = np.repeat(np.arange(matrix.shape[0]), lengths)[kept]
    counts = np.bincount(rows, minlength=matrix.shape[0])
    return _matrix(np.split(matrix.indices[kept].astype(np.int64), np.cumsum(counts)[:-1]), matrix.shape[1])


def _candidates(first: Any, second: Any) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows of both that share a feature, BLOCK pairs at a time."""
    for start in range(0, first.shape[0], 500):
        shared = (first[start : start + 500] @ second.T).tocoo()
        for at in range(0, shared.nnz, BLOCK):
            yield shared.row[at : at + BLOCK] + start, shared.col[at : at + BLOCK]


@dataclass(frozen=True)
class _Change:
    """How two questions differ beyond order, function words and typing errors."""

    kept: frozenset[str]
    is_light: bool


def _change(first: Sequence[str], second: Sequence[str]) -> _Change | None:
    """None where nothing but order, function words and typing errors differs."""
    mine, yours = Counter(first), Counter(second)
    meant = sum(word not in _FUNCTION_WORDS for word in (mine & yours).elements())
    # With few words that carry meaning, "is it" against "what is" makes another question.
    free = _FUNCTION_WORDS if meant >= LEAST_MEANT else frozenset()
    left = [word for word in (mine - yours).elements() if word not in free]
    right = [word for word in (yours - mine).elements() if word not in free]
    for word in tuple(left):
        twin = next((other for other in right if _one_slip(word, other)), None)
        if twin:
            left.remove(word)
            right.remove(twin)
    same_marks = _marks(first) == _marks(second)
    if not left and not right and same_marks:
        return None
    light = same_marks and max(len(left), len(right)) <= min(len(first), len(second)) // WORDS_PER_CHANGE
    return _Change(frozenset(mine & yours), light)


def _templates(kept: Collection[frozenset[str]], texts: Sequence[str], fillings: int) -> set[frozenset[str]]:
    """Those sets of words that more than `fillings` different texts hold."""
    holders: dict[str, set[int]] = {word: set() for each in kept for word in each}
    said = {" ".join(sorted(words(text))) for text in texts} if holders else set()
    for number, text in enumerate(sorted(said)):
        for word in text.split():
            if word in holders:
                holders[word].add(number)
    return {
        each
        for each in kept
        if not each or len(set.intersection(*sorted((holders[word] for word in each), key=len))) > fillings
    }


def _marks(said: Sequence[str]) -> Counter[str]:
    """What tells one question from another of the same wording: numbers, single letters, numerals, negations."""
    return Counter(
        word
        for word in said
        if any(map(str.isdigit, word))
        or (len(word) == 1 and word not in _FUNCTION_WORDS)
        or word in _NEGATIONS
        or _NUMERAL.fullmatch(word)
    )


def _unshared(first: Sequence[str], second: Sequence[str]) -> Iterator[str]:
    """Words of the first that the second lacks, function words aside."""
    return (word for word in (Counter(first) - Counter(second)).elements() if word not in _FUNCTION_WORDS)


@lru_cache(maxsize=1 << 16)
def _worded(text: str) -> tuple[str, ...]:
    return tuple(words(text))


def _asked(question: str) -> list[str]:
    return [word for word in _worded(question) if word not in _FILLERS]


def _one_slip(first: str, second: str) -> bool:
    """Whether two words differ by one typing error (a letter more, less, other, or two swapped) or by an ending."""
    short, long = sorted((first, second), key=len)
    if len(short) < 4:
        return False
    if long.startswith(short):
        return len(long) - len(short) <= 2
    start = next(at for at in range(len(short)) if short[at] != long[at])
    if len(short) < len(long):
        return short[start:] == long[start + 1 :]
    swapped = short[start : start + 2] == long[start : start + 2][::-1] and short[start + 2 :] == long[start + 2 :]
    return swapped or short[start + 1 :] == long[start + 1 :]
