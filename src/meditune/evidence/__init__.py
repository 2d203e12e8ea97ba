"""The detector of unsupported claims, which needs no model, and the interface of models that judge support."""
