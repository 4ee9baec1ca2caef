"""Sentiment labels by VADER, from the text itself."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.arrays import take_values
from pipeline.config import VaderLabel
from pipeline.console import show_progress
from pipeline.corpus.cells import Table
from pipeline.errors import AssetError
from pipeline.files import describe_read_error, hash_json
from pipeline.prepare.labelers.base import LabelingContext, Labels, shorten
from pipeline.prepare.labelers.distinct import DistinctTexts, TextChoice
from pipeline.prepare.labelers.score_memory import ScoreMemory
from pipeline.prepare.labelers.scoring import score_texts
from pipeline.prepare.labelers.sentiment import RULES_VERSION

_KEPT_LEXICONS = 3  # whose scores are remembered, those in use last
_PART_TEXTS = 131_072  # whose scores are written at a time


class VaderLabeler:
    """Negative, neutral or positive by VADER's compound score, which is kept beside the label.

    :param task: the task that the labels are for.
    :param settings: the thresholds of the score.
    :param context: the project that keeps the scores, and the cores.
    """

    def __init__(self, task: str, settings: VaderLabel, context: LabelingContext) -> None:
        self._task = task
        self._settings = settings
        self._context = context

    def label(self, frame: Table, texts: Sequence[str], assets: Mapping[str, Path]) -> Labels:
        """Label every row; ``assets`` holds the lexicon. See ``Labeler.label``."""
        settings = self._settings
        compound = score_by_vader(texts, assets["lexicon"], self._context)
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
) -> npt.NDArray[np.int8]:
    """Negative 0, neutral 1, positive 2, both thresholds belonging to the outer classes.

    :param compound: float64, [B], -1 to 1.
    :param negative_at_most: the highest score that is negative.
    :param positive_at_least: the lowest score that is positive.
    """
    classes = np.ones(len(compound), np.int8)
    classes[compound <= negative_at_most] = 0
    classes[compound >= positive_at_least] = 2
    return classes


def score_by_vader(
    texts: Sequence[str], lexicon: Path, context: LabelingContext
) -> npt.NDArray[np.float64]:
    """VADER's compound score of each text, with the fetched lexicon.

    Source: Hutto, Gilbert (2014), VADER: a parsimonious rule-based model for sentiment analysis of
    social media text.

    :param texts: [B]; each distinct text is scored once.
    :param lexicon: a file of the form of NLTK's ``vader_lexicon.txt``.
    :param context: cores to use, and the project that keeps the scores that earlier runs computed;
        those that are new join them if the texts are the corpus.
    :returns: float64, [B], -1 to 1.
    :raises AssetError: if the lexicon is not of that form.
    :raises ReadError: if the lexicon or the remembered scores cannot be read.
    :raises WriteError: if the new scores cannot be kept.
    :raises DeviceError: if a process that scores was ended from outside.
    """
    valences = _read_lexicon(lexicon)
    distinct = DistinctTexts(texts)
    scores, numbers = _score_distinct(distinct, valences, context), distinct.numbers
    del distinct  # whose keys take more than the scores
    return take_values(scores, numbers)


def _score_distinct(
    texts: DistinctTexts, valences: Mapping[str, float], context: LabelingContext
) -> npt.NDArray[np.float64]:
    """The scores of distinct texts, [N]; those that are remembered are not computed."""
    contents = {"rules": RULES_VERSION, "lexicon": hash_json(valences)}
    memory = ScoreMemory(
        context.project.scores,
        "vader",
        contents,
        outputs=1,
        dtype=np.float64,
        kept_files=_KEPT_LEXICONS,
    )
    scores = np.empty(len(texts), np.float64)
    is_known = np.zeros(len(texts), bool)
    for numbers, found in memory.look_up(texts.keys):
        scores[numbers], is_known[numbers] = found[:, 0], True
    if not is_known.all():
        is_new = ~is_known
        made = _score_new(texts.choose(is_new), valences, context.runtime.threads)
        if is_new.all():
            scores = made
        else:
            scores[is_new] = made
        del made
        if context.is_corpus:
            new = functools.partial(_take_parts, texts.keys, scores, is_new)
            memory.add(new, int(is_new.sum()), texts.keys)
    return scores


def _take_parts(
    keys: npt.NDArray[np.uint8], scores: npt.NDArray[np.float64], are_taken: npt.NDArray[np.bool_]
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]]:
    """Keys, [B, 16], and scores, [B, 1], of some texts, in their order."""
    for start in range(0, len(keys), _PART_TEXTS):
        part = slice(start, start + _PART_TEXTS)
        taken = are_taken[part]
        if taken.any():
            yield keys[part][taken], scores[part][taken][:, None]


def _score_new(
    texts: TextChoice, valences: Mapping[str, float], threads: int | None
) -> npt.NDArray[np.float64]:
    with show_progress("VADER", len(texts), "texts") as advance:
        return np.frombuffer(score_texts(texts, valences, threads=threads, advance=advance))


def _read_lexicon(path: Path) -> dict[str, float]:
    """Word → valence, by a lexicon as NLTK reads it; empty lines mean nothing.

    :raises AssetError: naming the first line that is not a word, a tab and its valence.
    :raises ReadError: if it cannot be read.
    """
    hint = "run `pipeline fetch --refresh`, or correct fetch.lexicon"
    try:
        lines = path.read_text("utf-8").split("\n")
    except OSError as error:
        raise describe_read_error(error, path, hint=hint) from error
    except UnicodeDecodeError as error:
        raise AssetError(f"the lexicon {path}: not UTF-8", hint=hint) from error
    valences = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        word, *rest = line.strip().split("\t")
        try:
            valences[word] = float(rest[0])
        except (IndexError, ValueError):
            valences[word] = math.nan
        if not math.isfinite(valences[word]):
            raise AssetError(
                f"the lexicon {path}: line {number}: not a word, a tab and its valence: "
                f"{shorten(repr(line))}",
                hint=hint,
            )
    return valences
