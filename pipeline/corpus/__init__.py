"""Texts, their keys and their labels: read from a source, and from what ``prepare`` wrote."""
