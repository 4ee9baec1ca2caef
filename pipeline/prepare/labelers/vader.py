"""Sentiment labels by VADER, from the text itself."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.config import VaderLabel
from pipeline.console import show_progress
from pipeline.errors import AssetError
from pipeline.files import describe_read_error
from pipeline.prepare.labelers.base import Labels, shorten

if TYPE_CHECKING:
    import pandas as pd

_NLTK_NAME = "sentiment/vader_lexicon/vader_lexicon.txt"


class VaderLabeler:
    """Negative, neutral or positive by VADER's compound score, which is kept beside the label.

    :param task: the task that the labels are for.
    :param settings: the thresholds of the score.
    """

    def __init__(self, task: str, settings: VaderLabel) -> None:
        self._task = task
        self._settings = settings

    def label(
        self, frame: pd.DataFrame, texts: Sequence[str], assets: Mapping[str, Path]
    ) -> Labels:
        """Label every row; ``assets`` holds the lexicon. See ``Labeler.label``."""
        settings = self._settings
        compound = score_by_vader(texts, assets["lexicon"])
        (column,) = settings.get_scores(self._task)
        return Labels(
            classes=settings.get_classes(),
            values=classify_compound(
                compound, settings.negative_at_most, settings.positive_at_least
            ),
            scores={column: compound},
        )


def classify_compound(
    compound: npt.NDArray[np.float64], negative_at_most: float, positive_at_least: float
) -> npt.NDArray[np.int32]:
    """Negative 0, neutral 1, positive 2, both thresholds belonging to the outer classes.

    :param compound: float64, [B], -1 to 1.
    :param negative_at_most: the highest score that is negative.
    :param positive_at_least: the lowest score that is positive.
    """
    classes = np.where(compound <= negative_at_most, 0, 1)
    return np.where(compound >= positive_at_least, 2, classes).astype(np.int32)


def score_by_vader(texts: Sequence[str], lexicon: Path) -> npt.NDArray[np.float64]:
    """VADER's compound score of each text, by NLTK with the fetched lexicon.

    Source: Hutto, Gilbert (2014), VADER: a parsimonious rule-based model for sentiment analysis of
    social media text.

    :param texts: [B]; each distinct text is scored once.
    :param lexicon: a file of the form of NLTK's ``vader_lexicon.txt``.
    :returns: float64, [B], -1 to 1.
    :raises AssetError: if the lexicon is not of that form.
    :raises ReadError: if the lexicon cannot be read.
    """
    import nltk.data
    from nltk.sentiment.vader import SentimentIntensityAnalyzer

    content = _read_lexicon(lexicon)
    # NLTK reads only below its data folders, by a name of its own, and keeps what it once read.
    with tempfile.TemporaryDirectory() as root:
        target = Path(root, _NLTK_NAME)
        target.parent.mkdir(parents=True)
        target.write_text(content, "utf-8")
        folders = nltk.data.path[:]
        nltk.data.path[:] = [root]
        nltk.data.clear_cache()
        try:
            analyzer = SentimentIntensityAnalyzer(_NLTK_NAME)
        finally:
            nltk.data.path[:] = folders
            nltk.data.clear_cache()  # the next reader of that name wants a lexicon of its own
    scores: dict[str, float] = {}
    distinct = dict.fromkeys(texts)
    with show_progress("VADER", len(distinct), "texts") as advance:
        for text in distinct:
            scores[text] = analyzer.polarity_scores(text)["compound"]
            advance(1)
    return np.array([scores[text] for text in texts], np.float64)


def _read_lexicon(path: Path) -> str:
    """A lexicon as NLTK takes it, which trips over an empty line.

    :raises AssetError: naming the first line that is not a word, a tab and its valence.
    """
    hint = "run `pipeline fetch --refresh`, or correct fetch.lexicon"
    try:
        lines = path.read_text("utf-8").split("\n")
    except OSError as error:
        raise describe_read_error(error, path, hint=hint) from error
    except UnicodeDecodeError as error:
        raise AssetError(f"the lexicon {path}: not UTF-8", hint=hint) from error
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                float(line.strip().split("\t")[1])
        except (IndexError, ValueError) as error:
            raise AssetError(
                f"the lexicon {path}: line {number}: not a word, a tab and its valence: "
                f"{shorten(repr(line))}",
                hint=hint,
            ) from error
    return "\n".join(line for line in lines if line.strip())
