"""Data preparation: turn publishers' and users' files into clean, split and documented Examples."""
