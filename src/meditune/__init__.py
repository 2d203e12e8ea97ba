"""Meditune: fine-tune a small open language model for medical questions, and show whether it improved."""

__version__ = "0.1.0"
