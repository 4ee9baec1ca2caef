"""The stage ``fetch``: dataset, lexicon and backbone, each from the first source that has it."""
