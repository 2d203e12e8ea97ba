"""Near duplicates of questions and passages: exact joins over sparse matrices, which miss no pair."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from meditune.data.example import WORDS

MIN_QUESTION_SIMILARITY, MIN_LENIENT_SIMILARITY = 0.65, 0.62
"""The words of two questions are compared if the similarity of their character trigrams (weighted Jaccard index) is at
least this.

Splitting uses the lenient threshold, so that it keeps slightly more questions together than the leakage check finds.
"""
WORDS_PER_CHANGE = 8
"""Light rewrites may differ in one word per this number of words, in addition to word order and typing errors"""
MIN_PASSAGE_OVERLAP = 0.6
"""Minimum share of the shorter passage's word triples that the longer passage must contain"""
MIN_CONTENT_WORDS = 3
"""If two questions share fewer content words, their function words are compared, too"""
FILLINGS, LOOSE_FILLINGS = 4, 6
"""Words that two questions share are a template if more than FILLINGS (lenient: LOOSE_FILLINGS) questions have them"""
MAX_INSERTED_WORDS = 4
"""An inserted number or negation changes the meaning of a text if at most this many words are inserted"""
MIN_PASSAGE_WORDS = 20
"""Passages with fewer words aren't compared, because a short passage may be a phrase that many rows share"""
PAIRS, BLOCK = 4_000_000, 4_000_000
"""Maximum numbers of pairs that are found at a time, and of features of the pairs that are compared at a time; they
limit the memory use to about 0.4 GB"""

Matches = list[tuple[int, int, float]]
"""Index in the first list, index in the second, similarity up to 1"""

_NEGATIONS = frozenset({"no", "not", "non", "nor", "never", "without"})
_FILLERS = frozenset({"so", "and", "please", "well", "also", "hi", "hello", "now"})
_NUMERAL = re.compile(r"(?=[ivx]{2})x{0,3}(?:ix|iv|v?i{0,3})")
_WORDS_AND_SIGNS = re.compile(
    r"\w+|(?<!-)[<>≤≥=+±](?=[<>≤≥=]?[^\S\n]*\.?\d)|(?<=\w)\+(?!\w)|(?:(?<=\d)|(?<=\d ))%|"
    r"(?<!\w)-(?=\d)|/(?=\d)|(?:(?<=[\d\s<>≤≥=+±(-])|^)\.(?=\d)"
)
_MARKUP = re.compile(r"</?[a-z]\w*(?:\s+[\w-]+=[^<>]*|\s*/?)>|^[ \t]*-(?=\d)", re.MULTILINE)
"""HTML tags, and bullets directly before a number, which look like signs"""
_SLASH_DATE = re.compile(r"\b(\d{1,4})/(\d{1,2})/(\d{1,4})\b")
_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"))
_FUNCTION_WORDS = frozenset(WORDS["function_words"].split())


def normalized(text: str) -> str:
    """Return a text without case and with composed letters (NFC), so that both encodings of "é" are the same."""
    return unicodedata.normalize("NFC", text).casefold()


def words(text: str) -> list[str]:
    """Return the words of a text without case and punctuation."""
    return re.findall(r"\w+", normalized(text))


def words_and_signs(text: str) -> list[str]:
    """Return the words of a text without case, and the signs that change its meaning, such as the < of "< 3.5".

    Signs are next to a number; only a plus can also end a word, as in "A+". The hyphens of "IL-6" and "2-3", the
    slashes of dates, bullets and HTML tags aren't signs.
    """
    text = _MARKUP.sub(" ", normalized(text).translate(_DASHES))
    return _WORDS_AND_SIGNS.findall(_SLASH_DATE.sub(r"\1-\2-\3", text))


def near_questions(
    first: Sequence[str], second: Sequence[str], others: Sequence[str] = (), lenient: bool = False
) -> Matches:
    """Return pairs of questions that are the same or light rewrites of each other.

    A light rewrite changes punctuation, case or order, has a typing error, or replaces, adds or omits one word in
    eight. Questions that differ in numbers, single letters, Roman numerals or negations are different, and so are
    questions that fill in the same template. Templates are recognized from all questions, including `others`. The
    similarity is the weighted Jaccard index of character trigrams. If `first` and `second` are the same object, each
    pair is returned once.
    """
    from scipy.sparse import diags

    if not first or not second:
        return []
    least, fillings = (MIN_LENIENT_SIMILARITY, LOOSE_FILLINGS) if lenient else (MIN_QUESTION_SIMILARITY, FILLINGS)
    vocabulary: dict[str, int] = {}
    of_word: dict[str, list[int]] = {}
    grams = [_matrix([_trigrams(text, vocabulary, of_word) for text in texts], 0) for texts in (first, second)]
    for matrix in grams:
        matrix.resize(matrix.shape[0], len(vocabulary))
    shared = sum(np.asarray(matrix.sum(axis=0)).ravel() for matrix in grams)
    weights = np.log((len(first) + len(second) + 1) / shared)
    order = np.argsort(-weights, kind="stable")
    one, two = (matrix[:, order] @ diags(weights[order]) for matrix in grams)
    totals = [np.asarray(matrix.sum(axis=1)).ravel() for matrix in (one, two)]
    parts = [_prefixes(matrix, total, least) for matrix, total in zip((one, two), totals, strict=True)]
    ends = [_last_columns(part) for part in parts]
    rests = [total - np.asarray(part.sum(axis=1)).ravel() for part, total in zip(parts, totals, strict=True)]
    binary = grams[1][:, order]
    found: Matches = []
    changes: list[_Change | None] = []
    for rows, columns, shared in _shared(parts[0], _ones(parts[1])):
        if first is second:
            is_new = rows < columns
            rows, columns, shared = rows[is_new], columns[is_new], shared[is_new]
        # After the last feature of the shorter prefix, two rows share at most the rest of that row (PPJoin, Xiao et
        # al. 2008, https://doi.org/10.1145/1367497.1367516).
        most = shared + np.where(ends[0][rows] <= ends[1][columns], rests[0][rows], rests[1][columns])
        is_possible = most * (1 + least) >= least * (totals[0][rows] + totals[1][columns]) - 1e-6
        rows, columns = rows[is_possible], columns[is_possible]
        both = _overlaps(one, binary, rows, columns)
        alike = both / np.maximum(totals[0][rows] + totals[1][columns] - both, 1e-12)
        for index in np.flatnonzero(alike >= least):
            row, column = int(rows[index]), int(columns[index])
            change = _change(_worded(first[row]), _worded(second[column]))
            if change is None or change.is_light:
                found.append((row, column, min(1.0, float(alike[index]))))
                changes.append(change)
    shared_words = {change.shared for change in changes if change}
    needed = set[str]().union(*shared_words)
    distinct = {" ".join(sorted(words(text))) for text in (*first, *second, *others)} if needed else set()
    holders = Counter(word for text in distinct for word in needed.intersection(text.split()))
    counts = _fillings(shared_words, distinct, holders, fillings)
    return [
        match
        for match, change in zip(found, changes, strict=True)
        if change is None or (change.shared and counts[change.shared] <= fillings)
    ]


def near_passages(first: Sequence[str], second: Sequence[str], min_similarity: float = MIN_PASSAGE_OVERLAP) -> Matches:
    """Return pairs of passages, in order, where one has the share `min_similarity` or more of the other's word triples.

    Passages of fewer than MIN_PASSAGE_WORDS words match nothing.
    """
    if not first or not second:
        return []
    vocabulary: dict[tuple[str, ...], int] = {}
    triples = [[vocabulary.setdefault(run, len(vocabulary)) for run in word_runs(text, 3)] for text in first]
    known = ([vocabulary[run] for run in word_runs(text, 3) if run in vocabulary] for text in second)
    one, two = (_matrix([np.array(row, np.int64) for row in rows], len(vocabulary)) for rows in (triples, known))
    fewest = MIN_PASSAGE_WORDS - 4  # minimum number of distinct triples, because a few may be repeated
    sizes = [np.diff(matrix.indptr) for matrix in (one, two)]
    counts: dict[int, int] = {}
    found: Matches = []
    for rows, columns, both in _shared(one, two):
        # The second texts may also have triples that the first texts lack.
        fewer = np.minimum(sizes[0][rows], sizes[1][columns])
        for k in np.flatnonzero(both >= min_similarity * np.maximum(fewer, fewest) - 1e-9):
            row, column = int(rows[k]), int(columns[k])
            if column not in counts:
                counts[column] = len(word_runs(second[column], 3))
            least = min(len(triples[row]), counts[column])
            if least >= fewest and both[k] / least >= min_similarity:
                found.append((row, column, float(both[k] / least)))
    return sorted(found)


class Questions:
    """A comparison of two questions that takes all questions of the data into account.

    It is stricter than `near_questions`, because rows are dropped based on its result. A different word makes a
    different question, unless both rows have a context, which shows what is meant. If many questions contain the words
    that the two questions share, even a different letter makes a different question, unless the row's own context or
    answer uses the other spelling.
    """

    def __init__(self, questions: Iterable[str], pairs: Iterable[tuple[str, str]]) -> None:
        """`questions` contains all questions and is iterated over twice; only questions in `pairs` may be compared."""
        self._fillings: Counter[frozenset[str]] = Counter()
        about: set[str] = set()
        for pair in pairs:
            first, second = map(_asked, pair)
            if first != second:
                self._fillings[frozenset(first) & frozenset(second)] = 0
                about |= {*first, *second}
        self._holders: Counter[str] = Counter()
        if about:
            for question in questions:
                self._holders.update(about.intersection(words(question)))
        self._fillings.update(_fillings(self._fillings, questions, self._holders, FILLINGS))

    def same(self, first: str, second: str, texts: tuple[str, str], has_context: bool) -> bool:
        """Return True if both questions ask the same thing; `texts` are the context and answer of each question."""
        first_words, second_words = map(_asked, (first, second))
        if first_words == second_words:
            return True
        change = _change(first_words, second_words)
        shared = frozenset(first_words) & frozenset(second_words)
        is_template = not shared or self._fillings[shared] > FILLINGS
        if change is not None:
            return has_context and change.is_light and not is_template
        return self._are_slips(first_words, second_words, texts, is_template)

    def _are_slips(
        self, first_words: Sequence[str], second_words: Sequence[str], texts: tuple[str, str], strict: bool
    ) -> bool:
        """Return True if the words that differ by a letter are misspellings.

        With `strict`, the row's own texts must show this.
        """
        left, right = list(_unshared(first_words, second_words)), list(_unshared(second_words, first_words))
        known = [frozenset(_worded(text)) for text in texts]
        twins = [(one, two) for one in left for two in right if _one_slip(one, two)]
        if not strict:
            return not any(one in known[0] and two in known[1] for one, two in twins)
        return len(twins) >= max(len(left), len(right)) and all(
            (one not in known[0] and (two in known[0] or self._is_odd(one, two)))
            or (two not in known[1] and (one in known[1] or self._is_odd(two, one)))
            for one, two in twins
        )

    def _is_odd(self, word: str, other: str) -> bool:
        """Return True if only one question contains `word`, and several questions contain `other`."""
        return self._holders[word] == 1 < self._holders[other]


def same_facts(first: str, second: str) -> bool:
    """Return True if no number, sign or negation was replaced ("50 mg" for "5 mg") or inserted with few words."""
    one, two = Counter(words_and_signs(first)), Counter(words_and_signs(second))
    sides = (list((one - two).elements()), list((two - one).elements()))
    left, right = sorted(sides, key=lambda side: bool(_marks(side)))
    return not _marks(right) or (not _marks(left) and len(right) - len(left) > MAX_INSERTED_WORDS)


def share_within(part: str, text: str, length: int) -> float:
    """Return the share of the runs of `length` words in `part` that `text` contains; 0 if `part` is shorter."""
    runs = word_runs(part, length)
    return len(runs & word_runs(text, length)) / len(runs) if runs else 0.0


def word_runs(text: str, length: int) -> set[tuple[str, ...]]:
    """Return the runs of `length` consecutive words of a text, without case and punctuation."""
    found = words(text)
    return set(zip(*(found[at:] for at in range(length)), strict=False))


def _trigrams(text: str, vocabulary: dict[str, int], of_word: dict[str, list[int]]) -> NDArray[np.int64]:
    """Return the sorted indices of a text's trigrams in `vocabulary`; `of_word` caches the indices for each word."""
    found: set[int] = set()
    for word in words(text):
        if word not in of_word:
            grams = (f" {word} "[at : at + 3] for at in range(len(word)))
            of_word[word] = [vocabulary.setdefault(gram, len(vocabulary)) for gram in grams]
        found.update(of_word[word])
    return np.array(sorted(found), dtype=np.int64)


def _matrix(rows: Sequence[NDArray[np.int64]], width: int) -> Any:
    """Return a sparse matrix with ones at the given columns of each row."""
    # Every run compares texts, so this code avoids scikit-learn, which takes a second and 100 MB to import.
    from scipy.sparse import csr_matrix

    ends = np.cumsum([0, *map(len, rows)])
    columns = np.concatenate([np.empty(0, np.int64), *rows])
    width = width or int(columns.max(initial=0)) + 1
    return csr_matrix((np.ones(len(columns)), columns, ends), shape=(len(rows), width))


def _prefixes(matrix: Any, totals: NDArray[np.float64], min_share: float) -> Any:
    """Return each row's rarest features: enough of them that any two similar rows share at least one.

    The columns of `matrix` are ordered by rarity (prefix filtering, Chaudhuri et al. 2006,
    https://doi.org/10.1109/ICDE.2006.9).
    """
    from scipy.sparse import csr_matrix

    matrix.sort_indices()
    starts, ends = matrix.indptr[:-1], matrix.indptr[1:]
    lengths = ends - starts
    running = np.cumsum(matrix.data)
    before = np.repeat(np.concatenate([[0.0], running])[starts], lengths) if len(running) else running
    passed = running - matrix.data - before
    is_prefix = passed <= (1 - min_share) * np.repeat(totals, lengths) + 1e-9
    rows = np.repeat(np.arange(matrix.shape[0]), lengths)[is_prefix]
    return csr_matrix((matrix.data[is_prefix], (rows, matrix.indices[is_prefix])), shape=matrix.shape)


def _last_columns(matrix: Any) -> NDArray[np.int64]:
    """Return the index of the last column in each row that isn't empty; the indices must be sorted."""
    found: NDArray[np.int64] = np.append(matrix.indices, -1)[matrix.indptr[1:] - 1]
    return found


def _ones(matrix: Any) -> Any:
    """Return the matrix with all of its values replaced by one."""
    found = matrix.copy()
    found.data[:] = 1
    return found


def _shared(first: Any, second: Any) -> Iterator[tuple[NDArray[Any], ...]]:
    """Yield the indices of rows that share a feature, and the sum of the products of their shared features."""
    step = max(1, PAIRS // second.shape[0])
    for start in range(0, first.shape[0], step):
        found = (first[start : start + step] @ second.T).tocoo()
        yield found.row + start, found.col, found.data


def _overlaps(first: Any, second: Any, rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[np.float64]:
    """Return, for each pair of rows of the two matrices, the sum of the products of the features that they share."""
    features = np.cumsum(np.diff(first.indptr)[rows] + np.diff(second.indptr)[columns])
    blocks = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(features // BLOCK)) + 1)
    return np.concatenate(
        [np.asarray(first[rows[each]].multiply(second[columns[each]]).sum(axis=1)).ravel() for each in blocks]
    )


class _Change(NamedTuple):
    """The difference between two questions, apart from word order, function words and typing errors."""

    shared: frozenset[str]
    is_light: bool


def _change(first: Sequence[str], second: Sequence[str]) -> _Change | None:
    """Return the difference; None if the questions differ only in word order, function words and typing errors."""
    first_counts, second_counts = Counter(first), Counter(second)
    meant = sum(word not in _FUNCTION_WORDS for word in (first_counts & second_counts).elements())
    # With few content words, "is it" instead of "what is" makes a different question.
    free = _FUNCTION_WORDS if meant >= MIN_CONTENT_WORDS else frozenset()
    left = Counter({word: count for word, count in (first_counts - second_counts).items() if word not in free})
    right = Counter({word: count for word, count in (second_counts - first_counts).items() if word not in free})
    for word, other in product(left, right):
        if left[word] and right[other] and _one_slip(word, other):
            paired = min(left[word], right[other])
            left[word] -= paired
            right[other] -= paired
    changed = max(left.total(), right.total())
    same_marks = _marks(first) == _marks(second)
    if not changed and same_marks:
        return None
    light = same_marks and changed <= min(len(first), len(second)) // WORDS_PER_CHANGE
    return _Change(frozenset(first_counts & second_counts), light)


def _fillings(
    shared: Iterable[frozenset[str]], texts: Iterable[str], holders: Mapping[str, int], most: int
) -> Counter[frozenset[str]]:
    """Return the number of texts that contain each set of words; counting stops just above `most`.

    `holders` has the number of texts that contain each word.
    """
    counts: Counter[frozenset[str]] = Counter()
    by_rarest: dict[str, set[frozenset[str]]] = {}
    for each in filter(None, shared):
        by_rarest.setdefault(min(each, key=lambda word: (holders[word], word)), set()).add(each)
    for text in texts if by_rarest else ():
        present = frozenset(words(text))
        for word in present & by_rarest.keys():
            held = {each for each in by_rarest[word] if each <= present}
            counts.update(held)
            by_rarest[word] -= {each for each in held if counts[each] > most}
    return counts


def _marks(tokens: Sequence[str]) -> Counter[str]:
    """Return the words that distinguish similar texts: numbers, single letters, signs, Roman numerals, negations."""
    return Counter(
        word
        for word in tokens
        if any(map(str.isdigit, word))
        or (len(word) == 1 and word not in _FUNCTION_WORDS)
        or word in _NEGATIONS
        or _NUMERAL.fullmatch(word)
    )


def _unshared(first: Sequence[str], second: Sequence[str]) -> Iterator[str]:
    """Yield the content words of the first question that the second one lacks."""
    return (word for word in (Counter(first) - Counter(second)).elements() if word not in _FUNCTION_WORDS)


@lru_cache(maxsize=1 << 16)
def _worded(text: str) -> tuple[str, ...]:
    return tuple(words(text))


def _asked(question: str) -> list[str]:
    return [word for word in _worded(question) if word not in _FILLERS]


def _one_slip(first: str, second: str) -> bool:
    """Return True if two words differ by an ending or one typo (a letter added, missing, replaced or swapped)."""
    from rapidfuzz.distance import OSA

    short, long = sorted((first, second), key=len)
    if len(short) < 4:
        return False
    if long.startswith(short):
        return len(long) - len(short) <= 2
    return OSA.distance(short, long, score_cutoff=1) == 1
