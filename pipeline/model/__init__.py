"""Trained heads: their files, and how vectors become logits, labels and scores."""
