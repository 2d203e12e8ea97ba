"""A server's store of API keys, usage, answers and feedback, in an SQLite file or a PostgreSQL database."""
