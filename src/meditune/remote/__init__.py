"""A run's stages where the model is behind an API."""
