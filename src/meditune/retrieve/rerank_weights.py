"""Numbers by which the reranker weighs what it sees: `python benchmarks/retrieval.py --fit`."""

WEIGHTS: dict[str, float] = {
    "whole_near_title": 4.971,
    "asked_near_title": 4.354,
    "sentence_near_title": 4.252,
    "words": 2.046,
    "names": 1.162,
    "names_in_title": 1.941,
}
