"""Texts → pooled vectors of a frozen backbone, once per distinct text."""
