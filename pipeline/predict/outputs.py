"""Rows with their answers → CSV, TSV, JSON Lines, Parquet, or lines for a person."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol, cast

from pipeline.console import format_number
from pipeline.corpus.reading import Block
from pipeline.predict.shading import LEGEND, list_words, shade_words

if TYPE_CHECKING:
    import pyarrow as pa

OutputFormat = Literal["csv", "tsv", "jsonl", "parquet"]
OUTPUT_ENDINGS: Mapping[str, OutputFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
IDENTITY_KEY = "embedding_pipeline"  # of the metadata of a Parquet file


class _StaysOpen(io.RawIOBase):
    """A file for Arrow, which closes what it is given.

    :param file: the file, which stays open.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)


def _compress_by_gzip(file: IO[bytes]) -> IO[bytes]:
    # Without the time of day, the same answers are the same file.
    return cast("IO[bytes]", gzip.GzipFile(fileobj=file, mode="wb", mtime=0))


def _compress_by_zstd(file: IO[bytes]) -> IO[bytes]:
    import pyarrow as pa

    packed = pa.CompressedOutputStream(pa.PythonFile(_StaysOpen(file), mode="w"), "zstd")
    return cast("IO[bytes]", packed)


# The ending of a compressed file → what compresses what is written to it.
COMPRESSORS: Mapping[str, Callable[[IO[bytes]], IO[bytes]]] = {
    ".gz": _compress_by_gzip,
    ".zst": _compress_by_zstd,
}


class Writer(Protocol):
    """Writes rows in one format."""

    def write(self, block: Block) -> None:
        """Write rows.

        :param block: column → values, lists or Arrow arrays, for each column of the output.
        """

    def close(self) -> None:
        """Write what stands behind the last row; the file itself stays open."""


class DelimitedWriter:
    """CSV or TSV: UTF-8, a header, line feeds; lists and objects as JSON, null as an empty cell.

    :param file: the file.
    :param types: the columns and their Arrow types.
    :param identity: not needed, as such a file has no room for it.
    :param delimiter: what stands between two cells.
    """

    def __init__(
        self,
        file: IO[bytes],
        types: Mapping[str, pa.DataType],
        identity: Mapping[str, str],
        delimiter: str = ",",
    ) -> None:
        self._file = file
        self._names = list(types)
        # Only characters of the line's end are quoted beside quotes and delimiters, so it holds
        # both, and the carriage return of each row's end is taken off again.
        self._writer = csv.writer(self, delimiter=delimiter, lineterminator="\r\n")
        self._lines: list[str] = []
        self._write_rows([self._names])

    def write(self, block: Block | str) -> None:
        """Write rows, or, as the standard library's writer calls it, take one line."""
        if isinstance(block, str):
            self._lines.append(block[:-2] + "\n")
            return
        columns = [map(_format_cell, _list_values(block[name])) for name in self._names]
        self._write_rows(zip(*columns, strict=True))

    def close(self) -> None:
        pass

    def _write_rows(self, rows: Any) -> None:
        self._writer.writerows(rows)
        self._file.write("".join(self._lines).encode("utf-8", "replace"))
        self._lines = []


class TabWriter(DelimitedWriter):
    """TSV, as ``DelimitedWriter`` has it."""

    def __init__(
        self, file: IO[bytes], types: Mapping[str, pa.DataType], identity: Mapping[str, str]
    ) -> None:
        super().__init__(file, types, identity, "\t")


class JsonLinesWriter:
    """One object a line.

    :param file: the file.
    :param types: the columns and their Arrow types.
    :param identity: not needed, as such a file has no room for it.
    """

    def __init__(
        self, file: IO[bytes], types: Mapping[str, pa.DataType], identity: Mapping[str, str]
    ) -> None:
        self._file = file
        self._names = list(types)

    def write(self, block: Block) -> None:
        columns = [_list_values(block[name]) for name in self._names]
        rows = (dict(zip(self._names, row, strict=True)) for row in zip(*columns, strict=True))
        self._file.write(b"".join(_format_json(row) + b"\n" for row in rows))

    def close(self) -> None:
        pass


class ParquetWriter:
    """Parquet: the types of a Parquet input stay; the metadata tells of the model.

    :param file: the file.
    :param types: the columns and their Arrow types.
    :param identity: the facts that tell by what the answers were made.
    """

    def __init__(
        self, file: IO[bytes], types: Mapping[str, pa.DataType], identity: Mapping[str, str]
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        metadata = {IDENTITY_KEY: json.dumps(dict(identity), ensure_ascii=False)}
        self._schema = pa.schema(list(types.items()), metadata=metadata)
        self._writer = pq.ParquetWriter(file, self._schema)

    def write(self, block: Block) -> None:
        import pyarrow as pa

        arrays = [_make_array(block[field.name], field.type) for field in self._schema]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class TerminalWriter:
    """One line a text for a person, in the width of the terminal, one after another.

    :param write_line: a function that prints a line.
    :param text_column: the column of the texts.
    :param answers: the columns of the answers, of which those with a colon are the probabilities.
    :param explanations: column of an explanation → its task.
    :param classes: task → names of its classes, of which the longest makes the width of a column.
    :param columns: the width of the terminal in characters.
    :param has_colours: whether words may be shaded.
    """

    _FEWEST_TEXT_COLUMNS = 20
    _MOST_LABEL_COLUMNS = 30
    _LEAST_PROBABILITY = 0.1  # that a word in the full colour moved

    def __init__(
        self,
        write_line: Callable[[str], None],
        text_column: str,
        answers: Sequence[str],
        explanations: Mapping[str, str],
        classes: Mapping[str, Sequence[str]],
        columns: int,
        *,
        has_colours: bool,
    ) -> None:
        self._write_line = write_line
        self._explanations = explanations
        self._classes = classes
        self._columns = columns
        self._has_colours = has_colours
        self._text_column = text_column
        self._widths = {
            name: _choose_width(name, classes, self._MOST_LABEL_COLUMNS) for name in answers
        }
        taken = sum(width + 2 for width in self._widths.values())
        self._text_columns = max(self._FEWEST_TEXT_COLUMNS, columns - taken - 1)
        self._has_header = False

    def write(self, block: Block) -> None:
        if not self._has_header:
            if self._explanations and self._has_colours:
                self._write_line(LEGEND)
            self._write_row(self._text_column, list(self._widths))
            self._has_header = True
        errors = block.get("error") or [None] * len(block[self._text_column])
        answers = [block[name] for name in self._widths]
        texts = block[self._text_column]
        for number, (text, error, *row) in enumerate(zip(texts, errors, *answers, strict=True)):
            self._write_row(_show(text), [error] if error else [_show(value) for value in row])
            for name, task in self._explanations.items():
                if block[name][number] is not None:
                    self._write_explanation(task, text, block[name][number])

    def close(self) -> None:
        pass

    def _write_explanation(self, task: str, text: str, spans: Sequence[Mapping[str, Any]]) -> None:
        """The words of one text that moved the answer to one task."""
        indent = f"  {task}  "
        if not self._has_colours:
            self._write_line(indent + list_words(text, spans))
            return
        least = self._LEAST_PROBABILITY if self._classes[task] else 0.0
        for line in shade_words(text, spans, self._columns, indent, least):
            self._write_line(line)

    def _write_row(self, text: str, cells: Sequence[str]) -> None:
        from rich.cells import set_cell_size

        widths = list(self._widths.values()) if len(cells) == len(self._widths) else []
        shown = [
            set_cell_size(cell, width) for cell, width in zip(cells, widths, strict=False)
        ] or list(cells)
        line = "  ".join([_fit(text, self._text_columns), *shown])
        self._write_line(line.rstrip())


WRITERS: Mapping[
    OutputFormat,
    Callable[[IO[bytes], Mapping[str, pa.DataType], Mapping[str, str]], Writer],
] = {
    "csv": DelimitedWriter,
    "tsv": TabWriter,
    "jsonl": JsonLinesWriter,
    "parquet": ParquetWriter,
}


def _list_values(values: Any) -> Sequence[Any]:
    """The values of a column as Python objects."""
    listed: Sequence[Any] = values if isinstance(values, list) else values.to_pylist()
    return listed


def _format_cell(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | list | dict):
        return _format_json(value).decode("utf-8")
    return value


def _format_json(value: Any) -> bytes:
    """A value as strict JSON, which has no number that is not finite and no half of a character."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_simplify)
    except ValueError:
        text = json.dumps(_drop_nan(value), ensure_ascii=False, allow_nan=False, default=_simplify)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, default=_simplify).encode("ascii")


def _simplify(value: Any) -> str:
    """A value that JSON has no form for, such as a date, as text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _drop_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_drop_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _make_array(values: Any, wanted: pa.DataType) -> pa.Array:
    """A column as Arrow has it; what is no text in a column of text becomes JSON."""
    import pyarrow as pa

    if not isinstance(values, list):
        return values
    if wanted != pa.string():
        return pa.array(values, wanted)
    return pa.array([_make_text(value) for value in values], wanted)


def _make_text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else _format_json(value).decode("utf-8")
    return text.encode("utf-8", "replace").decode("utf-8")


def _choose_width(name: str, classes: Mapping[str, Sequence[str]], most: int) -> int:
    from rich.cells import cell_len

    longest = max((cell_len(name) for name in classes.get(name, ())), default=6)
    return max(cell_len(name), min(longest, most))


def _show(value: Any) -> str:
    """A value in few characters; what a terminal could take for an order becomes a blank."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return format_number(value, 4)
    if isinstance(value, list):
        return ", ".join(map(_show, value)) or "–"
    return "".join(sign if sign.isprintable() else " " for sign in str(value))


def _fit(text: str, columns: int) -> str:
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= columns:
        return set_cell_size(text, columns)
    return set_cell_size(text, columns - 1) + "…"


def iterate_names(taken: Sequence[str], wanted: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The names that columns of the input have in the output, where the answers take theirs.

    :param taken: the columns of the answers.
    :param wanted: the columns of the input.
    :yields: the name in the input and that in the output, which ends in ``_input`` if the answers
        have a column of that name.
    """
    used = {*taken, *wanted}
    for name in wanted:
        new = name
        while new in taken or (new != name and new in used):
            new = f"{new}_input"
        used.add(new)
        yield name, new
