"""Cached vectors and labels → trained heads."""
