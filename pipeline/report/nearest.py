"""The training text that is nearest to each text of the judged part, by one cached layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.model.decision import Ints
from pipeline.neighbours import Chunks, Nearest, Vectors, find_nearest, fit_cells, normalize
from pipeline.report.inputs import ScoredRows
from pipeline.store import read_ahead

# Reads texts by their codes, ascending, in chunks: codes, [b], and vectors, float32, [b, D].
ReadVectors = Callable[[Ints], Chunks]
# Training texts, drawn at random, that tell how near texts of this corpus are to each other.
SAMPLE_TEXTS = 2000


@dataclass(frozen=True)
class TrainingNeighbours:
    """The nearest training text to each of J distinct texts of the judged part.

    :param codes: the codes of these texts, ascending, int64, [J].
    :param same_rows: the first training row that has the very text, int64, [J]; -1 if none has.
    :param rows: the first training row that has the nearest other text, int64, [J]; -1 if there is
        no other.
    :param cosines: the cosine to that other text, float32, [J].
    :param sample_cosines: the cosine of each of S training texts, drawn at random, to the nearest
        other training text: float32, [S].
    :param training_texts: the number of distinct training texts.
    :param exact: whether every pair of texts was compared.
    """

    codes: Ints
    same_rows: Ints
    rows: Ints
    cosines: Vectors
    sample_cosines: Vectors
    training_texts: int
    exact: bool

    def take(self, codes: Ints) -> tuple[Ints, npt.NDArray[np.float64]]:
        """The nearest training row to some texts, and the cosine to it.

        A training row that has the very text is the nearest one, at a cosine of 1.

        :param codes: codes of texts of the judged part, [b].
        :returns: rows, [b], and cosines, [b]; -1 and NaN where there is no training text.
        """
        at = np.searchsorted(self.codes, codes)
        is_same = self.same_rows[at] >= 0
        rows = np.where(is_same, self.same_rows[at], self.rows[at])
        cosines = np.where(is_same, 1.0, self.cosines[at].astype(np.float64))
        return rows, np.where(rows < 0, np.nan, cosines)


def find_training_neighbours(
    rows: ScoredRows, read: ReadVectors, memory_bytes: float = math.inf
) -> TrainingNeighbours:
    """Look for the nearest training text of each text of the judged part.

    :param rows: the rows of the corpus.
    :param read: a function that reads vectors of one layer.
    :param memory_bytes: the memory that vectors may take. Half of it is for texts of the judged
        part; where they need more, the training texts are read once for each share of them.
    """
    codes = rows.list_texts(rows.judged)
    training = rows.list_texts("train")
    first_rows = rows.find_first_rows("train")
    generator = np.random.default_rng(0)
    sample = np.sort(generator.permutation(training)[:SAMPLE_TEXTS])
    wanted = np.union1d(codes, sample)
    found = _search(read, wanted, training, memory_bytes)

    def locate_rows(found_codes: Ints) -> Ints:
        at = np.minimum(np.searchsorted(training, found_codes), len(training) - 1)
        return np.where(training[at] == found_codes, first_rows[at], -1)

    judged, sampled = np.searchsorted(wanted, codes), np.searchsorted(wanted, sample)
    within = found.cosines[sampled]
    return TrainingNeighbours(
        codes=codes,
        same_rows=locate_rows(codes),
        rows=locate_rows(found.numbers[judged]),
        cosines=found.cosines[judged],
        sample_cosines=within[np.isfinite(within)],
        training_texts=len(training),
        exact=found.exact,
    )


def _search(read: ReadVectors, wanted: Ints, training: Ints, memory_bytes: float) -> Nearest:
    """Find the nearest training text to each of some texts, other than itself.

    :param wanted: codes of texts, ascending, [B].
    :param training: codes of the training texts, ascending.
    """
    ((_, first),) = read(wanted[:1])
    D = first.shape[1]
    at_once = len(wanted)
    if 4 * D * len(wanted) > memory_bytes / 2:
        at_once = max(1, int(memory_bytes / 2) // (4 * D))

    def take(codes: Ints) -> Vectors:
        vectors, start = np.empty((len(codes), D), np.float32), 0
        for _, chunk in read(codes):
            vectors[start : start + len(chunk)] = chunk
            start += len(chunk)
        return vectors

    def take_scaled(at: Ints) -> Vectors:
        order = np.argsort(at)
        vectors = np.empty((len(at), D), np.float32)
        vectors[order] = normalize(take(wanted[at[order]]))
        return vectors

    several = at_once < len(wanted)  # else the cells are found from vectors that are at hand
    cells = fit_cells(len(wanted), len(training), take_scaled) if several else None
    shares = [
        find_nearest(
            take(share),
            read_ahead(read(training)),
            own=share,
            others=len(training),
            cells=cells,
            memory_bytes=memory_bytes,
            overwrite=True,
        )
        for share in np.split(wanted, range(at_once, len(wanted), at_once))
    ]
    return Nearest(
        np.concatenate([share.numbers for share in shares]),
        np.concatenate([share.cosines for share in shares]),
        all(share.exact for share in shares),
    )
