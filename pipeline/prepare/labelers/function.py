"""Labels by a Python function of the user's own, from the text itself."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.config import FunctionLabel
from pipeline.config_errors import suggest
from pipeline.console import count, show_progress
from pipeline.corpus.cells import Table
from pipeline.errors import DataError, SettingsError
from pipeline.files import hash_file
from pipeline.prepare.labelers.base import LabelingContext, Labels, shorten
from pipeline.prepare.labelers.column import label_by_values
from pipeline.prepare.labelers.distinct import (
    DistinctTexts,
    RowValues,
    TextValues,
    split_batches,
)

_BATCH_TEXTS = 1024  # in one call of the function
_SHOWN_FRAMES = 3  # of a traceback in a message
_SHOWN_CHARACTERS = 300  # of what an exception says
# Modules of a project's folder that are never set aside: this package, and what was started.
_KEPT_MODULES = {"pipeline", "__main__"}
# What a function may raise that is the user's mistake, as a module that was made to be run does.
_RAISED = (Exception, SystemExit)


class FunctionLabeler:
    """What a function of the user's own says of each text.

    :param task: the task that the labels are for.
    :param settings: the function, and how its answers are to be read.
    :param context: the project, in whose folder the function's module may be.
    """

    def __init__(self, task: str, settings: FunctionLabel, context: LabelingContext) -> None:
        self._key = f"prepare.labels.{task}.function"
        self._settings = settings
        self._root = context.project.root

    def label(self, frame: Table, texts: Sequence[str], assets: Mapping[str, Path]) -> Labels:
        """Label every row; the identity of the labels has the hash of the function's source.

        See ``Labeler.label``.
        """
        distinct = DistinctTexts(texts)
        with import_from(self._root):
            function, module = self._find_function()
            values = self._label_texts(function, distinct)
            sources = _hash_sources(self._root, module, function)
        del distinct  # whose keys take more than the labels
        source = f"function {self._settings.function}"
        made = label_by_values(self._settings, values, source)
        unusable = {row: what for row, what in made.unusable.items() if texts[row]}
        return replace(made, unusable=unusable, sources=sources)

    def _find_function(self) -> tuple[Callable[[list[str]], Any], ModuleType]:
        """Import the function, and the module that the setting names.

        :raises SettingsError: if either is not there, or the module cannot be imported.
        """
        module_name, _, name = self._settings.function.partition(":")
        try:
            module = importlib.import_module(module_name)
        except _RAISED as error:
            raise self._describe_import_error(module_name, error) from error
        function = getattr(module, name, None)
        if not callable(function):
            what = "is no function" if hasattr(module, name) else "is not there"
            own = self._root / f"{module_name.replace('.', '/')}.py"
            found = Path(getattr(module, "__file__", None) or module_name)
            hides = f"; it hides {own}" if own.is_file() and own != found else ""
            names = [key for key, value in vars(module).items() if inspect.isfunction(value)]
            raise SettingsError(
                f"{self._key}: {name} {what} in {found}{hides}"
                + suggest(name, names, or_list=False),
                hint="rename your file" if hides else "correct the setting, or the file",
            )
        return function, module

    def _describe_import_error(self, module_name: str, error: BaseException) -> SettingsError:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            own = [path.stem for path in self._root.glob("*.py")]
            return SettingsError(
                f"{self._key}: there is no module {missing!r}, neither in {self._root} nor among "
                f"those that are installed{suggest(missing, own, or_list=False)}",
                hint=f"write {missing.replace('.', '/')}.py there, or correct the setting",
            )
        return SettingsError(
            f"{self._key}: {module_name} cannot be imported: {_describe_error(error, self._root)}",
            hint="correct the file",
        )

    def _label_texts(self, function: Callable[[list[str]], Any], texts: DistinctTexts) -> RowValues:
        """What the function returns for the text of each row; ``None`` where the text is empty.

        :param texts: the distinct texts.
        :raises DataError: if the function raises an exception or returns no label for each text.
        """
        are_filled = texts.find_filled()
        wanted, numbers = texts.choose(are_filled), iter(np.flatnonzero(are_filled).tolist())
        values = TextValues(keeps_numbers=self._settings.kind == "number")
        of_text = np.zeros(len(texts), np.int32)
        with show_progress(self._settings.function, len(wanted), "texts") as advance:
            for batch in split_batches(wanted, _BATCH_TEXTS):
                these = list(itertools.islice(numbers, len(batch)))
                answer, error = _try_function(function, batch)
                if error is not None:
                    rows = dict(zip(batch, texts.find_rows(these), strict=True))
                    raise self._describe_call_error(function, batch, rows, error) from error
                for number, value in zip(these, self._read_answer(answer, len(batch)), strict=True):
                    of_text[number] = values.number(value, number)
                advance(len(batch))
        return values.spread(of_text, texts.numbers)

    def _describe_call_error(
        self,
        function: Callable[[list[str]], Any],
        batch: list[str],
        first_rows: Mapping[str, int],
        error: BaseException,
    ) -> DataError:
        """The error that names the first row for which the function raises an exception."""
        texts, error = _narrow_down(function, batch, error)
        text = texts[0]
        where = f"row {first_rows[text]} (the first is 0), {shorten(repr(text))}"
        if len(texts) > 1:
            where = f"{count(len(texts), 'text')} together, the first in {where}"
        return DataError(
            f"{self._key}: {self._settings.function} failed for {where}: "
            f"{_describe_error(error, self._root)}",
            hint="correct the function; it may return None for a text without a label",
        )

    def _read_answer(self, answer: Any, expected: int) -> list[Any]:
        """The values of a batch, as a column would hold them.

        :raises DataError: if the answer is not a list of as many labels.
        """
        if not isinstance(answer, list):
            raise DataError(
                f"{self._key}: {self._settings.function} returned a {type(answer).__name__} "
                f"for a list of {count(expected, 'text')}",
                hint="let it return a list with a label for each text",
            )
        if len(answer) != expected:
            raise DataError(
                f"{self._key}: {self._settings.function} returned {count(len(answer), 'label')} "
                f"for {count(expected, 'text')}",
                hint="let it return a label for each text, None if one is missing",
            )
        return [_convert_value(value) for value in answer]


def _try_function(
    function: Callable[[list[str]], Any], texts: list[str]
) -> tuple[Any, BaseException | None]:
    """What a function returns for texts, as a list if it can be one, or what it raises."""
    try:
        answer = function(list(texts))
        if hasattr(answer, "tolist"):  # of NumPy, pandas, torch
            answer = answer.tolist()
        elif hasattr(answer, "__iter__") and not isinstance(answer, str | bytes | dict | set):
            answer = list(answer)
    except _RAISED as error:
        return None, error
    return answer, None


def _narrow_down(
    function: Callable[[list[str]], Any], texts: list[str], error: BaseException
) -> tuple[list[str], BaseException]:
    """The fewest of some texts for which a function fails as well, by halves.

    :returns: one text, or several that fail only together, and what the function raises.
    """
    while len(texts) > 1:
        middle = len(texts) // 2
        for half in (texts[:middle], texts[middle:]):
            _, found = _try_function(function, half)
            if found is not None:
                texts, error = half, found
                break
        else:
            break
    return texts, error


def _convert_value(value: Any) -> Any:
    """A label as a column would hold it: numbers of NumPy as Python's, sets of tags as lists."""
    import pandas as pd

    if isinstance(value, np.generic):
        return value.item()
    if value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, list | tuple):
        return [_convert_value(item) for item in value]
    return value


def _describe_error(error: BaseException, root: Path) -> str:
    """What an exception says, and the last lines of the user's code that led to it.

    :param root: the project's folder, to which paths are relative.
    """
    said = " ".join(str(error).split())[:_SHOWN_CHARACTERS]
    lines = [f"{type(error).__name__}: {said}" if said else type(error).__name__]
    ours = {__file__, importlib.__file__}
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in ours and not frame.filename.startswith("<frozen importlib")
    ]
    shown = frames[-_SHOWN_FRAMES:]
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(root)]
    if own and own[-1] not in shown:  # what a library raised, far below the user's line
        shown = [own[-1], *shown[1:]]
    for frame in shown:
        place = f"{_shorten_path(frame.filename, root)}, line {frame.lineno}, in {frame.name}"
        lines.append(f"{place}: {frame.line}" if frame.line else place)
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{_shorten_path(error.filename, root)}, line {error.lineno}"
        lines.append(f"{place}: {error.text.strip()}" if error.text else place)
    return "\n  ".join(lines)


def _shorten_path(file: str, root: Path) -> str:
    path = Path(file)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else file


@contextlib.contextmanager
def import_from(root: Path) -> Iterator[None]:
    """Let Python find modules in a folder, after all others, and forget them in the end.

    A folder is last on the path, so that none of its files takes the place of a module that this
    package or its libraries import. Modules of the folder that were imported before are set aside
    meanwhile, so that what is imported is what its file says now.

    :param root: the folder, absolute.
    """
    before = {name: sys.modules.pop(name) for name in _list_own_modules(root)}
    writes_bytecode = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # which is told from its source by the second and the size alone
    sys.path.append(str(root))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.reverse()
        sys.path.remove(str(root))
        sys.path.reverse()
        sys.dont_write_bytecode = writes_bytecode
        for name in _list_own_modules(root):
            del sys.modules[name]
        sys.modules.update(before)


def _list_own_modules(root: Path) -> list[str]:
    """The names of the imported modules and packages that stand directly in a folder."""
    own = set()
    for name, module in list(sys.modules.items()):
        if "." in name or name in _KEPT_MODULES:
            continue
        about = vars(module) if isinstance(module, ModuleType) else {}
        file = about.get("__file__")
        folders = [Path(file).parent] if file else []
        # A package stands in a folder of its own.
        folders += [Path(path).parent for path in about.get("__path__") or ()]
        if root in folders:
            own.add(name)
    return [name for name in sys.modules if name.partition(".")[0] in own]


def _hash_sources(root: Path, module: ModuleType, function: Any) -> dict[str, str]:
    """The hashes of the files that a function comes from.

    :param root: the project's folder.
    :param module: the module that the setting names.
    :param function: the function, which may be another module's.
    :returns: of modules in the project's folder, the path there of each that was imported, and of
        the others that the function comes from, the name → SHA-256.
    """
    wanted = {name: sys.modules[name] for name in _list_own_modules(root)}
    wanted[module.__name__] = module
    defining = sys.modules.get(getattr(inspect.unwrap(function), "__module__", None) or "")
    if defining is not None:
        wanted[defining.__name__] = defining
    sources = {}
    for name, found in wanted.items():
        file = getattr(found, "__file__", None)
        if file and Path(file).is_file():
            path = Path(file)
            is_own = path.is_relative_to(root) and name.partition(".")[0] not in _KEPT_MODULES
            sources[path.relative_to(root).as_posix() if is_own else name] = hash_file(path)
    return sources
