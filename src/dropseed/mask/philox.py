"""Philox4x32-10, the counter-based generator behind every draw. NumPy only.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HIGH = np.uint64(32)
_ROUNDS = 10


def philox4x32(counter: tuple[npt.ArrayLike, ...], key: tuple[int, int]) -> tuple[Words, ...]:
    """Four random 32-bit words for each counter.

    Args:
        counter: four arrays (or integers) of uint32 values, broadcast together.
        key: two uint32 integers.

    Returns:
        Four uint32 arrays of the broadcast shape.

    Example:
        >>> [hex(w) for w in philox4x32((0, 0, 0, 0), (0, 0))]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    for i in range(_ROUNDS):
        k0, k1 = (np.uint64((k + i * w) % 2**32) for k, w in zip(key, _WEYL, strict=True))
        p0 = _MULTIPLIERS[0] * c0
        p1 = _MULTIPLIERS[1] * c2
        c0, c1 = (p1 >> _HIGH) ^ c1 ^ k0, p1 & _LOW
        c2, c3 = (p0 >> _HIGH) ^ c3 ^ k1, p0 & _LOW
    return tuple(c.astype(np.uint32) for c in np.broadcast_arrays(c0, c1, c2, c3))
