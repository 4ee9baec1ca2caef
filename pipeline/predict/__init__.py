"""Answers of the saved heads to texts that need not be of the corpus."""
