"""Experimental: preference tuning after supervised fine-tuning, through the same training loop.

Its options, files and figures may change from one version to the next.
"""
