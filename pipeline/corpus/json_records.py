"""JSON Lines, and one JSON array: objects become rows, their keys columns; types and nulls stay."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pipeline.corpus.columns import ColumnChoice
from pipeline.corpus.opening import LONGEST_LINE_CHARACTERS, iterate_lines, open_text
from pipeline.corpus.reading import Columns, Reading, Stream, gather_rows
from pipeline.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK_CHARACTERS = 2**20
_BLANKS = " \t\r\n"
_BLANK = re.compile(f"[{_BLANKS}]*")
_LINES_HINT = "JSON Lines holds one JSON object a line; a list of objects begins with ["
_ARRAY_HINT = "a JSON array holds objects between [ and ], with commas between them"


class _DoubledKeys(dict[str, Any]):
    """An object in which keys stand twice, so that it does not tell which value is meant."""

    keys_twice: frozenset[str]


def read_json(path: Path, reading: Reading, choice: ColumnChoice) -> Columns:
    """Read a file of JSON objects, one a line or as one array.

    :param path: the file.
    :param reading: its encoding.
    :param choice: the columns to take.
    :returns: name → values, ``None`` where an object lacks the key. Lists hold Python objects, as
        pandas would turn whole numbers beside a missing value into floats.
    :raises DataError: naming the line of what is no object.
    """
    names = _Names(choice)
    columns: Columns = {}
    seen = rows = 0
    for record in _iterate_objects(path, reading, names):
        if len(names.taken) > seen:
            for name in list(names.taken)[seen:]:
                if names.taken[name]:
                    columns[name] = choice.start_column(name)
                    columns[name].extend([None] * rows)
            seen = len(names.taken)
        for name, column in columns.items():
            column.append(record.get(name))
        rows += 1
    if not rows:
        return {}
    found = list(names.taken)
    picked = choice.pick(path, found, "an object")
    choice.mention_renamed(path, found)
    return {name: columns[found[position]] for name, position in picked.items()}


def stream_json(path: Path, reading: Reading, choice: ColumnChoice) -> Stream:
    """Read a file of JSON objects a part at a time.

    The file is read twice: which keys its objects have, and of which types, is known only at its
    end.

    :param path: the file.
    :param reading: its encoding.
    :param choice: the columns to take.
    :returns: its columns and its rows.
    :raises DataError: naming the line of what is no object.
    """
    names = _Names(choice)
    kinds: dict[str, set[type]] = {}
    rows = 0
    for record in _iterate_objects(path, reading, names):
        rows += 1
        for name, value in names.take(record).items():
            kinds.setdefault(name, set()).add(_tell_kind(value))
    found = list(names.taken)
    picked = choice.pick(path, found, "an object") if rows else {}
    if rows:
        choice.mention_renamed(path, found)

    def iterate() -> Iterator[list[Any]]:
        objects = _iterate_objects(path, reading, _Names(choice))
        return ([record.get(found[n]) for n in picked.values()] for record in objects)

    return Stream(
        types={name: _choose_type(kinds.get(found[n], set())) for name, n in picked.items()},
        rows=rows,
        iterate_blocks=lambda rows: gather_rows(list(picked), iterate(), rows),
    )


def _tell_kind(value: Any) -> type:
    """The type of a value; a whole number that 64 bits do not hold has that of an object."""
    return object if type(value) is int and not -(2**63) <= value < 2**63 else type(value)


def _choose_type(kinds: set[type]) -> pa.DataType:
    """The Arrow type of a column by the types of its values; text, if no other holds them all."""
    import pyarrow as pa

    kinds = kinds - {type(None)}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds and kinds <= {int, float} else pa.string()


class _Names:
    """The keys that objects have, in order of first appearance, and which of them are taken.

    :param choice: the columns to take.
    :ivar taken: key → whether its values are taken.
    """

    def __init__(self, choice: ColumnChoice) -> None:
        self._choice = choice
        self.taken: dict[str, bool] = {}

    def add(self, record: dict[str, Any]) -> None:
        for name in record:
            if name not in self.taken:
                self.taken[name] = self._choice.may_take(name)

    def take(self, record: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in record.items() if self.taken[name]}


def _iterate_objects(path: Path, reading: Reading, names: _Names) -> Iterator[dict[str, Any]]:
    """The objects of a file, one in memory at a time; their keys are added to ``names``.

    :raises DataError: naming the line of what is no object, or of one whose keys do not tell.
    """
    with open_text(path, reading.encoding, newline="\n") as file:
        for line, record in _iterate_records(path, file):
            if not isinstance(record, dict):
                raise DataError(
                    f"{path}: line {line:,}: not a JSON object but {type(record).__name__}",
                    hint=_LINES_HINT,
                )
            names.add(record)
            _refuse_doubled_keys(path, line, record, names.taken)
            yield record


def _refuse_doubled_keys(
    path: Path, line: int, record: dict[str, Any], takes: dict[str, bool]
) -> None:
    if isinstance(record, _DoubledKeys):
        for name in sorted(record.keys_twice):
            if takes[name]:
                raise DataError(
                    f"{path}: line {line:,}: the key {name!r} stands twice in one object",
                    hint="give each key once",
                )


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object from its keys and values, marked if a key stands twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        doubled = _DoubledKeys(made)
        times = Counter(key for key, _ in pairs)
        doubled.keys_twice = frozenset(key for key, number in times.items() if number > 1)
        return doubled
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_make_object)


def _iterate_records(path: Path, file: TextIO) -> Iterator[tuple[int, Any]]:
    """The records of a file, each with the number of the line that it begins in."""
    array = _ArrayText(file)
    if array.peek() == "[":
        yield from _iterate_array(path, array)
        return
    file.seek(0)
    for line, text in enumerate(iterate_lines(file, path), start=1):
        if text.strip(_BLANKS):
            try:
                yield line, _DECODER.decode(text)
            except (ValueError, RecursionError) as error:
                raise _describe_bad_json(path, line, error, _LINES_HINT) from error


def _iterate_array(path: Path, array: _ArrayText) -> Iterator[tuple[int, Any]]:
    """The elements of one JSON array, of which only a part is in memory at a time."""
    array.skip()
    if array.peek() == "]":
        array.skip()
    else:
        separator = ","
        while separator == ",":
            array.peek()
            line = array.line
            try:
                yield line, array.read_value()
            except (ValueError, RecursionError) as error:
                raise _describe_bad_json(
                    path, array.find_line(error), error, _ARRAY_HINT
                ) from error
            separator = array.peek()
            if separator not in {",", "]"}:
                what = f"{separator!r} stands" if separator else "the file ends"
                raise DataError(
                    f"{path}: line {array.line:,}: not valid JSON ({what} where a comma or ] "
                    "should be)",
                    hint=_ARRAY_HINT,
                )
            array.skip()
    if array.peek():
        raise DataError(
            f"{path}: line {array.line:,}: not valid JSON (text after the end of the array)",
            hint="give one array a file, or one object a line without brackets around them",
        )


class _ArrayText:
    """The text of a JSON array, read a part at a time.

    :param file: the file, at its start.
    :ivar line: the number of the line that was reached.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._buffer = ""
        self._position = 0
        self.line = 1

    def peek(self) -> str:
        """The next character that is not blank; none at the end of the file."""
        while True:
            blank = _BLANK.match(self._buffer, self._position)
            self._advance(blank.end() if blank else self._position)
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._fill():
                return ""

    def skip(self) -> None:
        """Go behind the next character."""
        self._advance(self._position + 1)

    def read_value(self) -> Any:
        """The next value.

        :raises ValueError: if it is not valid JSON, or too long.
        :raises RecursionError: if it is nested too deeply.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                if len(self._buffer) - self._position > LONGEST_LINE_CHARACTERS:
                    what = f"{error.msg}, or longer than {LONGEST_LINE_CHARACTERS:,} characters"
                    raise json.JSONDecodeError(what, error.doc, error.pos) from error
                if not self._fill():
                    raise
                continue
            self._advance(end)
            return value

    def find_line(self, error: Exception) -> int:
        """The number of the line that an error of ``read_value`` is in."""
        if isinstance(error, json.JSONDecodeError):
            return self.line + error.doc.count("\n", self._position, error.pos)
        return self.line

    def _advance(self, position: int) -> None:
        self.line += self._buffer.count("\n", self._position, position)
        self._position = position

    def _fill(self) -> bool:
        """Read on; each part is at least as long as what is held, so that few are needed."""
        held = self._buffer[self._position :]
        more = self._file.read(max(_CHUNK_CHARACTERS, len(held)))
        if more:
            self._buffer, self._position = held + more, 0
        return bool(more)


def _describe_bad_json(path: Path, line: int, error: Exception, hint: str) -> DataError:
    what = getattr(error, "msg", None) or str(error)
    return DataError(f"{path}: line {line:,}: not valid JSON ({what})", hint=hint)
