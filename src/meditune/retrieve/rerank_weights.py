"""The weights of the reranker's features."""

FITTED: dict[str, float] = {
    "whole_near_title": 2.784,
    "asked_near_title": 4.176,
    "sentence_near_title": 3.676,
    "words": 1.572,
    "names": 0.922,
    "names_in_title": 1.831,
    "whole_near_passage": 5.992,
}
"""Fitted by `python benchmarks/retrieval.py --fit`, on questions that are in no test set"""
CHOSEN: dict[str, float] = {"topic_named": 1.0, "kind_asked": 0.3}
"""Chosen by hand: fitted on questions labelled by topic and kind, these weights are too high for other questions"""
WEIGHTS = FITTED | CHOSEN
SIBLINGS = 0.3
"""Weight of the mean of a topic's best passages in each passage's score; chosen from 0, 0.3 and 1"""
