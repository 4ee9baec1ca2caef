"""Arrow arrays of NumPy's and of lists, without pandas.

Arrow's own ``pa.array`` imports pandas, if it is installed, to see whether what it is given is one
of its tables. That takes a quarter of a second, which is much of a short command.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa


def wrap_numbers(values: npt.NDArray[Any]) -> pa.Array:
    """An Arrow array of the same numbers or truth values, without nulls.

    :param values: integers, floats or booleans of any width: [N].
    """
    import pyarrow as pa

    kind = pa.from_numpy_dtype(values.dtype)
    content = np.packbits(values, bitorder="little") if values.dtype == bool else values
    buffer = pa.py_buffer(np.ascontiguousarray(content))
    return pa.Array.from_buffers(kind, len(values), [None, buffer])


def wrap_texts(texts: Sequence[Any]) -> pa.Array:
    """An Arrow array of the same texts, of type ``large_string``.

    :param texts: strings: [N].
    :raises pa.ArrowException: if one is neither a string nor ``None``.
    :raises UnicodeError: if one is not valid Unicode.
    """
    import pyarrow as pa

    if not all(type(text) is str for text in texts):
        return pa.array(texts, pa.large_string())
    encoded = [text.encode("utf-8") for text in texts]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    data = pa.py_buffer(b"".join(encoded))
    return pa.LargeStringArray.from_buffers(len(encoded), pa.py_buffer(offsets), data)


def wrap_keys(keys: Sequence[bytes]) -> pa.Array:
    """An Arrow array of the same keys: fixed-size binary of 16.

    :param keys: 16 bytes each: [N].
    :raises pa.ArrowException: if one has another size.
    """
    import pyarrow as pa

    if not all(type(key) is bytes and len(key) == 16 for key in keys):
        return pa.array(keys, pa.binary(16))
    data = pa.py_buffer(b"".join(keys))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, data])


def wrap_rows(keys: npt.NDArray[np.uint8]) -> pa.Array:
    """An Arrow array of the same keys: fixed-size binary of 16.

    :param keys: uint8, [N, 16].
    """
    import pyarrow as pa

    buffer = pa.py_buffer(np.ascontiguousarray(keys))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, buffer])
