"""Plain text: each line is a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pipeline.corpus.opening import iterate_lines, open_text
from pipeline.corpus.reading import Reading, Stream, gather_rows


def stream_lines(path: Path, reading: Reading, column: str) -> Stream:
    """Read a file with one text a line a part at a time; a blank line is a row, too.

    :param path: the file.
    :param reading: its encoding.
    :param column: the name of the one column.
    :returns: the column and its rows.
    :raises DataError: if it is no text, or not of the encoding.
    """

    def iterate() -> Iterator[str]:
        with open_text(path, reading.encoding) as file:
            yield from (line.rstrip("\r\n") for line in iterate_lines(file, path))

    return stream_texts(iterate, column, rows=sum(1 for _ in iterate()))


def stream_texts(iterate: Callable[[], Iterable[str]], column: str, rows: int | None) -> Stream:
    """Texts from anywhere, as if they were a file with one column.

    :param iterate: a function that gives the texts.
    :param column: the name of the one column.
    :param rows: the number of the texts; ``None`` if that is known only at their end.
    """
    import pyarrow as pa

    return Stream(
        types={column: pa.string()},
        rows=rows,
        iterate_blocks=lambda most: gather_rows([column], ([text] for text in iterate()), most),
    )
