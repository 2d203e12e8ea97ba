"""What a server keeps: keys, usage, answers and what people said of them, in one SQLite file."""
