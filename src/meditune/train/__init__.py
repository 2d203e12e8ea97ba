"""Supervised fine-tuning: training data and its order, losses, the training loop, and plans."""
