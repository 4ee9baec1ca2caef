"""The stage ``prepare``: rows of a source become texts, labels and splits."""
