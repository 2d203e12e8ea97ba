"""Engines that generate and score text, behind one interface."""
