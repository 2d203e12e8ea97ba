"""Human judgements: a blinded rating set, a page to rate on, agreement, results, and pairs to learn from."""
