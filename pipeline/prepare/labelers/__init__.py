"""Labelers: where the labels of a task come from.

A labeler has two halves. Its settings, which ``pipeline.config.LABELERS`` lists, declare what its
labels are and which files it wants fetched; the class that they name makes the labels.
"""
