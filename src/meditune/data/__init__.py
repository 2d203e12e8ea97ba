"""Data preparation: publishers' and users' files become clean, split and documented Examples."""
