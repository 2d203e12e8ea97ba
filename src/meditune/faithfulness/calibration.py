"""Numbers by which the detector weighs what it sees: `python benchmarks/faithfulness.py --fit`."""

FOLLOWING: dict[str, float] = {
    "intercept": -4.4362,
    "in_order": 2.5455,
    "known": 4.456,
    "best": 2.8682,
    "length": -0.4717,
    "negation_turned": -7.7797,
    "directions_against": -5.2365,
    "directions_turned": -4.2408,
    "directions_unseen": 0.1642,
    "numbers_elsewhere": -0.8884,
    "number_replaced": -6.9236,
    "numbers_missing": -2.6486,
    "units": -2.6487,
    "names": -5.5119,
    "replaced": -1.8771,
    "inserted": 0.8045,
}
"""Log-odds that a sentence is borne out which follows a source's sentence word by word"""
PARAPHRASING: dict[str, float] = {
    "intercept": 3.7231,
    "known": -1.1603,
    "known_below_20": -3.3683,
    "known_below_40": -4.5955,
    "known_below_60": -0.306,
    "best": -0.5217,
    "best_below_20": -2.1407,
    "question_below_20": -2.7485,
    "length": 0.0811,
    "rare": 0.2063,
    "rarest": -0.5756,
    "rare_among_unknown": -0.9521,
    "names": -0.9399,
    "numbers_missing": -1.1099,
    "numbers_elsewhere": -2.4368,
    "units": -6.7253,
    "directions_against": -3.1738,
    "directions_unseen": -0.5059,
    "negated": -0.5508,
    "denies_against": -2.9911,
}
"""... and that any other is"""
WHOLE: dict[str, float] = {
    "intercept": 0.4362,
    "lowest": 0.756,
    "mean": -0.3649,
    "sentences": -0.1935,
    "soft_lowest": -0.4364,
}
"""... and that all of an answer is, from the log-odds of its sentences"""
ANSWER = 0.305
"""Answers that score less are said to be unfaithful."""
SENTENCE = 0.431
"""Sentences that score less are said to be unsupported."""
