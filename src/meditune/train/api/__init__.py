"""Fine-tuning through an OpenAI-compatible API."""
