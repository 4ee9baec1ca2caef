"""Where labels come from: a column of the source, or the text itself by VADER.

A labeler gives class indices, ``-1`` where a row has no label, and whatever raw scores they come
from. A column may also hold numbers, or several tags a row.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.config import (
    ColumnLabel,
    Label,
    LabelKind,
    VaderLabel,
    label_classes,
    normalize_value,
)
from pipeline.console import show_progress
from pipeline.errors import AssetError, DataError

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = -1
_NLTK_NAME = "sentiment/vader_lexicon/vader_lexicon.txt"
_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Labels:
    """One task's labels for a table of texts.

    :param classes: class or tag names in the order of their index, C of them; none of a number.
    :param values: what each row has. ``class``: int32, [B], 0 to C - 1, or ``UNKNOWN``. ``tags``:
        int8, [B, C], 1 for a tag that the row has, else 0; ``UNKNOWN`` in a row without a label.
        ``number``: float64, [B]; NaN in a row without one.
    :param scores: raw scores to keep beside the label: name → float64, [B].
    :param found: for rows whose label cannot be used, what stands there instead.
    :param kind: what a value is.
    """

    classes: tuple[str, ...]
    values: npt.NDArray[Any]
    scores: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    found: Mapping[int, str] = field(default_factory=dict)
    kind: LabelKind = "class"


def label_rows(
    name: str, label: Label, frame: pd.DataFrame, texts: Sequence[str], lexicon: Path
) -> Labels:
    """Label every row for one task.

    :param name: the task.
    :param label: its settings.
    :param frame: the source's columns, [B] rows.
    :param texts: the texts, [B]; rows without a usable one hold an empty string.
    :param lexicon: the file that holds VADER's lexicon.
    :raises DataError: if the label's column is not there.
    """
    if isinstance(label, VaderLabel):
        return _label_by_vader(name, label, texts, lexicon)
    if label.column not in frame.columns:
        raise DataError(
            f"no column {label.column!r}; the source has {', '.join(map(repr, frame.columns))}",
            hint=f"correct prepare.labels.{name}.column",
        )
    return label_by_column(label, frame[label.column].tolist())


def label_by_column(label: ColumnLabel, values: Sequence[Any]) -> Labels:
    """Labels from the values of a column, of the kind that the settings tell."""
    read = {"class": _read_classes, "tags": _read_tags, "number": _read_numbers}[label.kind]
    labels = read(label, values)
    if not label.optional:
        return labels
    found = {row: what for row, what in labels.found.items() if not _is_missing(values[row])}
    return replace(labels, found=found)


def _read_classes(label: ColumnLabel, values: Sequence[Any]) -> Labels:
    """Class indices, through the label's mapping if it has one."""
    mapping = {normalize_value(k): normalize_value(v) for k, v in (label.mapping or {}).items()}
    named = [normalize_value(v) if _is_usable(v) else None for v in values]
    named = [mapping.get(v, v) if v is not None else None for v in named]
    classes = label_classes(label) or tuple(sorted({v for v in named if v is not None}))
    index = {name: number for number, name in enumerate(classes)}
    indices = np.array(
        [index.get(v, UNKNOWN) if v is not None else UNKNOWN for v in named], np.int32
    )
    found = {
        row: "no value" if _is_missing(values[row]) else _shorten(repr(values[row]))
        for row in np.flatnonzero(indices == UNKNOWN).tolist()
    }
    return Labels(classes=classes, values=indices, found=found)


def _read_tags(label: ColumnLabel, values: Sequence[Any]) -> Labels:
    """Which of the tags each row has: from a list, or from text with a separator.

    An empty list or text is a row that has none of them; a null is a row without a label.
    """
    named: list[list[str] | None] = []
    found: dict[int, str] = {}
    for row, value in enumerate(values):
        if isinstance(value, str):
            parts: list[Any] = [part.strip() for part in value.split(label.separator)]
        elif _is_missing(value):
            found[row] = "no value"
            named.append(None)
            continue
        else:
            parts = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
        named.append([normalize_value(part) for part in parts if not _is_missing(part)])
    tags = {tag for row in named for tag in row or ()}
    classes = label_classes(label) or tuple(sorted(tags))
    index = {name: number for number, name in enumerate(classes)}
    held = np.zeros((len(values), len(classes)), np.int8)
    for row, parts_of_row in enumerate(named):
        unknown = [tag for tag in parts_of_row or () if tag not in index]
        if unknown:
            found[row] = _shorten(repr(unknown[0]))
        if parts_of_row is None or unknown:
            held[row] = UNKNOWN
        else:
            held[row, [index[tag] for tag in parts_of_row]] = 1
    return Labels(classes=classes, values=held, found=found, kind="tags")


def _read_numbers(label: ColumnLabel, values: Sequence[Any]) -> Labels:
    numbers = np.full(len(values), np.nan)
    found: dict[int, str] = {}
    for row, value in enumerate(values):
        try:
            numbers[row] = float("nan" if _is_missing(value) else value)
        except (TypeError, ValueError):
            found[row] = f"not a number: {_shorten(repr(value))}"
            continue
        if not np.isfinite(numbers[row]):
            numbers[row] = np.nan
            found[row] = "no value" if _is_missing(value) else f"not finite: {value!r}"
    return Labels(classes=(), values=numbers, found=found, kind="number")


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and value != value)


def _is_usable(value: Any) -> bool:
    """JSON can hold half a surrogate pair, which no class name may be: no file can store it."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return False
    return not _is_missing(value)


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _label_by_vader(name: str, label: VaderLabel, texts: Sequence[str], lexicon: Path) -> Labels:
    compound = score_by_vader(texts, lexicon)
    return Labels(
        classes=label_classes(label) or (),
        values=classify_compound(compound, label.negative_at_most, label.positive_at_least),
        scores={f"{name}_compound": compound},
    )


def classify_compound(
    compound: npt.NDArray[np.float64], negative_at_most: float, positive_at_least: float
) -> npt.NDArray[np.int32]:
    """Negative 0, neutral 1, positive 2, both thresholds belonging to the outer classes.

    :param compound: float64, [B], -1 to 1.
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
    :raises AssetError: if the lexicon cannot be read.
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
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise AssetError(f"the lexicon {path} cannot be read: {what}", hint=hint) from error
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                float(line.strip().split("\t")[1])
        except (IndexError, ValueError) as error:
            raise AssetError(
                f"the lexicon {path}: line {number}: not a word, a tab and its valence: "
                f"{_shorten(repr(line))}",
                hint=hint,
            ) from error
    return "\n".join(line for line in lines if line.strip())
