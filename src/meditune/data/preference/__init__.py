"""Experimental: pairs of a better and a worse answer to the same question, for preference tuning.

Its files, keys and metrics may change from one version to the next.
"""
