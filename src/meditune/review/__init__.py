"""Human review: blinded rating sets, the rating page, agreement between raters, results, and preference pairs."""
