"""What a person gives to be labelled: files, folders, standard input, texts → blocks of rows."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.config import PrepareSettings, WantedColumn
from pipeline.corpus.columns import ColumnChoice
from pipeline.corpus.lines import stream_lines, stream_texts
from pipeline.corpus.reading import Block, Format, Reading, Stream
from pipeline.corpus.sources import STREAMERS, name_format
from pipeline.errors import DataError
from pipeline.files import describe_read_error

if TYPE_CHECKING:
    import pyarrow as pa

InputFormat = Literal["lines"] | Format
STANDARD_INPUT = "-"
_STANDARD_INPUT_NAME = "standard input"
_LINES_ENDINGS = {".txt", ".text"}


@dataclass(frozen=True)
class Inputs:
    """All inputs as one table that is read a part at a time.

    :param types: the Arrow type of each column.
    :param text_column: the column that holds the texts.
    :param streams: the inputs in order, each with its name for messages.
    """

    types: Mapping[str, pa.DataType]
    text_column: str
    streams: Sequence[tuple[str, Stream]]

    @property
    def rows(self) -> int | None:
        """The number of rows; ``None`` if that is known only at the end."""
        counts = [stream.rows for _, stream in self.streams]
        return None if None in counts else sum(count for count in counts if count is not None)

    def iterate_blocks(self, block_rows: int) -> Iterator[tuple[str, int, Block]]:
        """The rows of all inputs, in order.

        :param block_rows: the most rows of a block.
        :yields: the input's name, the number of the block's first row in it, from 0, and a block.
        :raises ReadError: if an input can no longer be read.
        """
        for name, stream in self.streams:
            first = 0
            blocks = stream.iterate_blocks(block_rows)
            while True:
                try:
                    block = next(blocks, None)
                except OSError as error:
                    raise describe_read_error(error, name) from error
                if block is None:
                    break
                yield name, first, block
                first += len(block[self.text_column])


@contextlib.contextmanager
def open_inputs(
    names: Sequence[str],
    texts: Sequence[str],
    settings: PrepareSettings,
    text_column: str | None,
    input_format: InputFormat | None,
    standard_format: InputFormat,
) -> Iterator[Inputs]:
    """Open all that is to be labelled; what is wrong with a file's form shows here.

    :param names: names of files and folders; ``-`` is standard input.
    :param texts: texts that are given as they are, instead of names.
    :param settings: how text is encoded and cells are quoted, and the column of the texts.
    :param text_column: the column of the texts; ``None`` for that of the settings.
    :param input_format: the format of the files; by the endings of their names if ``None``.
    :param standard_format: the format of standard input.
    :raises DataError: if an input is missing, cannot be read, or has other columns than the first.
    """
    column = text_column or settings.text_column
    with contextlib.ExitStack() as stack:
        streams: list[tuple[str, Stream]] = []
        if texts:
            streams.append(("--text", stream_texts(lambda: texts, column, len(texts))))
        for name in names:
            if name == STANDARD_INPUT:
                stream = _open_standard_input(stack, settings, column, standard_format)
                streams.append((_STANDARD_INPUT_NAME, stream))
                continue
            for path in list_files(Path(name), input_format):
                stream = _open_file(path, settings, column, input_format)
                streams.append((str(path), stream))
        yield Inputs(_join_types(streams, column), column, streams)


def _open_standard_input(
    stack: contextlib.ExitStack, settings: PrepareSettings, column: str, file_format: InputFormat
) -> Stream:
    """Standard input: lines as they come; what must be read twice is put into a file first."""
    if file_format == "lines":
        return stream_texts(_iterate_standard_lines, column, rows=None)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pipeline-predict-")))
    path = folder / _STANDARD_INPUT_NAME
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    if path.stat().st_size == 0:
        return stream_texts(tuple, column, 0)
    return _open_file(path, settings, column, file_format)


def _iterate_standard_lines() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{_STANDARD_INPUT_NAME}: line {number:,}: is not UTF-8",
                hint="convert it, for example by `iconv -f cp1252 -t utf-8`",
            ) from error
        yield text.rstrip("\r\n")


def list_files(path: Path, input_format: InputFormat | None) -> list[Path]:
    """A file, or the files of a folder in the order of their names.

    :param path: the file or the folder.
    :param input_format: the format of the files; by the endings of their names if ``None``.
    :raises DataError: if there is none.
    """
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"{path}: no such file", hint="give a text itself by --text")
        return [path]
    files = [
        file
        for file in sorted(path.iterdir())
        if file.is_file()
        and not file.name.startswith(".")
        and (input_format or _tell_format(file)) is not None
    ]
    if not files:
        raise DataError(
            f"{path}: no file of a known format in this folder",
            hint="give the files, with --input-format if their names do not tell it",
        )
    return files


def _tell_format(path: Path) -> InputFormat | None:
    if _LINES_ENDINGS & {ending.lower() for ending in path.suffixes[-2:]}:
        return "lines"
    return name_format(path)


def _open_file(
    path: Path, settings: PrepareSettings, column: str, input_format: InputFormat | None
) -> Stream:
    file_format = input_format or _tell_format(path)
    if file_format is None:
        raise DataError(
            f"{path}: cannot tell its format from its name",
            hint=f"give --input-format: lines, {', '.join(STREAMERS)}",
        )
    reading = Reading(
        header=settings.header,
        delimiter=settings.delimiter,
        quoting=settings.quoting,
        escape=settings.escape,
        encoding=settings.encoding,
    )
    try:
        if file_format == "lines":
            return stream_lines(path, reading, column)
        choice = ColumnChoice((WantedColumn(column, "--text-column", "text"),), all_others=True)
        return STREAMERS[file_format](path, replace(reading, format=file_format), choice)
    except OSError as error:
        raise describe_read_error(error, path) from error
    except DataError as error:
        hint = error.hint and error.hint.replace("prepare.format", "--input-format")
        raise DataError(error.message, hint=hint) from error


def _join_types(streams: Sequence[tuple[str, Stream]], text_column: str) -> dict[str, pa.DataType]:
    """The columns that all inputs have.

    :raises DataError: if an input has other columns than those before, or of other types.
    """
    first: tuple[str, dict[str, pa.DataType]] | None = None
    for name, stream in streams:
        types = dict(stream.types)
        if not types and stream.rows == 0:
            continue  # a file without any record tells of no column
        if first is None:
            first = name, types
        elif types != first[1]:
            odd = [
                column
                for column in {**first[1], **types}
                if first[1].get(column) != types.get(column)
            ]
            raise DataError(
                f"{name}: has other columns than {first[0]}: they differ in "
                f"{', '.join(map(repr, odd))}",
                hint="label them one after the other",
            )
    if first is None:
        import pyarrow as pa

        return {text_column: pa.string()}
    return first[1]
