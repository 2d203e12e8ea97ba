"""Numbers by which the reranker weighs what it sees: `python benchmarks/retrieval.py --fit`."""

WEIGHTS: dict[str, float] = {
    "whole_near_title": 4.0,
    "asked_near_title": 3.5,
    "sentence_near_title": 3.5,
    "words": 1.7,
    "names": 1.0,
    "names_in_title": 1.9,
}
