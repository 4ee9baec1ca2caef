"""The version of this package, for its build, its commands and what they write."""

__version__ = "0.1.0"
