"""Which columns of a source are read, and how their names are matched."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import WantedColumn
from pipeline.config_errors import suggest
from pipeline.console import say
from pipeline.corpus.cells import Cells
from pipeline.errors import DataError

_LISTED_NAMES = 20  # of a source's columns, in a message
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060"


def _hold_in_list(kind: str | None) -> list[Any]:
    """What holds the cells of a column in memory, as they are."""
    return []


@dataclass(frozen=True)
class ColumnChoice:
    """The columns that a reader takes from a source.

    :param wanted: columns that must be there.
    :param all_others: whether the other columns are read too.
    :param hold: a function that makes what holds the cells of a column, from what the column is to
        hold, ``None`` if it is not wanted.
    """

    wanted: tuple[WantedColumn, ...] = ()
    all_others: bool = True
    hold: Callable[[str | None], Cells | list[Any]] = _hold_in_list

    def start_column(self, name: str) -> Cells | list[Any]:
        """What is to hold the cells of a column, still empty.

        :param name: its name in the source, which may differ from the one that is wanted.
        """
        alike = _simplify(name)
        return self.hold(next((w.kind for w in self.wanted if _simplify(w.name) == alike), None))

    def may_take(self, name: str) -> bool:
        """Whether a column could be one of those that are read, by its name alone."""
        return self.all_others or _simplify(name) in {_simplify(want.name) for want in self.wanted}

    def get_kind(self, name: str) -> str | None:
        """What a wanted column is to hold; ``None`` for a column that is not wanted."""
        return next((want.kind for want in self.wanted if want.name == name), None)

    def pick(self, path: Path, names: Sequence[str], names_from: str) -> dict[str, int]:
        """The columns to read.

        A wanted name that differs from a column's only by its Unicode form, by blanks around it or
        by invisible characters is that column.

        :param path: the file, for messages.
        :param names: the columns of the source, in order; a column without a name is called by its
            number, from 1.
        :param names_from: what gives the names, for messages.
        :returns: name → position in ``names``; a wanted column has the name that is wanted.
        :raises DataError: if a wanted column is not there, or if a name that is read stands twice.
        """
        names = [name or f"column {number}" for number, name in enumerate(names, start=1)]
        found = {want.name: self._find(path, want, names, names_from) for want in self.wanted}
        if self.all_others:
            taken = set(found.values())
            for position, name in enumerate(names):
                if position not in taken:
                    _refuse_twice(path, name, names, names_from)
                    found[name] = position
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def mention_renamed(self, path: Path, names: Sequence[str]) -> None:
        """Say which wanted columns have other names in the source.

        :param path: the file.
        :param names: the columns of the source.
        """
        for want in dict.fromkeys(self.wanted):
            if want.name in names:
                continue
            name = next(name for name in names if _simplify(name) == _simplify(want.name))
            same_form = unicodedata.normalize("NFC", name) == unicodedata.normalize(
                "NFC", want.name
            )
            what = "its Unicode form" if same_form else "blanks or invisible characters"
            say(f"{path}: the column {name!a} is taken for {want.name!r}: only {what} differs")

    def _find(self, path: Path, want: WantedColumn, names: list[str], names_from: str) -> int:
        """The position of one wanted column."""
        if want.name in names:
            _refuse_twice(path, want.name, names, names_from)
            return names.index(want.name)
        alike = [n for n, name in enumerate(names) if _simplify(name) == _simplify(want.name)]
        if len(alike) != 1:
            raise _describe_missing(path, want, names)
        return alike[0]


def _simplify(name: str) -> str:
    """A name without what a person does not see: Unicode form, blanks around it, marks."""
    return unicodedata.normalize("NFC", name).strip(_INVISIBLE).strip().strip(_INVISIBLE)


def _refuse_twice(path: Path, name: str, names: Sequence[str], names_from: str) -> None:
    times = Counter(names)[name]
    if times > 1:
        raise DataError(
            f"{path}: {names_from} names {times} columns {name!r}",
            hint="give each column a name of its own",
        )


def _describe_missing(path: Path, want: WantedColumn, names: Sequence[str]) -> DataError:
    listed = ", ".join(map(repr, names[:_LISTED_NAMES]))
    more = f" and {len(names) - _LISTED_NAMES:,} more" if names[_LISTED_NAMES:] else ""
    near = suggest(want.name, names, or_list=False)
    by_case = [name for name in names if name.casefold() == want.name.casefold()]
    if by_case:
        near = f"; did you mean `{by_case[0]}`?"
    hint = f"set {want.key} to the one that holds the texts"
    return DataError(
        f"{path}: no column {want.name!r}; the source has {listed}{more}{near}",
        hint=hint if want.kind == "text" else f"correct {want.key}",
    )
