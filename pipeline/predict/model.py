"""A model for use: a frozen backbone, the vectors known already, and the saved heads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.assets import Asset, check_files
from pipeline.console import Advance
from pipeline.corpus.keys import hash_texts
from pipeline.corpus.texts import find_fault
from pipeline.errors import DataError
from pipeline.files import hash_file, reading
from pipeline.model.decision import Logits
from pipeline.model.outgoing import load_outgoing
from pipeline.model.saved import DESCRIPTION, Heads
from pipeline.model.weights import Floats
from pipeline.predict.answers import choose_heads, list_columns, make_answers
from pipeline.predict.known import KnownVectors
from pipeline.project import Project
from pipeline.store import Recipe
from pipeline.version import __version__

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.embed.embedder import Embedder
    from pipeline.embed.engine import Job
    from pipeline.embed.tokens import DistinctTokens

# Vectors of the texts that are computed together take at most so many bytes, which bounds memory.
_CHUNK_BYTES = 64_000_000
_MOST_CHUNK_TEXTS = 4096
_FEWEST_CHUNK_TEXTS = 256


class Model:
    """Texts to labels: the backbone makes vectors, heads answer to them.

    Vectors that the project's store holds are taken from there; the backbone's weights are read
    when the first text comes that has none. A new vector is computed in the precision of the stored
    ones and rounded as they are.

    The last digits of a score depend on how many texts are computed together, as the sums of a
    matrix product do.

    :param project: the project whose heads, backbone and store are used.
    :param find_backbone: a function that gives the folder of the backbone for its record; ``None``
        for where the project has it.
    :param devices: where to compute: ``auto`` is the first GPU, else the CPU.
    :param threads: threads of the CPU; ``None`` for all cores.
    :param token_budget: tokens in one batch; ``None`` for what suits the device.
    :param tasks: tasks to answer; ``None`` for all.
    :param thresholds: task → probability above which class 1, or a tag, is answered, instead of
        that of the saved head.
    :param refit: whether the heads that ``heads.refit`` had trained again on more rows answer,
        where there are any, rather than those that ``report`` scores.
    :ivar heads: the heads of these tasks.
    :ivar identity: the facts that tell by what the answers were made: ``version`` of this package,
        ``heads_sha256`` of ``heads.json``, the parts of the corpus that they were ``trained_on``,
        ``backbone`` and ``fingerprint`` of its vectors.
    :ivar chunk_texts: the number of texts that are computed together.
    :raises StageError: if no heads were trained, a file is damaged, or the backbone's files are not
        those that the heads were trained on.
    :raises SettingsError: if a task or a threshold cannot be.
    """

    def __init__(
        self,
        project: Project,
        *,
        find_backbone: Callable[[Asset], Path] | None = None,
        devices: str | Sequence[str] = "auto",
        threads: int | None = None,
        token_budget: int | None = None,
        tasks: Sequence[str] | None = None,
        thresholds: Mapping[str, float] | None = None,
        refit: bool = True,
    ) -> None:
        saved = load_outgoing(project.heads) if refit else Heads.load(project.heads)
        self.heads = choose_heads(saved, tasks, thresholds or {})
        self._recipe = _read_recipe(self.heads)
        self._folder = check_backbone(project, saved, find_backbone)
        self._devices = devices
        self._threads = threads
        self._token_budget = token_budget
        self._known = KnownVectors(project.store, saved.fingerprint, self.heads.layers, saved.width)
        self._embedder: Embedder | None = None
        self.identity: Mapping[str, str] = {
            "version": __version__,
            "heads_sha256": hash_file(saved.folder / DESCRIPTION),
            "trained_on": "+".join(saved.trained_parts),
            "backbone": self._recipe.backbone,
            "fingerprint": saved.fingerprint,
        }
        text_bytes = 4 * len(self.heads.layers) * self.heads.width
        most = max(_FEWEST_CHUNK_TEXTS, _CHUNK_BYTES // text_bytes)
        self.chunk_texts = min(_MOST_CHUNK_TEXTS, most)

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the backbone's weights and end its threads; later texts load it again."""
        if self._embedder is not None:
            self._embedder.close()
            self._embedder = None

    def predict(self, texts: Sequence[str]) -> pd.DataFrame:
        """The answers of all heads: a row for each text, in their order.

        :param texts: [B].
        :returns: the columns ``TASK``, the label, the list of tags or the number, and, but of a
            number, ``TASK_score``: the calibrated probability of the label, or of each tag.
        :raises DataError: if a text is not a string, blank or not valid Unicode.
        """
        import pandas as pd

        made: dict[str, list[Any]] = {
            name: [] for name in list_columns(self.heads, probabilities=False)
        }
        for logits in self.stream_logits(self._cut(texts)):
            for head in self.heads.heads:
                answers = make_answers(head, logits[head.name], probabilities=False)
                for name, values in answers.items():
                    made[name] += values
        return pd.DataFrame(made)

    def predict_proba(self, texts: Sequence[str]) -> dict[str, pd.DataFrame]:
        """The calibrated probability of each class or tag.

        :param texts: [B].
        :returns: task → a table [B, C] whose columns are the classes in the order of their index.
            A regression has none.
        :raises DataError: if a text is not a string, blank or not valid Unicode.
        """
        import pandas as pd

        heads = [head for head in self.heads.heads if head.classes]
        pieces: dict[str, list[Any]] = {
            head.name: [np.empty((0, len(head.classes)))] for head in heads
        }
        for logits in self.stream_logits(self._cut(texts)):
            for head in heads:
                of_chunk = head.type.compute_probabilities(logits[head.name], head.decision)
                pieces[head.name].append(of_chunk)
        return {
            head.name: pd.DataFrame(np.concatenate(pieces[head.name]), columns=list(head.classes))
            for head in heads
        }

    def embed(self, texts: Sequence[str]) -> Floats:
        """The vectors of texts that the heads see.

        :param texts: [B].
        :returns: float32, [B, L, D], of the L layers ``heads.layers``.
        :raises DataError: if a text is not a string, blank or not valid Unicode.
        """
        empty = np.empty((0, len(self.heads.layers), self.heads.width), np.float32)
        return np.concatenate([empty, *self._stream_vectors(self._cut(texts), _ignore)])

    def stream_logits(
        self, chunks: Iterable[Sequence[str]], advance: Advance | None = None
    ) -> Iterator[Mapping[str, Logits]]:
        """Logits of all heads for chunks of texts, of which two at most are in memory.

        The next chunk is read and tokenized while the device computes the one before.

        :param chunks: usable texts, ``chunk_texts`` at most in each.
        :param advance: a function to call with the number of texts just finished.
        :yields: for each chunk: task → logits, [B, O].
        :raises DeviceError: if the device has not the memory for a single text.
        """
        for vectors in self._stream_vectors(chunks, advance or _ignore):
            logits = self.heads.compute_logits(vectors)
            yield {name: of_seeds[0] for name, of_seeds in logits.items()}

    def _stream_vectors(
        self, chunks: Iterable[Sequence[str]], advance: Advance
    ) -> Iterator[Floats]:
        under_way: deque[_Chunk] = deque()
        for texts in chunks:
            under_way.append(self._start(texts, advance))
            if len(under_way) > 1:
                yield under_way.popleft().finish()
        while under_way:
            yield under_way.popleft().finish()

    def _start(self, texts: Sequence[str], advance: Advance) -> _Chunk:
        """Take known vectors from the store, and let the backbone compute the others."""
        is_known, kept = self._known.take(hash_texts(texts))
        chunk = _Chunk(is_known, kept, advance)
        if not is_known.all():
            embedder = self._open_embedder()
            new = [text for text, known in zip(texts, is_known.tolist(), strict=True) if not known]
            chunk.tokens = embedder.tokenize(new)
            chunk.job = embedder.start(chunk.tokens, chunk.count)
        return chunk

    def _open_embedder(self) -> Embedder:
        if self._embedder is None:
            from pipeline.device import choose_devices
            from pipeline.embed.embedder import Embedder  # which imports torch

            device = choose_devices(self._devices)[0]
            self._embedder = Embedder.from_recipe(
                self._recipe,
                self._folder,
                devices=[device],
                threads=self._threads,
                token_budget=self._token_budget,
            )
        return self._embedder

    def _cut(self, texts: Sequence[str]) -> Iterator[list[str]]:
        """Texts in chunks, once all of them are known to be usable.

        :raises DataError: naming the first that is not.
        """
        if isinstance(texts, str):
            raise DataError("texts: a single text instead of a list", hint="put it into a list")
        listed = list(texts)
        for number, text in enumerate(listed):
            fault = find_fault(text)
            if fault:
                raise DataError(
                    f"texts: number {number:,} (counted from 0): {fault}",
                    hint="leave such texts out; `pipeline predict` keeps their rows without labels",
                )
        for start in range(0, len(listed), self.chunk_texts):
            yield listed[start : start + self.chunk_texts]


@dataclass
class _Chunk:
    """Texts under way.

    :param is_known: which of the B texts have a stored vector, [B].
    :param kept: the stored vectors: float32, [b, L, D].
    :param advance: a function to call with the number of texts just finished.
    :param tokens: the token ids of the other texts.
    :param job: what computes their vectors.
    """

    is_known: npt.NDArray[np.bool_]
    kept: Floats
    advance: Advance
    tokens: DistinctTokens | None = None
    job: Job | None = None
    counted: float = 0.0

    def count(self, texts: float) -> None:
        """Note that some texts are finished."""
        self.counted += texts
        self.advance(texts)

    def finish(self) -> Floats:
        """Wait for the vectors of all texts: float32, [B, L, D]."""
        vectors = self.kept
        if self.job is not None and self.tokens is not None:
            fresh = self.tokens.expand(self.job.finish()).vectors
            vectors = np.empty((len(self.is_known), *fresh.shape[1:]), np.float32)
            vectors[self.is_known] = self.kept
            vectors[~self.is_known] = fresh
        self.advance(len(self.is_known) - self.counted)
        return vectors


def _ignore(amount: float) -> None:
    """Take no notice of work that was done."""


def _read_recipe(heads: Heads) -> Recipe:
    """What makes the vectors that heads were trained on, for the layers that the heads want."""
    contents = heads.recipe
    with reading(heads.folder / DESCRIPTION, "train-heads"):
        for key in ("files", "max_tokens", "pooling", "precision", "dtype"):
            contents[key]
        name = str(heads.backbone["id"])
        return Recipe(name, contents, heads.layers, heads.width, str(contents["dtype"]))


def check_backbone(
    project: Project, heads: Heads, find: Callable[[Asset], Path] | None = None
) -> Path:
    """The folder of the backbone, whose files must be those that the heads were trained on.

    :param project: the project that has the heads.
    :param heads: the heads.
    :param find: a function that gives the folder for the backbone's record; ``None`` for where the
        project has it.
    :raises StageError: if a file is missing or another one.
    """
    with reading(heads.folder / DESCRIPTION, "train-heads"):
        asset = Asset.from_record({**heads.backbone, "files": dict(heads.recipe["files"])})
    folder = find(asset) if find else asset.locate(project)
    check_files(asset, "backbone", folder)
    return folder
