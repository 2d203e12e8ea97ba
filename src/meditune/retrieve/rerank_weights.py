"""Numbers by which the reranker weighs what it sees."""

WEIGHTS: dict[str, float] = {
    "whole_near_title": 2.523,
    "asked_near_title": 1.761,
    "sentence_near_title": 1.974,
    "words": 0.943,
    "names": 0.7,
    "names_in_title": 1.161,
    "topic_named": 2.74,
    "kind_asked": 1.828,
    "whole_near_passage": 3.634,
}
"""As `python benchmarks/retrieval.py --fit` fits them, on questions that aren't in any test"""
SIBLINGS = 0.3
"""What the mean of its topic's best passages adds to a passage's score; chosen among 0, 0.3 and 1"""
