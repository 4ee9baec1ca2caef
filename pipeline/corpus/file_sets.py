"""Which files a dataset's name stands for: those of a folder, or those that a pattern matches."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.corpus.opening import COMPRESSED_ENDINGS
from pipeline.corpus.sources import name_format
from pipeline.errors import DataError
from pipeline.project import Project

LISTED_LEVELS = 3  # of folders within each other; a label is a folder on the second
_NAMED_FILES = 3
_FORMATS = "CSV, TSV, JSON, JSON Lines, Parquet or .txt"


@dataclass(frozen=True)
class FileSet:
    """Files that are one dataset.

    :param names: their names, relative to the folder that they lie in, with ``/`` between folders,
        in the order of their rows.
    :param are_texts: whether each file is one text, not a table.
    :param beside: names of ``.txt`` files that lie beside tables.
    """

    names: tuple[str, ...]
    are_texts: bool
    beside: tuple[str, ...] = ()

    def describe_beside(self) -> str | None:
        """What is not read although it could be, for a person; ``None`` if there is nothing."""
        listed = ", ".join(self.beside[:_NAMED_FILES])
        more = len(self.beside) - _NAMED_FILES
        listed += f" and {more:,} more" if more > 0 else ""
        return f"not read, as there are tables: {listed}" if listed else None


def has_wildcards(name: str) -> bool:
    """Whether a name is a pattern for names of files, unless there is a file of that very name."""
    return any(sign in name for sign in "*?[")


def split_pattern(pattern: str) -> tuple[str, str]:
    """A pattern as the folder that all its matches lie below, and the pattern for names below it.

    :param pattern: a pattern for paths.
    :returns: the folder with a slash at its end, or nothing if there is none, and the pattern.
    """
    parts = pattern.split("/")
    first = next(number for number, part in enumerate(parts) if has_wildcards(part))
    return "".join(f"{part}/" for part in parts[:first]), "/".join(parts[first:])


def matches(name: str, pattern: str) -> bool:
    """Whether a path matches a pattern: ``**`` stands for any folders, ``*`` for no slash.

    :param name: a path with slashes.
    :param pattern: the pattern.
    """
    return _match_parts(name.split("/"), pattern.split("/"))


def _match_parts(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**" and len(patterns) > 1:
        return any(_match_parts(parts[n:], patterns[1:]) for n in range(len(parts)))
    return (
        bool(parts)
        and fnmatch.fnmatchcase(parts[0], patterns[0])
        and _match_parts(parts[1:], patterns[1:])
    )


def choose_files(folder: str, names: Iterable[str]) -> FileSet:
    """The files of a folder that are its dataset: its tables, or else texts in it and below it.

    :param folder: the folder, for messages.
    :param names: names relative to the folder of the files in it and below it, whatever they hold.
    :raises DataError: if none is of a known format.
    """
    shown = [name for name in names if not _is_hidden(name)]
    texts = sorted(name for name in shown if _is_text(name))
    tables = sorted(name for name in shown if "/" not in name and name_format(Path(name)))
    if tables:
        return FileSet(tuple(tables), False, tuple(name for name in texts if "/" not in name))
    if not texts:
        raise DataError(
            f"{folder}: no file of a known format in this folder: {_FORMATS}",
            hint="give files by a pattern, such as data/*.csv",
        )
    return FileSet(tuple(texts), are_texts=True)


def choose_matches(pattern: str, names: Iterable[str]) -> FileSet:
    """The files that a pattern matches, as a dataset.

    :param pattern: the pattern, for messages.
    :param names: names of the files, relative to the folder of the pattern.
    :raises DataError: if there is none.
    """
    chosen = sorted(name for name in names if not _is_hidden(name))
    if not chosen:
        raise DataError(f"{pattern}: no file matches it", hint="correct the pattern")
    return FileSet(tuple(chosen), are_texts=all(map(_is_text, chosen)))


def list_local_files(project: Project, name: str) -> tuple[str, FileSet] | None:
    """The files of this machine that the name of a folder or a pattern stands for.

    :param project: the project that a relative name belongs to.
    :param name: the name.
    :returns: the folder with a slash at its end, as the name gives it, and the files; ``None`` if
        the name is neither a folder nor a pattern.
    :raises DataError: if there is no file that can be read, or the folder holds the project.
    :raises OSError: if the system does not let the folder be read.
    """
    path = project.resolve(name)
    if path.is_file():
        return None
    if path.is_dir():
        if project.root.is_relative_to(path.resolve()):
            raise DataError(
                f"{name}: is a folder that holds the project, whose own files are no data",
                hint="put the data into a folder of its own, or give a pattern such as *.csv",
            )
        return f"{name.rstrip('/')}/", choose_files(name, _walk(path, ""))
    if not has_wildcards(name):
        return None
    folder, pattern = split_pattern(name)
    root = project.resolve(folder or ".")
    try:
        found = [path.relative_to(root).as_posix() for path in root.glob(pattern) if path.is_file()]
    except ValueError as error:
        raise DataError(
            f"{name}: is no pattern ({error})", hint="write ** alone between slashes"
        ) from error
    return folder or "./", choose_matches(name, found)


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    """The names of the files in a folder, and below it as far as it matters.

    :param prefix: what stands in front of the names.
    """
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in found:
        if entry.is_file():
            yield prefix + entry.name
    if not prefix and any(entry.is_file() and name_format(Path(entry.name)) for entry in found):
        return  # the folder's tables are the dataset, whatever lies below it
    if prefix.count("/") < LISTED_LEVELS - 1:
        for entry in found:
            if entry.is_dir():
                yield from _walk(folder / entry.name, f"{prefix}{entry.name}/")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _is_text(name: str) -> bool:
    endings = [ending.lower() for ending in PurePosixPath(name).suffixes]
    while endings and endings[-1] in COMPRESSED_ENDINGS:
        endings.pop()
    return endings[-1:] == [".txt"]
