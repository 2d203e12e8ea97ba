"""What keeps a model in use up to date."""
