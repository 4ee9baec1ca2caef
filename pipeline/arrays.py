"""Arrow arrays of NumPy's and of lists, without pandas; and large arrays, part by part.

Arrow's own ``pa.array`` imports pandas, if it is installed, to see whether what it is given is one
of its tables. That takes a quarter of a second, which is much of a short command.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

_PART = 131_072  # indices that NumPy widens at a time

Array = TypeVar("Array", bound=npt.NDArray[Any])


def take_values(
    values: Array, indices: npt.NDArray[np.integer], into: Array | None = None
) -> Array:
    """The same as ``values[indices]``, in less memory.

    NumPy makes indices of eight bytes of narrower ones before it takes the first value, which for
    all rows of a large corpus are more than the values.

    :param values: [N, ...].
    :param indices: indices from 0 to N - 1, [B].
    :param into: the array to write to, [B, ...], which may be that of the indices; a new one if
        ``None``.
    :returns: [B, ...].
    """
    taken = np.empty((len(indices), *values.shape[1:]), values.dtype) if into is None else into
    for start in range(0, len(indices), _PART):
        part = slice(start, start + _PART)
        taken[part] = values[indices[part]]
    return cast(Array, taken)


def find_first(numbers: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    """The first index at which each number stands: [N], -1 for a number that there is not.

    It takes four bytes a number, where ``np.unique`` sorts them all.

    :param numbers: integers from 0 to N - 1, [B]; B is below 2^31.
    """
    first = np.full(int(numbers.max()) + 1 if len(numbers) else 0, -1, np.int32)
    for start in reversed(range(0, len(numbers), _PART)):
        part = numbers[start : start + _PART]
        # Of equal numbers the one that is written last stays.
        first[part[::-1]] = np.arange(start, start + len(part), dtype=np.int32)[::-1]
    return first


def wrap_numbers(
    values: npt.NDArray[Any], are_missing: npt.NDArray[np.bool_] | None = None
) -> pa.Array:
    """An Arrow array of the same numbers or truth values.

    :param values: integers, floats or booleans of any width: [N].
    :param are_missing: true where there is to be a null: bool, [N]; nowhere if ``None``.
    """
    import pyarrow as pa

    kind = pa.from_numpy_dtype(values.dtype)
    content = np.packbits(values, bitorder="little") if values.dtype == bool else values
    buffer = pa.py_buffer(np.ascontiguousarray(content))
    present = None
    if are_missing is not None and are_missing.any():
        present = pa.py_buffer(np.packbits(~are_missing, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [present, buffer])


def unwrap_numbers(values: pa.Array, missing: float = 0) -> npt.NDArray[Any]:
    """The numbers of an Arrow array, in its type: [N].

    :param values: integers or floats, nulls among them: [N].
    :param missing: what stands for a null, a number that the type can hold.
    """
    present, content = values.buffers()
    kind = values.type.to_pandas_dtype()  # which is one of NumPy's
    held = slice(values.offset, values.offset + len(values))
    numbers = np.frombuffer(content or b"", kind)[held]
    if values.null_count:
        are_present = np.unpackbits(np.frombuffer(present, np.uint8), bitorder="little")[held]
        numbers = np.where(are_present, numbers, numbers.dtype.type(missing))
    return numbers


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
