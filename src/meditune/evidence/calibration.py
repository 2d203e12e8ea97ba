"""Fitted weights and thresholds of the detector, from `python benchmarks/faithfulness.py --fit`."""

EXTRACTIVE_WEIGHTS: dict[str, float] = {
    "intercept": -4.1911,
    "in_order": 2.0173,
    "known": 5.5365,
    "best": 2.5674,
    "length": -0.5615,
    "negation_turned": -8.2746,
    "directions_against": -8.382,
    "directions_turned": -4.1007,
    "directions_unseen": 1.4534,
    "numbers_elsewhere": -0.7151,
    "number_replaced": -7.6183,
    "numbers_missing": -3.1973,
    "units": -3.2266,
    "names": -6.3282,
    "replaced": -2.1045,
    "inserted": 0.8437,
}
"""Weights for the log-odds that the sources support a sentence that follows a source sentence word by word"""
PARAPHRASE_WEIGHTS: dict[str, float] = {
    "intercept": 3.7322,
    "known": -1.1344,
    "known_below_20": -3.3457,
    "known_below_40": -4.6241,
    "known_below_60": -0.2942,
    "best": -0.5406,
    "best_below_20": -2.094,
    "question_below_20": -2.7211,
    "length": 0.0712,
    "rare": 0.2196,
    "rarest": -0.5793,
    "rare_among_unknown": -0.9619,
    "names": -0.9327,
    "numbers_missing": -1.1036,
    "numbers_elsewhere": -2.4587,
    "units": -6.6259,
    "directions_against": -3.1297,
    "directions_unseen": -0.5042,
    "negated": -0.5498,
    "denies_against": -2.9754,
}
"""Weights for the log-odds that the sources support any other sentence"""
ANSWER_WEIGHTS: dict[str, float] = {
    "intercept": 0.4498,
    "lowest": 0.7093,
    "mean": -0.3546,
    "sentences": -0.229,
    "soft_lowest": -0.4494,
}
"""Weights for the log-odds that the sources support a whole answer, from the log-odds of its sentences"""
ANSWER = 0.315
"""Answers that score less are reported as unfaithful."""
SENTENCE = 0.437
"""Sentences that score less are reported as unsupported."""
