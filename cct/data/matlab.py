"""MATLAB 5 files, in which Oxford and Stanford publish labels and images: just enough to read whole numbers from them.

Format: "MAT-File Format", The MathWorks. After 128 bytes of header come elements, each with a tag of type and length and padded
to 8 bytes; a variable is an element of elements (flags, dimensions, name, values by columns), usually compressed with zlib.
SciPy's reader is not used, because damaged files crash it.
"""

from __future__ import annotations

import contextlib
import math
import struct
import zlib

from .dataset import DataError

with contextlib.suppress(ImportError):  # only files need it
    import numpy as np

HEADER = 128
MATRIX, COMPRESSED = 14, 15
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
NUMERIC, COMPLEX = range(6, 16), 0x0800  # classes of variables; a flag
LARGEST = 1 << 30  # bytes of a variable


def read_mat(data: bytes, where, *names: str) -> list[np.ndarray]:
    """The variables `names`, arrays of whole numbers, of the bytes of a .mat file. Raises DataError naming `where`."""
    try:
        content = _variables(data, names)
    except (ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{where}: cannot be read as a MATLAB file ({error}); delete it and download it again") from error
    if missing := [name for name in names if name not in content]:
        raise DataError(f"{where}: lacks the variable {', '.join(missing)}; replace it by the published file")
    return [_whole(content[name], where, name) for name in names]


def _whole(array, where, name):
    if array.dtype.kind in "iu":
        return array
    if not np.all(np.abs(array) < 2**53) or np.any(array != np.round(array)):  # the first is false for infinity and NaN
        raise DataError(f"{where}: {name} holds fractions; expected whole numbers; replace the file")
    return array.astype(np.int64)


def _variables(data, names):
    order = {b"IM": "<", b"MI": ">"}.get(data[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("its header is not that of a MATLAB 5 file")
    found = {}
    for kind, element in _elements(memoryview(data)[HEADER:], order):
        if kind == COMPRESSED:
            unpacked = zlib.decompressobj().decompress(element, LARGEST)
            kind, element = next(_elements(memoryview(unpacked), order), (0, b""))
        if kind == MATRIX:
            name, array = _variable(element, order, names)
            if array is not None:
                found[name] = array
    return found


def _variable(element, order, names):
    """(name, array), or (name, None) when it is not one of `names`."""
    parts = _elements(element, order)
    flags, shape, name = (next(parts, (0, b""))[1] for _ in range(3))
    name = bytes(name).decode("latin1")
    if name not in names:
        return name, None
    (flags,) = struct.unpack_from(order + "I", flags)
    shape = struct.unpack(f"{order}{len(shape) // 4}i", shape)
    kind, values = next(parts, (0, b""))
    if flags & 0xFF not in NUMERIC or flags & COMPLEX or kind not in TYPES:
        raise ValueError(f"{name} is no array of real numbers")
    array = np.frombuffer(values, np.dtype(TYPES[kind]).newbyteorder(order))
    if min(shape, default=0) < 0 or math.prod(shape) != len(array):
        raise ValueError(f"{name} has {len(array)} values; its shape is {shape}")
    return name, array.reshape(shape, order="F").astype(array.dtype.newbyteorder("="))


def _elements(data, order):
    """(type, content) of each element."""
    at = 0
    while at < len(data):
        (kind,) = struct.unpack_from(order + "I", data, at)
        if kind >> 16:  # a small one: length and type in one word, content in the next
            kind, size, start, step = kind & 0xFFFF, kind >> 16, at + 4, 8
        else:
            (size,) = struct.unpack_from(order + "I", data, at + 4)
            start, step = at + 8, 8 + size + (0 if kind == COMPRESSED else -size % 8)
        if start + size > len(data) or (step == 8 and size > 4):
            raise ValueError("it ends too early")
        yield kind, data[start : start + size]
        at += step
