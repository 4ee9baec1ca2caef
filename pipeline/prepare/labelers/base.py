"""What every labeler gives, and how the one that a label's settings name is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.config import LabelKind, LabelSettings, RuntimeSettings
from pipeline.corpus.cells import Table
from pipeline.project import Project

UNKNOWN = -1  # the class index of a row without a label
NO_VALUE = "no value"  # what stands instead of a label where a cell holds nothing
_SHOWN_CHARACTERS = 60  # of a value in a message


@dataclass(frozen=True)
class Labels:
    """One task's labels for a table of texts.

    :param classes: class or tag names in the order of their index, C of them; none of a number.
    :param values: what each row has. ``class``: integers with a sign, [B], 0 to C - 1, or
        ``UNKNOWN``. ``tags``: int8, [B, C], 1 for a tag that the row has, else 0; ``UNKNOWN`` in a
        row without a label. ``number``: float64, [B]; NaN in a row without one.
    :param scores: raw scores to keep beside the label: column → float64, [B].
    :param unusable: row → what stands there instead of a label, for rows that cannot be used.
    :param kind: what a value is.
    :param notes: what looks wrong about them, a sentence each, to warn of.
    :param sources: file → SHA-256, of files beside the dataset that the labels depend on. They
        stand with the settings in the identity of the labels.
    """

    classes: tuple[str, ...]
    values: npt.NDArray[Any]
    scores: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    unusable: Mapping[int, str] = field(default_factory=dict)
    kind: LabelKind = "class"
    notes: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Which rows have a label: [B]."""
        given = np.isfinite(self.values) if self.kind == "number" else np.greater(self.values, -1)
        return np.asarray(np.reshape(given, (len(self.values), -1)).all(axis=1), np.bool_)


@dataclass(frozen=True)
class LabelingContext:
    """Where labels are made, for labelers that read or keep files of the project.

    :param project: the project.
    :param runtime: settings of devices and threads.
    :param is_corpus: whether the texts are all those of the project's corpus: then a labeler may
        keep what it computes, and forget what it computed of others.
    """

    project: Project
    runtime: RuntimeSettings
    is_corpus: bool = True


class Labeler(Protocol):
    """Labels every row for one task.

    It is made from the task's name, its label's settings and, if these are ``in_project``, a
    ``LabelingContext``.
    """

    def label(self, frame: Table, texts: Sequence[str], assets: Mapping[str, Path]) -> Labels:
        """Label every row.

        :param frame: the source's columns, B rows. Outside the column of texts, a cell that holds
            one of the words of ``prepare.missing`` is ``None``.
        :param texts: the texts, [B], which are read from the disk as they are iterated over; rows
            without a usable one hold an empty string.
        :param assets: key of each asset that the settings want → its file on this machine.
        :returns: B labels, with the scores that the settings announce.
        :raises DataError: if the source lacks what the labeler needs.
        :raises AssetError: if an asset is not of the form that it should be.
        """
        ...


def make_labeler(
    task: str, settings: LabelSettings, context: LabelingContext | None = None
) -> Labeler:
    """The labeler that the settings of a label name, imported at this moment.

    :param task: the task that the labels are for.
    :param settings: the label's settings, an instance of a class in ``pipeline.config.LABELERS``.
    :param context: the project, which labelers that are ``in_project`` cannot do without.
    :raises ValueError: if such a labeler gets none.
    """
    module, _, name = settings.implementation.partition(":")
    implementation = getattr(import_module(module), name)
    if settings.in_project and context is None:
        raise ValueError(f"the labeler {settings.labeler} of {task} needs a project")
    more = (context,) if settings.in_project else ()
    labeler: Labeler = implementation(task, settings, *more)
    return labeler


def choose_index_type(classes: int) -> np.dtype[np.signedinteger]:
    """The narrowest type that holds the index of any class, and ``UNKNOWN``.

    :param classes: the number of classes, C.
    """
    return np.dtype(np.min_scalar_type(-max(classes, 1)))


def shorten(text: str) -> str:
    """A text for a message, with an ellipsis for what is beyond 60 characters."""
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: a null, an empty or blank text, or NaN."""
    if isinstance(value, str):
        return not value or value.isspace()
    return value is None or (isinstance(value, float) and value != value)


def is_unicode(value: Any) -> bool:
    """Whether a value could be stored as text: JSON can hold half a surrogate pair."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return False
    return True
