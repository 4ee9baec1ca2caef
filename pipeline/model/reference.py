"""What a model knows of the texts that it was trained on, to tell how unlike them others are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import StageError
from pipeline.files import reading
from pipeline.model.weights import Floats
from pipeline.neighbours import normalize

FILE = "reference.safetensors"
_STAGE = "train-heads"
_ABOUT = "reference"  # the key, in the metadata of the file, of all that is no tensor
_BLOCK_ROWS = 4096
FAR_PERCENT = 99.0  # of texts like those of training are nearer than ``Reference.limit``


@dataclass(frozen=True)
class Reference:
    """The training texts of a model in numbers.

    :param layer: the number of the layer that the vectors are of.
    :param vectors: a sample of the vectors of distinct training texts, of length 1: float16,
        [S, D].
    :param limit: the cosine distance to the nearest of them that 99 % of other training texts do
        not exceed.
    :param keys: the first eight bytes of the keys of all distinct training texts, ascending:
        uint64, [N].
    :param counts: task → the number of training rows of each class or tag, [C]; nothing of a
        regression.
    :param labelled: task → the number of training rows that have a label.
    """

    layer: int
    vectors: npt.NDArray[np.float16]
    limit: float
    keys: npt.NDArray[np.uint64]
    counts: Mapping[str, tuple[int, ...]]
    labelled: Mapping[str, int]

    def encode(self) -> bytes:
        """The contents of its file."""
        from safetensors.numpy import save

        about = {
            "layer": self.layer,
            "limit": self.limit,
            "counts": dict(self.counts),
            "labelled": dict(self.labelled),
        }
        tensors: dict[str, npt.NDArray[Any]] = {"vectors": self.vectors, "keys": self.keys}
        return save(tensors, {_ABOUT: json.dumps(about)})

    @classmethod
    def load(cls, path: Path, sha256: str) -> Reference:
        """Read a file that ``encode`` made.

        :param path: the file.
        :param sha256: the hash of its bytes, as ``heads.json`` states it.
        :raises StageError: if it is missing, damaged or another one.
        """
        from safetensors import safe_open

        with reading(path, _STAGE):
            if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
                raise StageError(
                    f"{path} is damaged or not of one run with heads.json",
                    hint=f"run `pipeline {_STAGE}` again",
                )
            with safe_open(path, "numpy") as file:
                about = json.loads(file.metadata()[_ABOUT])
                counts = {name: tuple(held) for name, held in about["counts"].items()}
                return cls(
                    int(about["layer"]),
                    file.get_tensor("vectors"),
                    float(about["limit"]),
                    file.get_tensor("keys"),
                    counts,
                    {name: int(rows) for name, rows in about["labelled"].items()},
                )

    def find_trained(self, keys: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Which texts the model was trained on, by the first eight bytes of their keys.

        :param keys: the keys of texts, [B].
        :returns: [B].
        """
        return np.isin(shorten_keys(keys), self.keys)

    def find_far(self, vectors: Floats) -> npt.NDArray[np.bool_]:
        """Which texts are farther from all training texts than 99 % of those are from each other.

        :param vectors: their vectors of the layer: float32, [B, D].
        :returns: [B].
        """
        distances = measure_distances(normalize(vectors), self.vectors.astype(np.float32))
        return np.asarray(distances > self.limit, np.bool_)


def shorten_keys(keys: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    """The first eight bytes of keys as numbers: [B]."""
    return np.frombuffer(b"".join(key[:8] for key in keys), np.uint64)


def measure_distances(vectors: Floats, others: Floats, *, are_same: bool = False) -> Floats:
    """The cosine distance of each vector to the nearest of others, from 0 to 2.

    :param vectors: of length 1, [B, D].
    :param others: of length 1, [S, D].
    :param are_same: whether both are the same, and each vector's nearest is another one.
    :returns: float32, [B].
    """
    nearest = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        likeness = vectors[block] @ others.T
        if are_same:
            numbers = np.arange(len(likeness))
            likeness[numbers, start + numbers] = -np.inf
        nearest[block] = 1 - likeness.max(axis=1)
    return nearest
