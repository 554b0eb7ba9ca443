"""Which draws a tensor has: all of a noise shape, or a shard's part of a larger one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask.key import integer

INDEX_END = 2**63
"""The first index that no draw has."""

Shape = int | Sequence[int]


class Draws(NamedTuple):
    """Element (i, j, ...) of a tensor has draw ``base + i * strides[0] + j * strides[1] + ...``.

    A stride of 0 means that the elements along that dimension share a draw. A dimension of one
    element has stride 0 too.
    """

    shape: tuple[int, ...]
    base: int
    strides: tuple[int, ...]

    def indices(self) -> npt.NDArray[np.int64]:
        """The flat index of every element's draw, shape `shape`."""
        out = np.full(self.shape, self.base, np.int64)
        for axis, (size, stride) in enumerate(zip(self.shape, self.strides, strict=True)):
            if stride:
                steps = np.arange(size, dtype=np.int64) * stride
                out += steps.reshape([-1 if a == axis else 1 for a in range(len(self.shape))])
        return out


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides of a shape, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def whole(shape: tuple[int, ...], shared: Iterable[int] = ()) -> Draws:
    """The draws of a whole tensor whose elements along the axes `shared` have one draw together."""
    shared = frozenset(shared)
    sizes = [1 if axis in shared else size for axis, size in enumerate(shape)]
    strides = tuple(w if n > 1 else 0 for n, w in zip(sizes, row_major(sizes), strict=True))
    return Draws(shape, 0, strides)


def part(shape: Shape, start: Shape = 0, stride: Shape = 1, of: Shape | None = None) -> Draws:
    """The draws of a shard: element (i, j, ...) is draw (start + stride * (i, j, ...)) of `of`.

    Args:
        shape: the shard's shape.
        start: one integer a dimension, or a single one for the first dimension.
        stride: likewise, each at least 1.
        of: the noise shape that the shard is a part of; by default `shape`. Its first dimension
            does not enter row-major indices, so `start` may exceed it there.

    Returns:
        The draws, with strides in flat indices of `of`.

    Raises:
        TypeError: a number is not an integer.
        ValueError: `start` and `stride` leave `of` in another dimension than the first, an index
            reaches 2**63, or the ranks differ.

    Example:
        >>> part((2, 3), start=(1, 0), of=(4, 3)).indices().tolist()
        [[3, 4, 5], [6, 7, 8]]
    """
    sizes = dimensions(shape, "shape")
    outer = sizes if of is None else dimensions(of, "of")
    if len(outer) != len(sizes):
        raise InvalidValueError(
            f"`of` must have as many dimensions as `shape`; got {outer} for {sizes}."
        )
    starts = _per_dimension(start, "start", 0, len(sizes))
    steps = _per_dimension(stride, "stride", 1, len(sizes))
    if 0 in sizes:
        return Draws(sizes, 0, (0,) * len(sizes))
    lasts = [s + t * (n - 1) for s, t, n in zip(starts, steps, sizes, strict=True)]
    for axis in range(1, len(sizes)):
        if lasts[axis] >= outer[axis]:
            raise InvalidValueError(
                f"`start` {starts} and `stride` {steps} lead to {lasts[axis]} in dimension {axis}, "
                f"where `of` {outer} has {outer[axis]}. They may leave the first dimension only."
            )
    weights = row_major(outer)
    last = sum(n * w for n, w in zip(lasts, weights, strict=True))
    if last >= INDEX_END:
        raise InvalidValueError(
            f"`shape` {sizes} from `start` {starts} leads to index {last}; the last is 2**63 - 1."
        )
    base = sum(s * w for s, w in zip(starts, weights, strict=True))
    strides = tuple(t * w if n > 1 else 0 for n, t, w in zip(sizes, steps, weights, strict=True))
    return Draws(sizes, base, strides)


def dimensions(shape: Shape, name: str, low: int = 0) -> tuple[int, ...]:
    """A shape as a tuple of Python integers of at least `low`; one integer is one dimension."""
    if _is_single(shape):
        shape = (shape,)  # type: ignore[assignment]
    try:
        sizes = tuple(shape)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidTypeError(
            f"`{name}` must be an integer or a sequence of integers; got {shape!r}."
        ) from None
    return tuple(integer(size, name, low, INDEX_END) for size in sizes)


def each_dimension(
    value: Shape, name: str, rank: int, low: int = 0, *, each: str = ""
) -> tuple[int, ...]:
    """One integer for each of `rank` dimensions, from one or as many; `each` words the error."""
    numbers = dimensions(value, name, low)
    if len(numbers) not in (1, rank):
        each = each or f"of {rank} dimensions"
        raise InvalidValueError(
            f"`{name}` must be one integer or one for each {each}; got {value!r}."
        )
    return numbers if len(numbers) == rank else numbers * rank


def _per_dimension(value: Shape, name: str, default: int, rank: int) -> tuple[int, ...]:
    """`start` or `stride` for each dimension; `default` is also the least that makes sense."""
    numbers = dimensions(value, name, low=default)
    if _is_single(value):
        numbers = (*numbers, *[default] * (rank - 1))
        if numbers == (default,) and rank == 0:
            return ()
    if len(numbers) != rank:
        raise InvalidValueError(
            f"`{name}` must be one integer or one for each of {rank} dimensions; got {value!r}."
        )
    return numbers


def _is_single(value: object) -> bool:
    # Arrays have `__index__` too, whatever their number of dimensions.
    return type(value) is int or (hasattr(value, "__index__") and not getattr(value, "shape", ()))
