"""Numbers by which the reranker weighs what it sees."""

FITTED: dict[str, float] = {
    "whole_near_title": 3.3,
    "asked_near_title": 4.46,
    "sentence_near_title": 3.175,
    "words": 1.472,
    "names": 1.028,
    "names_in_title": 1.611,
    "whole_near_passage": 4.278,
}
"""As `python benchmarks/retrieval.py --fit` fits them, on questions that aren't in any test"""
CHOSEN: dict[str, float] = {"topic_named": 1.0, "kind_asked": 0.3}
"""Chosen by hand: fitted on questions that are labelled by topic and kind, they come out too high to hold elsewhere"""
WEIGHTS = FITTED | CHOSEN
SIBLINGS = 0.3
"""What the mean of its topic's best passages adds to a passage's score; chosen among 0, 0.3 and 1"""
