"""From a file to its text: what compressed it, how it is encoded, and what it is if not text."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TextIO

from pipeline.console import count
from pipeline.errors import DataError

LONGEST_LINE_CHARACTERS = 2**24  # of a line, a cell or a JSON record; a book has some 2**20
_HEAD_BYTES = 4096  # by which a file's kind is recognised
_UNPACKED_BYTES = 2**17  # of a zstd file, in memory at a time


class _ZstdFile(io.RawIOBase):
    """The content of a file that zstd compressed, which Python's own library learns from 3.14 on.

    :param path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._packed: Any = None
        self._rewind()

    def _rewind(self) -> None:
        import pyarrow as pa

        if self._packed is not None:
            self._packed.close()
        self._packed = pa.CompressedInputStream(pa.OSFile(str(self._path)), "zstd")
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._packed.read(len(buffer))
        buffer[: len(block)] = block
        self._position += len(block)
        return len(block)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to the start; elsewhere only where the file is already."""
        if whence == io.SEEK_SET and offset == 0:
            self._rewind()
        elif (offset, whence) not in {(0, io.SEEK_CUR), (self._position, io.SEEK_SET)}:
            raise io.UnsupportedOperation("a compressed file is read from its start")
        return self._position

    def close(self) -> None:
        self._packed.close()
        super().close()


def _open_zstd(path: Path) -> io.BufferedReader:
    return io.BufferedReader(_ZstdFile(path), _UNPACKED_BYTES)


# The first bytes of a compressed file → what compressed it, and what unpacks it.
_COMPRESSIONS: Mapping[bytes, tuple[str, Callable[[Path], Any]]] = {
    b"\x1f\x8b": ("gzip", gzip.GzipFile),
    b"BZh": ("bzip2", bz2.BZ2File),
    b"\xfd7zXZ\x00": ("xz", lzma.LZMAFile),
    b"\x28\xb5\x2f\xfd": ("zstd", _open_zstd),
}
COMPRESSED_ENDINGS = {".gz", ".bz2", ".xz", ".zst", ".zstd"}
# The longer mark stands first, as that of UTF-32 begins with that of UTF-16.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_AS_TEXT = "write its rows as CSV, JSON Lines or Parquet, and give that file"
# The first bytes of what is no table in text → what it is, and what to do.
_OTHER_KINDS: Mapping[bytes, tuple[str, str]] = {
    b"PAR1": ("a Parquet file", "set prepare.format to parquet"),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": (
        "an old Excel workbook (.xls) or another file of Microsoft Office",
        "open it in Excel and save the sheet as CSV UTF-8",
    ),
    b"version https://git-lfs": (
        "a Git LFS pointer, not the file that it stands for",
        "run `git lfs pull` where the file comes from",
    ),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "unpack it, and give one of its files"),
    b"Rar!\x1a\x07": ("a RAR archive", "unpack it, and give one of its files"),
    b"ARROW1": ("an Arrow or Feather file", _AS_TEXT),
    b"SQLite format 3\x00": ("an SQLite database", _AS_TEXT),
    b"\x93NUMPY": ("a NumPy array", _AS_TEXT),
    b"\x80\x04\x95": ("a Python pickle, which is never loaded", _AS_TEXT),
    b"\x80\x05\x95": ("a Python pickle, which is never loaded", _AS_TEXT),
    b"%PDF-": ("a PDF document", _AS_TEXT),
}
_WEB_PAGES = (b"<!doctype html", b"<html")


def name_compression(path: Path) -> str | None:
    """What compressed a file, by its first bytes; ``None`` if nothing did that is known here."""
    with path.open("rb") as file:
        start = file.read(8)
    return next(
        (name for magic, (name, _) in _COMPRESSIONS.items() if start.startswith(magic)), None
    )


@contextlib.contextmanager
def open_text(path: Path, encoding: str = "auto", newline: str = "") -> Iterator[TextIO]:
    """Open a file that holds text, be it compressed or not.

    :param path: the file.
    :param encoding: a codec of Python's; ``auto`` goes by the byte order mark, and is UTF-8 if
        there is none.
    :param newline: what ends a line, as of ``open``.
    :yields: the file, at its start, behind a byte order mark.
    :raises DataError: if it is no text, if it is damaged, or if its bytes are not of the encoding.
    :raises OSError: if the system does not let it be read.
    """
    try:
        with _open_bytes(path) as file:
            head = file.read(_HEAD_BYTES)
        _refuse_other_kinds(path, head)
        chosen = _choose_encoding(path, head, encoding)
        with _open_bytes(path) as file, io.TextIOWrapper(file, chosen, newline=newline) as text:
            yield text
    except UnicodeError as error:
        raise _describe_bad_bytes(path, chosen, error) from error
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise _describe_bad_compression(path, error) from error
    except OSError as error:
        if error.errno:
            raise
        raise _describe_bad_compression(path, error) from error


def iterate_lines(file: TextIO, path: Path) -> Iterator[str]:
    """The lines of a file with their ends, one in memory at a time.

    :param file: the file, opened.
    :param path: its name, for the message.
    :raises DataError: if a line is so long that the file cannot be one of lines.
    """
    number = 0
    while line := file.readline(LONGEST_LINE_CHARACTERS):
        number += 1
        if len(line) == LONGEST_LINE_CHARACTERS and line[-1] not in "\r\n":
            raise DataError(
                f"{path}: line {number:,}: is longer than {LONGEST_LINE_CHARACTERS:,} characters",
                hint="make sure that it is the right file and that its lines end",
            )
        yield line


def _open_bytes(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked."""
    with path.open("rb") as file:
        start = file.read(8)
    for magic, (_, opener) in _COMPRESSIONS.items():
        if start.startswith(magic):
            unpacked: IO[bytes] = opener(path)
            return unpacked
    return path.open("rb")


def _choose_encoding(path: Path, head: bytes, encoding: str) -> str:
    """The codec of a file.

    :param head: the first bytes of the file.
    :param encoding: the setting.
    """
    if encoding != "auto":
        # A byte order mark in front of UTF-8 is no part of the first cell.
        return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    for mark, name in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return name
    # In UTF-16 every other byte of Latin letters, digits, delimiters and line ends is 0.
    for name, zeros, others in (
        ("utf-16-le", head[1::2], head[::2]),
        ("utf-16-be", head[::2], head[1::2]),
    ):
        if zeros.count(0) > max(3, 0.4 * len(zeros)) and others.count(0) < 0.05 * len(others):
            raise DataError(
                f"{path}: looks like UTF-16 without a byte order mark",
                hint=f"set prepare.encoding to {name}, or save the file as UTF-8",
            )
    return "utf-8"


def _refuse_other_kinds(path: Path, head: bytes) -> None:
    """Say what a file is that holds no text.

    :param head: the first bytes of the file.
    :raises DataError: if it is of a known kind.
    """
    if head.startswith(b"PK\x03\x04"):
        what, hint = _describe_archive(path)
        raise DataError(f"{path}: is {what}", hint=hint)
    for magic, (what, hint) in _OTHER_KINDS.items():
        if head.startswith(magic):
            raise DataError(f"{path}: is {what}", hint=hint)
    if head.lstrip(codecs.BOM_UTF8 + b" \t\r\n")[:14].lower().startswith(_WEB_PAGES):
        raise DataError(
            f"{path}: is a web page (HTML), perhaps one that asks to log in",
            hint="download the data itself, and give that file",
        )


def _describe_archive(path: Path) -> tuple[str, str]:
    """What a zip file is, and what to do."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, OSError):
        return "a zip archive, or a damaged one", "unpack it, and give one of its files"
    if any(name.startswith("xl/") for name in names):
        return "an Excel workbook", (
            "save the sheet as CSV UTF-8 in Excel, or convert it with "
            "pandas.read_excel(…).to_csv(…, index=False), and give that file"
        )
    if "content.xml" in names:
        return "an OpenDocument file", "save the sheet as CSV in UTF-8, and give that file"
    listed = ", ".join(repr(name) for name in names[:3]) + (" and others" if names[3:] else "")
    return (
        f"a zip archive of {count(len(names), 'file')} ({listed})",
        "unpack it, and give one of its files",
    )


def _describe_bad_compression(path: Path, error: Exception) -> DataError:
    name = name_compression(path) or "compressed"
    return DataError(
        f"{path}: a damaged {name} file ({str(error) or type(error).__name__})",
        hint="copy or download it again",
    )


def _describe_bad_bytes(path: Path, encoding: str, error: UnicodeError) -> DataError:
    """The error that names the first bytes that are not of the encoding, with their line."""
    if not encoding.startswith("utf-8"):
        return DataError(
            f"{path}: is not of the encoding {encoding} ({error})",
            hint="correct prepare.encoding, or save the file as UTF-8",
        )
    with _open_bytes(path) as file:
        number = 0
        while line := file.readline(4 * LONGEST_LINE_CHARACTERS):
            number += 1
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as found:
                return DataError(
                    f"{path}: line {number}: byte 0x{line[found.start]:02x} at column "
                    f"{found.start + 1} is not UTF-8",
                    hint=_suggest_encoding(path),
                )
    return DataError(f"{path}: changed while it was read", hint="run the command again")


def _suggest_encoding(path: Path) -> str:
    """What to do with a file that is not UTF-8; nothing is suggested that would fail."""
    try:
        with _open_bytes(path) as file, io.TextIOWrapper(file, "cp1252", newline="") as text:
            while part := text.read(2**20):
                if any(ord(sign) < 32 and sign not in "\t\n\v\f\r" for sign in set(part)):
                    return "give a file of text, or correct prepare.format"
    except UnicodeDecodeError:
        return "set prepare.encoding to the encoding that the file has, or save it as UTF-8"
    return (
        "save the file as UTF-8, or, if it comes from Windows in Western Europe or America, set "
        "prepare.encoding to cp1252"
    )
