"""Meditune: tune a small open language model for medical questions, and prove that it got better."""

__version__ = "0.1.0"
