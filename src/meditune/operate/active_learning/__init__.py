"""Active learning: select questions for experts, and turn their answers into training rows."""
