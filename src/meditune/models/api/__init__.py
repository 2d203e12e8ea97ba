"""Models on someone else's machine, behind an OpenAI-compatible API."""
