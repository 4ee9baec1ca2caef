"""Precomputed-embedding pipeline: embed once, cache, train any number of heads."""

__version__ = "0.1.0"
