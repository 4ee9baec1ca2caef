"""NLTK's own VADER, which the pipeline's scores are held to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nltk.data
import pytest
from nltk.sentiment.vader import SentimentIntensityAnalyzer

_NAME = "sentiment/vader_lexicon/vader_lexicon.txt"


def make_reference(lexicon: str, folder: Path) -> Callable[[str], float]:
    """The compound score of a text as NLTK computes it.

    :param lexicon: content of the lexicon's file.
    :param folder: empty folder, which becomes NLTK's data folder for this.
    """
    target = folder / _NAME
    target.parent.mkdir(parents=True)
    target.write_text(lexicon, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "path", [str(folder)])
        nltk.data.clear_cache()
        analyzer = SentimentIntensityAnalyzer(_NAME)
        nltk.data.clear_cache()

    def score(text: str) -> float:
        compound: float = analyzer.polarity_scores(text)["compound"]
        return compound

    return score
