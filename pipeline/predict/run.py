"""Label what a person gives, a part at a time, and write the rows with their answers."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from pipeline.bundle import load
from pipeline.config import Settings
from pipeline.console import Advance, allows_escapes, count, say, show_progress, warn
from pipeline.corpus.reading import Block
from pipeline.corpus.texts import find_fault
from pipeline.errors import DataError, SettingsError, WriteError
from pipeline.files import write_aside
from pipeline.predict.answers import list_columns, make_answers, name_explanation
from pipeline.predict.explanations import MOST_SPANS, find_words
from pipeline.predict.inputs import STANDARD_INPUT, InputFormat, Inputs, list_files, open_inputs
from pipeline.predict.model import Model
from pipeline.predict.outputs import (
    COMPRESSORS,
    OUTPUT_ENDINGS,
    WRITERS,
    OutputFormat,
    TerminalWriter,
    Writer,
    iterate_names,
)
from pipeline.project import Project
from pipeline.store.slices import Slice

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.model.decision import Logits

BAD_ROWS_STATUS = 3  # the exit status of a run that kept rows without answers
_NAMED_ROWS = 5  # that a message names, of those that cannot be used
_SHORT_HASH = 12
_ERROR, _MODEL = "error", "model"


@dataclass(frozen=True)
class PredictOptions:
    """What the command line gives.

    :param inputs: names of files and folders; ``-`` is standard input.
    :param texts: texts that are given as they are.
    :param out: the file to write; ``None`` for standard output.
    :param format: the format of the output, and of standard input.
    :param input_format: the format of the inputs, instead of what their names or ``format`` tell.
    :param text_column: the column of the texts; ``None`` for that of the settings.
    :param tasks: the tasks to answer; ``None`` for all.
    :param thresholds: task → probability above which class 1, or a tag, is answered.
    :param on_bad_rows: what happens with rows that have no usable text.
    :param probabilities: whether there is a column for each class or tag.
    :param explain: whether there is a column for the words that moved the answer.
    :param model_column: whether a column tells by which model a row was answered.
    :param remember: whether new vectors are kept for the next time.
    :param force: whether an output that exists is replaced.
    :param part: the share of the files to label; ``None`` for all.
    """

    inputs: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    out: Path | None = None
    format: OutputFormat | None = None
    input_format: InputFormat | None = None
    text_column: str | None = None
    tasks: tuple[str, ...] | None = None
    thresholds: Mapping[str, float] | None = None
    on_bad_rows: Literal["keep", "stop", "drop"] = "keep"
    probabilities: bool = False
    explain: bool = False
    model_column: bool = False
    remember: bool = False
    force: bool = False
    part: Slice | None = None


def run_predict(project: Project, settings: Settings, options: PredictOptions) -> int:
    """Label all inputs.

    :param project: the project whose heads answer, or an exported folder.
    :param settings: all settings.
    :param options: what to label, and how to write it.
    :returns: the exit status: 3 if rows were kept that could not be labelled, else 0.
    :raises DataError: if an input cannot be read.
    :raises StageError: if heads or backbone are missing, or do not belong together.
    """
    if options.part is not None:
        options = _choose_slice(options, options.part)
        if not options.inputs:
            say(f"predict: slice {options.part} has no file")
            return 0
    out_format = _choose_format(options)
    standard_output = sys.stdout
    # Where rows go to standard output, messages may not stand between them.
    says_aside = contextlib.redirect_stdout(sys.stderr) if options.out is None else None
    with says_aside or contextlib.nullcontext():
        runtime = settings.runtime
        model = load(
            project,
            devices=runtime.devices,
            threads=runtime.threads,
            token_budget=runtime.token_budget,
            tasks=options.tasks,
            thresholds=options.thresholds,
            remember=options.remember,
        )
        standard_format = options.input_format or options.format or "lines"
        with (
            open_inputs(
                options.inputs,
                options.texts,
                settings.prepare,
                options.text_column,
                options.input_format,
                standard_format,
            ) as inputs,
            model,
        ):
            table = _Table(inputs, model, options)
            with _open_writer(table, options, out_format, standard_output) as writer:
                table.label(writer)
        return table.finish(options)


def _choose_slice(options: PredictOptions, part: Slice) -> PredictOptions:
    """The same options for every N-th file, and for an output that is named after the slice.

    :raises SettingsError: if what is given is no file, or there is no output to name.
    """
    if options.out is None or options.texts or STANDARD_INPUT in options.inputs:
        raise SettingsError(
            f"--slice {part}: labels files, and needs -o OUT",
            hint="give files or folders, and the file to write",
            source="command line",
        )
    listed = [list_files(Path(name), options.input_format) for name in options.inputs]
    files = [str(path) for paths in listed for path in paths]
    name, dot, endings = options.out.name.partition(".")
    mine = part.name.removeprefix("slice-")
    return replace(
        options,
        inputs=tuple(files[part.number - 1 :: part.of]),
        out=options.out.with_name(f"{name}-{mine}{dot}{endings}"),
    )


class _Table:
    """The rows of all inputs, which become rows of the output.

    :param inputs: the inputs.
    :param model: what answers.
    :param options: what the command line gives.
    :ivar text_column: the name in the output of the column with the texts.
    :ivar answers: the columns of the answers, without their explanations.
    :ivar explanations: column of an explanation → its task.
    :ivar types: the columns of the output and their Arrow types.
    :ivar model: what answers.
    """

    def __init__(self, inputs: Inputs, model: Model, options: PredictOptions) -> None:
        import pyarrow as pa

        self.model = model
        self._inputs = inputs
        self._options = options
        self._bad: list[str] = []
        self._rows = self._bad_rows = self._grouped = 0
        answers: dict[str, pa.DataType] = list_columns(
            model.heads, probabilities=options.probabilities, explanations=options.explain
        )
        tasks = [head.name for head in model.heads.heads if options.explain]
        self.explanations = {name_explanation(task): task for task in tasks}
        self.answers = tuple(name for name in answers if name not in self.explanations)
        if options.on_bad_rows == "keep":
            answers[_ERROR] = pa.string()
        if options.model_column:
            answers[_MODEL] = pa.string()
        self._renamed = dict(iterate_names(list(answers), list(inputs.types)))
        for old, new in self._renamed.items():
            if old != new:
                say(f"the column {old!r} of the input is {new!r} in the output")
        self.text_column = self._renamed[inputs.text_column]
        self.types = {self._renamed[name]: kind for name, kind in inputs.types.items()} | answers

    def label(self, writer: Writer) -> None:
        """Read, answer and write all rows, a chunk at a time."""
        waiting: deque[_Rows] = deque()

        explains = self._options.explain
        block_rows = self.model.explained_texts if explains else self.model.chunk_texts

        def take_texts() -> Iterator[Sequence[str]]:
            for name, first, block in self._inputs.iterate_blocks(block_rows):
                rows = self._check(name, first, block)
                waiting.append(rows)
                yield rows.texts

        # A bar would stand between the lines of a table.
        total = None if isinstance(writer, TerminalWriter) else self._inputs.rows
        with self._show_progress(total) as advance:
            ahead = None if explains else advance  # what is ahead has yet to be explained
            for logits in self.model.stream_logits(take_texts(), ahead):
                rows = waiting.popleft()
                answered = self._answer(rows, logits)
                if explains:
                    answered = {**answered, **self._explain(rows, logits)}
                    advance(len(rows.errors))
                writer.write(answered)

    def finish(self, options: PredictOptions) -> int:
        """Say what was done, and give the exit status."""
        what = count(self._rows, "row")
        where = f" in {options.out}" if options.out else ""
        say(f"predict: {what}{where}, by {self.describe_model()}")
        if self._grouped:
            say(
                f"{count(self._grouped, 'text')} of more than {MOST_SPANS} words: explained by "
                f"{MOST_SPANS} spans of neighbouring words each"
            )
        if not self._bad_rows:
            return 0
        more = ", …" if self._bad_rows > len(self._bad) else ""
        done = "left out" if options.on_bad_rows == "drop" else "without labels"
        warn(
            f"{count(self._bad_rows, 'row')} {done}, as their texts cannot be used: "
            f"{'; '.join(self._bad)}{more}"
        )
        return BAD_ROWS_STATUS if options.on_bad_rows == "keep" else 0

    def describe_model(self) -> str:
        """By what the answers were made, in one line."""
        facts = self.model.identity
        return (
            f"embedding-pipeline {facts['version']}, heads {facts['heads_sha256'][:_SHORT_HASH]} "
            f"of {facts['trained_on']}, backbone {facts['backbone']} "
            f"{facts['fingerprint'][:_SHORT_HASH]}"
        )

    @contextlib.contextmanager
    def _show_progress(self, rows: int | None) -> Iterator[Advance]:
        """A bar where the number of rows is known and a person would wait for them."""
        if rows is None or rows <= 1:
            yield lambda amount: None
            return
        with show_progress("labelling", rows, "texts") as advance:
            yield advance

    def _check(self, name: str, first: int, block: Block) -> _Rows:
        """The rows of a block, those that have no usable text marked.

        :param name: the input's name.
        :param first: the number of the first row in it, from 0.
        """
        values = block[self._inputs.text_column]
        errors = [find_fault(value) for value in values]
        bad = [number for number, error in enumerate(errors) if error]
        for number in bad[: max(0, _NAMED_ROWS - len(self._bad))]:
            self._bad.append(f"{name} row {first + number:,} ({errors[number]})")
        if bad and self._options.on_bad_rows == "stop":
            raise DataError(
                f"rows whose texts cannot be used, counted from 0: {'; '.join(self._bad)}",
                hint="mend them, or give --on-bad-rows keep or drop",
            )
        self._bad_rows += len(bad)
        texts = [text for text, error in zip(values, errors, strict=True) if error is None]
        if bad and self._options.on_bad_rows == "drop":
            kept = [number for number, error in enumerate(errors) if error is None]
            block = {column: _take(of_rows, kept) for column, of_rows in block.items()}
            errors = [None] * len(kept)
        self._rows += len(errors)
        return _Rows(block, texts, errors)

    def _answer(self, rows: _Rows, logits: Mapping[str, Logits]) -> Block:
        """The rows of the output."""
        made: dict[str, Any] = {new: rows.block[old] for old, new in self._renamed.items()}
        for head in self.model.heads.heads:
            columns = make_answers(
                head, logits[head.name], probabilities=self._options.probabilities
            )
            made |= {name: rows.spread(values) for name, values in columns.items()}
        if _ERROR in self.types and self._options.on_bad_rows == "keep":
            made[_ERROR] = rows.errors
        if self._options.model_column:
            made[_MODEL] = [self.describe_model()] * len(rows.errors)
        return made

    def _explain(self, rows: _Rows, logits: Mapping[str, Logits]) -> Block:
        """The columns that tell which words moved the answers."""
        explained = self.model.explain_answers(rows.texts, logits)
        self._grouped += sum(len(find_words(text)) > MOST_SPANS for text in rows.texts)
        return {name_explanation(task): rows.spread(spans) for task, spans in explained.items()}


@dataclass(frozen=True)
class _Rows:
    """Rows under way.

    :param block: column of the input → B values.
    :param texts: the usable texts, [b].
    :param errors: why a row's text cannot be used, ``None`` if it can: [B].
    """

    block: Block
    texts: Sequence[str]
    errors: Sequence[str | None]

    def spread(self, values: Sequence[Any]) -> list[Any]:
        """Values of the usable texts, [b], as values of all rows: [B]."""
        following = iter(values)
        return [None if error else next(following) for error in self.errors]


def _take(values: Any, rows: Sequence[int]) -> Any:
    """Some values of a column, be it a list or an Arrow array."""
    return [values[row] for row in rows] if isinstance(values, list) else values.take(list(rows))


def _choose_format(options: PredictOptions) -> OutputFormat:
    """The format of the output: by the name of its file, else as the option says, else CSV.

    :raises WriteError: if there is something of the name of the output already.
    :raises SettingsError: if the name and the option contradict each other, or neither tells.
    """
    if options.out is None:
        return options.format or "csv"
    if options.out.is_dir():
        raise WriteError(f"{options.out}: is a folder", hint="give the name of a file")
    if options.out.exists() and not options.force:
        raise WriteError(
            f"{options.out}: exists already", hint="give another name, or --force to replace it"
        )
    name = options.out.name.lower()
    is_compressed = Path(name).suffix in COMPRESSORS
    by_name = OUTPUT_ENDINGS.get(Path(Path(name).stem if is_compressed else name).suffix)
    if by_name == "parquet" and is_compressed:
        raise SettingsError(
            f"--out: {options.out}: Parquet compresses its columns itself",
            hint="let the name end in .parquet",
        )
    if by_name is None and options.format is None:
        raise SettingsError(
            f"--out: {options.out}: cannot tell the format from this name",
            hint=f"let it end in one of {', '.join(OUTPUT_ENDINGS)}, or give --format",
        )
    is_of_input = STANDARD_INPUT in options.inputs
    if by_name and options.format not in (None, by_name) and not is_of_input:
        raise SettingsError(f"--format: is {options.format}, but {options.out} is {by_name}")
    return by_name or options.format or "csv"


@contextlib.contextmanager
def _open_writer(
    table: _Table, options: PredictOptions, out_format: OutputFormat, standard_output: Any
) -> Iterator[Writer]:
    """What writes the rows: a file, which gets its name when it is whole, or standard output."""
    with contextlib.ExitStack() as stack:
        if options.out is not None:
            file: IO[bytes] = stack.enter_context(write_aside(options.out))
            compress = COMPRESSORS.get(options.out.suffix.lower())
            if compress is not None:
                file = stack.enter_context(compress(file))
        elif standard_output.isatty() and options.format is None:
            yield TerminalWriter(
                lambda line: print(line, file=standard_output, flush=True),
                table.text_column,
                table.answers,
                table.explanations,
                {head.name: head.classes for head in table.model.heads.heads},
                shutil.get_terminal_size().columns,
                has_colours=allows_escapes(standard_output),
            )
            return
        else:
            file = standard_output.buffer
        writer = WRITERS[out_format](file, table.types, table.model.identity)
        yield writer
        writer.close()
        file.flush()
