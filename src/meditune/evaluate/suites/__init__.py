"""Public medical tests, measured before and after tuning: files, prompts, scores, and judges of open answers."""
