"""The IDX file format of MNIST, for arrays of bytes. NumPy only.

A file is two zero bytes, the element type (8: unsigned byte), the number of dimensions, each size
as a big-endian uint32, and the elements in row-major order.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dropseed.errors import DataError

Bytes = npt.NDArray[np.uint8]

_UNSIGNED_BYTE = 8


def to_idx(array: Bytes) -> bytes:
    r"""Write an array of bytes as an uncompressed IDX file.

    Args:
        array: uint8, of any shape.

    Returns:
        The file's content.

    Example:
        >>> to_idx(np.array([7, 9], np.uint8))
        b'\x00\x00\x08\x01\x00\x00\x00\x02\x07\t'
    """
    header = bytes([0, 0, _UNSIGNED_BYTE, array.ndim])
    return header + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def from_idx(content: bytes) -> Bytes:
    """Read an uncompressed IDX file of bytes.

    Args:
        content: the file's content.

    Returns:
        uint8 array with the shape that the header gives; a copy, so it can be written to.

    Raises:
        DataError: the content is not an IDX file of unsigned bytes, or has another length than
            its header says.

    Example:
        >>> from_idx(to_idx(np.eye(2, dtype=np.uint8)))
        array([[1, 0],
               [0, 1]], dtype=uint8)
    """
    if len(content) < 4 or content[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise DataError(f"not an IDX file of unsigned bytes: it begins with {content[:4]!r}.")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"an IDX file that ends within its header, after {len(content)} bytes.")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", content[3], 4))
    if len(content) != start + math.prod(shape):
        raise DataError(
            f"an IDX file of shape {shape} has {start + math.prod(shape)} bytes; "
            f"this one has {len(content)}."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()
