"""Files of plain text, each of them one text; the folder that a file lies in is its label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.corpus.columns import ColumnChoice
from pipeline.corpus.opening import LONGEST_LINE_CHARACTERS, open_text
from pipeline.corpus.reading import Columns, Reading
from pipeline.errors import DataError

TEXT_COLUMN = "text"
LABEL_COLUMN = "label"
FILE_COLUMN = "file"


def read_text_files(
    folder: Path, names: Sequence[str], reading: Reading, choice: ColumnChoice
) -> Columns:
    """Read files that hold one text each.

    :param folder: the folder.
    :param names: names of the files relative to the folder: in it, or in one of its sub-folders.
    :param reading: their encoding.
    :param choice: the columns to take: ``text``, without a line break at its end; ``file``, the
        name; and ``label``, the sub-folder, if there is any. A file in no sub-folder has ``None``.
    :returns: name → values.
    :raises DataError: if a file is no text, not of the encoding, or deeper than in a sub-folder.
    """
    deep = next((name for name in names if name.count("/") > 1), None)
    if deep is not None:
        raise DataError(
            f"{folder / deep}: lies deeper than in a sub-folder of {folder}, whose name would be "
            "its label",
            hint="let fetch.dataset name the folder whose sub-folders are the labels, or a list of "
            "such folders",
        )
    found = [TEXT_COLUMN, *([LABEL_COLUMN] if any("/" in n for n in names) else []), FILE_COLUMN]
    picked = choice.pick(folder, found, "a folder of texts")
    choice.mention_renamed(folder, found)
    values: dict[str, Callable[[str], str | None]] = {
        FILE_COLUMN: str,
        LABEL_COLUMN: lambda name: name.partition("/")[0] if "/" in name else None,
        TEXT_COLUMN: lambda name: _read_text(folder / name, reading.encoding),
    }
    return {
        name: [values[found[position]](file) for file in names] for name, position in picked.items()
    }


def _read_text(path: Path, encoding: str) -> str:
    with open_text(path, encoding) as file:
        text = file.read(LONGEST_LINE_CHARACTERS + 1)
    if len(text) > LONGEST_LINE_CHARACTERS:
        raise DataError(
            f"{path}: is longer than {LONGEST_LINE_CHARACTERS:,} characters",
            hint="make sure that it is the right file, or cut it into several",
        )
    return text.removesuffix("\n").removesuffix("\r")
