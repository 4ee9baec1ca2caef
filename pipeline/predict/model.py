"""A model for use: a frozen backbone, the vectors known already, and the saved heads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from pipeline.predict.answers import (
    choose_heads,
    list_columns,
    make_answers,
    name_explanation,
)
from pipeline.predict.explanations import MOST_SPANS, occlude, score_answer
from pipeline.predict.known import KnownVectors
from pipeline.predict.remembered import RememberedVectors
from pipeline.project import Project
from pipeline.store import Recipe, Rows
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
    :param remember: whether new vectors are kept in ``cache/predictions`` for the next time; those
        that are there are used in any case.
    :ivar heads: the heads of these tasks.
    :ivar identity: the facts that tell by what the answers were made: ``version`` of this package,
        ``heads_sha256`` of ``heads.json``, the parts of the corpus that they were ``trained_on``,
        ``backbone`` and ``fingerprint`` of its vectors.
    :ivar chunk_texts: the number of texts that are computed together.
    :ivar explained_texts: the number of texts whose answers are explained together.
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
        remember: bool = False,
    ) -> None:
        saved = load_outgoing(project.heads) if refit else Heads.load(project.heads)
        self.heads = choose_heads(saved, tasks, thresholds or {})
        self._recipe = _read_recipe(self.heads)
        # Both take the system or NumPy some time, in which Python goes on.
        threading.Thread(target=self.heads.prepare, name="prepare").start()
        with ThreadPoolExecutor(1, "check") as pool:
            checking = pool.submit(check_backbone, project, saved, find_backbone)
            self._known = KnownVectors(
                project.store, saved.fingerprint, self.heads.layers, saved.width
            )
            self._remembered = None
            if remember or project.predictions.is_dir():
                self._remembered = RememberedVectors(project.predictions, self._recipe)
            self._folder = checking.result()
        self._remembers = remember
        self._devices = devices
        self._threads = threads
        self._token_budget = token_budget
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
        self.explained_texts = max(1, self.chunk_texts // MOST_SPANS)

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
        """Give back the backbone's weights and end its threads; later texts load it again.

        What is to be remembered is written.
        """
        if self._remembered is not None:
            self._remembered.flush()
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

    def explain(self, texts: Sequence[str]) -> pd.DataFrame:
        """The answers of ``predict``, and which words moved them.

        Each word is left out in turn. Its weight is what the answer's score loses by that: the
        probability of the label that is answered, the sum of those of the tags, or the number. A
        text of more than 100 words is divided into 100 spans of neighbouring words.

        :param texts: [B].
        :returns: the columns of ``predict`` and, for each task, ``TASK_explanation``: a list of
            ``start`` and ``end``, characters of the text from 0, and ``weight``, a word each.
        :raises DataError: if a text is not a string, blank or not valid Unicode.
        """
        import pandas as pd

        columns = list_columns(self.heads, probabilities=False, explanations=True)
        made: dict[str, list[Any]] = {name: [] for name in columns}
        for chunk in self._cut(texts):
            for few in divide(chunk, self.explained_texts):
                (logits,) = self.stream_logits([few])
                explained = self.explain_answers(few, logits)
                for head in self.heads.heads:
                    answers = make_answers(head, logits[head.name], probabilities=False)
                    answers[name_explanation(head.name)] = explained[head.name]
                    for name, values in answers.items():
                        made[name] += values
        return pd.DataFrame(made)

    def explain_answers(
        self, texts: Sequence[str], logits: Mapping[str, Logits]
    ) -> dict[str, list[list[dict[str, float]]]]:
        """Which words moved answers, all variants of the texts computed together.

        :param texts: usable texts, ``explained_texts`` at most.
        :param logits: task → the outputs for them, [B, O].
        :returns: task → for each text its spans with their weights, as ``Occlusion.weigh`` gives
            them.
        """
        occlusions = [occlude(text) for text in texts]
        variants = [variant for occlusion in occlusions for variant in occlusion.variants]
        pieces = list(self.stream_logits(divide(variants, self.chunk_texts)))
        ends = np.cumsum([len(occlusion.spans) for occlusion in occlusions])
        explained: dict[str, list[list[dict[str, float]]]] = {}
        for head in self.heads.heads:
            whole = logits[head.name]
            of_variants = np.concatenate([whole[:0], *(piece[head.name] for piece in pieces)])
            parts = np.split(of_variants, ends[:-1]) if texts else []
            explained[head.name] = [
                occlusion.weigh(
                    score_answer(head, answered, answered)[0], score_answer(head, answered, part)
                )
                for occlusion, answered, part in zip(occlusions, whole[:, None], parts, strict=True)
            ]
        return explained

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
        return np.concatenate([empty, *self.stream_vectors(self._cut(texts), _ignore)])

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
        for vectors in self.stream_vectors(chunks, advance or _ignore):
            logits = self.heads.compute_logits(vectors)
            yield {name: of_seeds[0] for name, of_seeds in logits.items()}

    def stream_vectors(self, chunks: Iterable[Sequence[str]], advance: Advance) -> Iterator[Floats]:
        """The vectors that the heads see of chunks of texts, as ``stream_logits`` takes them.

        :param chunks: usable texts, ``chunk_texts`` at most in each.
        :param advance: a function to call with the number of texts just finished.
        :yields: float32, [B, L, D], for each chunk.
        """
        under_way: deque[_Chunk] = deque()
        for texts in chunks:
            under_way.append(self._start(texts, advance))
            if len(under_way) > 1:
                yield under_way.popleft().finish()
        while under_way:
            yield under_way.popleft().finish()

    def _start(self, texts: Sequence[str], advance: Advance) -> _Chunk:
        """Take known vectors from the store, and let the backbone compute the others."""
        keys = hash_texts(texts)
        is_known, kept = self._known.take(keys)
        if self._remembered is not None and not is_known.all():
            is_known, kept = _join_known(keys, is_known, kept, self._remembered)
        chunk = _Chunk(is_known, kept, advance)
        if not is_known.all():
            new = [text for text, known in zip(texts, is_known.tolist(), strict=True) if not known]
            embedder = self._embedder or self._open_embedder(new)
            chunk.tokens = embedder.tokenize(new)
            chunk.job = embedder.start(chunk.tokens, chunk.count)
            if self._remembers and self._remembered is not None:
                chunk.new_keys = [
                    k for k, known in zip(keys, is_known.tolist(), strict=True) if not known
                ]
                chunk.remember = self._remembered.add
        return chunk

    def _open_embedder(self, texts: Sequence[str]) -> Embedder:
        """The embedder, its vectors gauged if they have not been on this machine.

        :param texts: the first texts to embed.
        """
        from pipeline.device import choose_devices
        from pipeline.embed.embedder import Embedder  # which imports torch
        from pipeline.embed.gauge import gauge_texts

        self._embedder = embedder = Embedder.from_recipe(
            self._recipe,
            self._folder,
            devices=[choose_devices(self._devices)[0]],
            threads=self._threads,
            token_budget=self._token_budget,
        )
        try:
            gauge_texts(embedder, self._recipe, texts)
        except BaseException:
            self.close()
            raise
        return embedder

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
        yield from divide(listed, self.chunk_texts)


def divide(texts: list[str], most: int) -> Iterator[list[str]]:
    """Texts in chunks.

    :param texts: [B].
    :param most: the most texts of a chunk.
    """
    for start in range(0, len(texts), most):
        yield texts[start : start + most]


@dataclass
class _Chunk:
    """Texts under way.

    :param is_known: which of the B texts have a stored vector, [B].
    :param kept: the stored vectors: float32, [b, L, D].
    :param advance: a function to call with the number of texts just finished.
    :param tokens: the token ids of the other texts.
    :param job: what computes their vectors.
    :param new_keys: the keys of the other texts, if they are to be remembered.
    :param remember: a function to call with these and the rows of the other texts.
    """

    is_known: npt.NDArray[np.bool_]
    kept: Floats
    advance: Advance
    tokens: DistinctTokens | None = None
    job: Job | None = None
    new_keys: Sequence[bytes] = ()
    remember: Callable[[Sequence[bytes], Rows], None] | None = None
    counted: float = 0.0

    def count(self, texts: float) -> None:
        """Note that some texts are finished."""
        self.counted += texts
        self.advance(texts)

    def finish(self) -> Floats:
        """Wait for the vectors of all texts: float32, [B, L, D]."""
        vectors = self.kept
        if self.job is not None and self.tokens is not None:
            rows = self.tokens.expand(self.job.finish())
            if self.remember is not None:
                self.remember(self.new_keys, rows)
            fresh = rows.vectors
            vectors = np.empty((len(self.is_known), *fresh.shape[1:]), np.float32)
            vectors[self.is_known] = self.kept
            vectors[~self.is_known] = fresh
        self.advance(len(self.is_known) - self.counted)
        return vectors


def _join_known(
    keys: Sequence[bytes],
    is_known: npt.NDArray[np.bool_],
    kept: Floats,
    remembered: RememberedVectors,
) -> tuple[npt.NDArray[np.bool_], Floats]:
    """The vectors of a store and, of texts that it does not know, those that are remembered.

    :param keys: the keys of texts, [B].
    :param is_known: which of them the store knows, [B].
    :param kept: their vectors: float32, [b, L, D].
    """
    others = np.flatnonzero(~is_known)
    found, vectors = remembered.take([keys[position] for position in others.tolist()])
    joined = is_known.copy()
    joined[others[found]] = True
    all_kept = np.empty((int(joined.sum()), *kept.shape[1:]), np.float32)
    from_store = is_known[joined]
    all_kept[from_store], all_kept[~from_store] = kept, vectors
    return joined, all_kept


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
