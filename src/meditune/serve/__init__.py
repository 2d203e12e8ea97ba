"""The assistant over HTTP: an OpenAI-compatible API and a chat page."""
