"""Base models: their sources, loading, adapters, quantization, pruning and inference."""
