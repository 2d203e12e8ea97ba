"""Supervised fine-tuning: what is trained on, in which order, with which loss."""
