"""Keys of texts, many at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa


def view_keys(keys: pa.Array) -> npt.NDArray[np.uint8]:
    """The bytes of an array of keys: uint8, [N, 16], without a copy.

    :param keys: fixed-size binary of 16, [N], without nulls.
    """
    buffer = keys.buffers()[1]
    if buffer is None:
        return np.empty((0, 16), np.uint8)
    raw = np.frombuffer(buffer, np.uint8)
    return raw[keys.offset * 16 : (keys.offset + len(keys)) * 16].reshape(-1, 16)


def hash_keys(keys: pa.Array) -> str:
    """SHA-256 over keys, one after another: equal for the same texts in the same order."""
    return hashlib.sha256(view_keys(keys).tobytes()).hexdigest()


def hash_texts(texts: Sequence[str]) -> list[bytes]:
    """The key of each text: BLAKE2b over its UTF-8 bytes, cut to 128 bits.

    :param texts: texts that can be encoded as UTF-8, [B].
    :returns: 16 bytes each; equal for equal texts and for nothing else.
    """
    return [_hash_bytes(text.encode("utf-8")) for text in texts]


def find_wrong_text(texts: pa.Array, keys: pa.Array) -> int | None:
    """The index of the first text whose key is another than the one beside it, if there is one.

    :param texts: strings, [B].
    :param keys: fixed-size binary of 16, [B].
    """
    import pyarrow as pa

    # Bytes are hashed as they are, since damaged ones need not be UTF-8.
    found = b"".join(map(_hash_bytes, texts.cast(pa.binary()).to_pylist()))
    if found == view_keys(keys).tobytes():
        return None
    differs = np.frombuffer(found, np.uint8).reshape(-1, 16) != view_keys(keys)
    return int(np.flatnonzero(differs.any(axis=1))[0])


def _hash_bytes(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).digest()
