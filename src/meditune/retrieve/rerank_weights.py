"""Numbers by which the reranker weighs what it sees."""

FITTED: dict[str, float] = {
    "whole_near_title": 2.784,
    "asked_near_title": 4.176,
    "sentence_near_title": 3.676,
    "words": 1.572,
    "names": 0.922,
    "names_in_title": 1.831,
    "whole_near_passage": 5.992,
}
"""As `python benchmarks/retrieval.py --fit` fits them, on questions that aren't in any test"""
CHOSEN: dict[str, float] = {"topic_named": 1.0, "kind_asked": 0.3}
"""Chosen by hand: fitted on questions that are labelled by topic and kind, they come out too high to hold elsewhere"""
WEIGHTS = FITTED | CHOSEN
SIBLINGS = 0.3
"""What the mean of its topic's best passages adds to a passage's score; chosen among 0, 0.3 and 1"""
