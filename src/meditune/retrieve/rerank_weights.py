"""Numbers by which the reranker weighs what it sees."""

FITTED: dict[str, float] = {
    "whole_near_title": 4.971,
    "asked_near_title": 4.354,
    "sentence_near_title": 4.252,
    "words": 2.046,
    "names": 1.162,
    "names_in_title": 1.941,
}
"""As `python benchmarks/retrieval.py --fit` fits them"""
CHOSEN: dict[str, float] = {"topic_named": 1.0, "kind_asked": 0.3, "whole_near_passage": 5.0}
"""Chosen among a few (docs/experiments.md): what they could be fitted on was itself labelled by topic and kind"""
WEIGHTS = FITTED | CHOSEN
SIBLINGS = 0.3
"""What the mean of its topic's best passages adds to a passage's score; chosen likewise"""
