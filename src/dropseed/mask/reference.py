"""The draws themselves: slow, obvious, and the definition of truth for every kernel.

Every function is pure: the same key and index give the same draw, whatever else is drawn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask.key import Key, integer
from dropseed.mask.philox import philox4x32
from dropseed.mask.rate import Rate
from dropseed.mask.shape import noise_shape
from dropseed.mask.shard import INDEX_END, Draws, Shape, dimensions, part

Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

_FIRST_PLANES = 0
_SECOND_PLANES = 4


def keep(
    key: Key,
    rate: Any,
    shape: Shape,
    *,
    start: Shape = 0,
    stride: Shape = 1,
    of: Shape | None = None,
) -> Bools:
    """The dropout mask of a key: True where a value is kept.

    Args:
        key: names the mask.
        rate: the fraction dropped, a real number in [0, 1], or a `Rate`.
        shape: the shape of the mask, one integer or a sequence.
        start: the first draw: one integer a dimension, or a single one for the first dimension.
        stride: the distance of neighbouring draws, likewise, at least 1.
        of: the shape of the larger mask that this one is a shard of; by default `shape`.

    Returns:
        Boolean array of `shape`. Element (i, j, ...) is draw (start + stride * (i, j, ...)) of
        the mask of shape `of`.

    Raises:
        TypeError: `key` is no `Key`, `rate` no real number, or a size no integer.
        ValueError: `rate` is outside [0, 1], or the shard leaves `of`.

    Example:
        >>> keep(Key(0), 0.5, 8).astype(int)
        array([1, 1, 0, 0, 1, 1, 0, 1])
    """
    rate = as_rate(rate)
    u = _integers(key, part(shape, start, stride, of), _FIRST_PLANES)
    return np.asarray(u >= rate.threshold)


def uniform(key: Key, shape: Shape, *, start: Shape = 0) -> Doubles:
    """Uniform draws: ``(u + 0.5) / 2**32``, strictly between 0 and 1.

    Args:
        key: names the draws.
        shape: the shape of the result.
        start: the first draw along the first dimension.

    Returns:
        float64 array of `shape`.

    Raises:
        TypeError, ValueError: as `keep` does.

    Example:
        >>> uniform(Key(0), 2).round(6)
        array([0.832492, 0.906872])
    """
    u = _integers(key, part(shape, start), _FIRST_PLANES)
    return np.asarray((u + 0.5) / 2**32)


def integers(key: Key, n: int, shape: Shape, *, start: Shape = 0) -> Integers:
    """Uniform integers in [0, n): ``u * n div 2**32``.

    Args:
        key: names the draws.
        n: integer in [1, 2**32].
        shape: the shape of the result.
        start: the first draw along the first dimension.

    Returns:
        int64 array of `shape`.

    Raises:
        TypeError, ValueError: as `keep` does; `n` outside its range.

    Example:
        >>> integers(Key(0), 6, 4)
        array([4, 5, 0, 2])
    """
    n = integer(n, "n", 1, 2**32 + 1)
    u = _integers(key, part(shape, start), _FIRST_PLANES)
    return np.asarray(u.astype(np.uint64) * n >> 32, np.int64)  # u * n needs all 64 bits


def gaussian(key: Key, shape: Shape, *, start: Shape = 0) -> Doubles:
    """Standard normal draws by Box and Muller's cosine, from the draw's two integers.

    Args:
        key: names the draws.
        shape: the shape of the result.
        start: the first draw along the first dimension.

    Returns:
        float64 array of `shape`: ``sqrt(-2 ln((u + 1) / 2**32)) * cos(2 pi v / 2**32)``.

    Raises:
        TypeError, ValueError: as `keep` does.

    Example:
        >>> gaussian(Key(0), 2).round(6)
        array([0.598127, 0.436334])
    """
    draws = part(shape, start)
    u = _integers(key, draws, _FIRST_PLANES)
    v = _integers(key, draws, _SECOND_PLANES)
    return np.asarray(np.sqrt(-2 * np.log((u + 1) / 2**32)) * np.cos(2 * np.pi * v / 2**32))


def subset(key: Key, n: int, size: int, *, row: int = 0) -> Integers:
    """A random subset: the `size` indices below `n` with the smallest draws.

    Args:
        key: names the draws.
        n: the number of indices to choose from.
        size: how many to choose, at most `n`.
        row: which subset of the key; row r uses the draws r*n to r*n + n - 1, below 2**63.

    Returns:
        int64 array of `size` distinct indices in ascending order.

    Raises:
        TypeError: an argument is no integer.
        ValueError: an argument is outside its range, or `size` exceeds `n`.

    Example:
        >>> subset(Key(0), 10, 3)
        array([2, 3, 8])
    """
    n = integer(n, "n", 0, INDEX_END)
    size = integer(size, "size", 0, INDEX_END)
    row = integer(row, "row", 0, INDEX_END // max(n, 1))
    if size > n:
        raise InvalidValueError(f"`size` must be at most `n`, which is {n}; got {size}.")
    u = _integers(key, part(n, row * n), _FIRST_PLANES)
    return np.sort(np.argsort(u, kind="stable")[:size])


def drop_block(
    key: Key, gamma: Any, shape: Shape, block_size: Shape, *, shared: bool = False
) -> Bools:
    """DropBlock's mask: each dropped draw takes a block of the map with it.

    Ghiasi, Lin and Le, "DropBlock: a regularization method for convolutional networks",
    NeurIPS 2018, algorithm 1, before its normalisation.

    Args:
        key: names the mask.
        gamma: the fraction of the draws dropped, in [0, 1], each with a block of the map.
        shape: (N, C, L1, ..., Ld).
        block_size: the block's edge, one integer or one for each of the d dimensions.
        shared: whether the channels share their blocks.

    Returns:
        Boolean array of `shape`, True where a value is kept.

    Raises:
        TypeError, ValueError: as `keep` does; a block larger than the map.

    Example:
        >>> drop_block(Key(3), 0.2, (1, 1, 8), 3).astype(int)
        array([[[1, 1, 0, 0, 0, 1, 1, 1]]])
    """
    sizes = dimensions(shape, "shape")
    kept = keep(key, gamma, noise_shape("drop_block", sizes, block_size=block_size, shared=shared))
    if shared:
        kept = kept[:, np.newaxis]
    places = kept.shape[2:]
    mask = np.ones(sizes, np.bool_)
    # A dropped draw lies at the first corner of its block: move the draws to each of the block's
    # elements in turn.
    for offset in np.ndindex(*(n - p + 1 for n, p in zip(sizes[2:], places, strict=True))):
        region = (slice(o, o + p) for o, p in zip(offset, places, strict=True))
        mask[:, :, *region] &= kept
    return mask


def as_rate(rate: Any) -> Rate:
    """A `Rate` from a number or a `Rate`."""
    return rate if isinstance(rate, Rate) else Rate(rate)


def _integers(key: Key, draws: Draws, plane: int) -> Integers:
    """The 32-bit integer of each draw: its bytes of four planes, most significant first."""
    if not isinstance(key, Key):
        raise InvalidTypeError(f"`key` must be a Key, for instance Key(0); got {key!r}.")
    index = draws.indices()
    j = index % 16
    # Sixteen draws share a Philox call: make each call once.
    blocks, block = np.unique(index // 16, return_inverse=True)
    result = np.zeros(draws.shape, np.int64)
    for p in range(plane, plane + 4):
        counter = (blocks % 2**32, p * 2**28 + blocks // 2**32, key.site, key.step)
        words = np.stack(philox4x32(counter, key.words[:2]), axis=-1).astype(np.int64)
        byte = (words[block, j // 4] >> (8 * (j % 4))) % 256
        result = result * 256 + byte
    return result
