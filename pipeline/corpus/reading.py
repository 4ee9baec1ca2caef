"""How the file of a source is to be read, and what a reader gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Format = Literal["csv", "tsv", "json", "jsonl", "parquet"]
# Name of a column → its values, one a row, in the order of the file.
Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Reading:
    """How a file is to be read; the settings of the same names in ``prepare`` say what each means.

    :param format: the file's format; ``auto`` goes by the ending of its name.
    :param header: names of the columns of a CSV or TSV file that has no header line.
    :param delimiter: the name of what stands between the cells of a CSV or TSV file.
    :param quoting: whether double quotes enclose the cells of a CSV or TSV file.
    :param escape: whether a backslash escapes quotes in a CSV or TSV file.
    :param encoding: the codec of a file that holds text.
    """

    format: Literal["auto"] | Format = "auto"
    header: Sequence[str] | None = None
    delimiter: Literal["auto", "comma", "tab", "semicolon", "pipe"] = "auto"
    quoting: Literal["auto", "double", "none"] = "auto"
    escape: Literal["none", "backslash"] = "none"
    encoding: str = "auto"
