"""The stage ``group``: near-duplicates, found by their vectors, are drawn into one part."""
