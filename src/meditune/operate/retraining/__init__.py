"""Continuous retraining: collect new data, train, evaluate, release and roll back."""
