"""How hard a text is to read: syllables, grades, rare words, and jargon that nobody explains."""
