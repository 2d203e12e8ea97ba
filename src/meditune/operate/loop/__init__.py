"""The whole cycle in one process, for small installations: each stage when it is due, and again after a failure."""
