"""Which draws an array has, where the shard's start may be traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.kernels import xla
from dropseed.mask.shard import Shape, dimensions, part, row_major


class Draws(NamedTuple):
    """What the kernels take: the geometry, and the index of its first draw in two words."""

    geometry: xla.Geometry
    base: Any


def draws(shape: Shape, start: Any = 0, stride: Shape = 1, of: Shape | None = None) -> Draws:
    """The draws of a shard, as `dropseed.keep` names them.

    Args:
        shape: the shard's shape.
        start: one integer a dimension, or a single one for the first. Each may be traced, as
            ``axis_index`` is under `shard_map`; a traced one can't be checked.
        stride: likewise, at least 1, never traced.
        of: the noise shape that the shard is a part of; by default `shape`.

    Returns:
        The draws.

    Raises:
        TypeError: a number is not an integer.
        ValueError: as `dropseed.keep` does.

    Example:
        >>> draws((2, 3), start=1, of=(4, 3)).geometry
        Geometry(shape=(2, 3), strides=(3, 1), offset=3)
    """
    starts = start if isinstance(start, Sequence) else (start,)
    known = [0 if _is_traced(one) else one for one in starts]
    checked = part(shape, known if isinstance(start, Sequence) else known[0], stride, of)
    outer = checked.shape if of is None else dimensions(of, "of")
    weights = row_major(outer)
    traced = [
        (one, weight)
        for one, weight in zip(starts, weights, strict=False)
        if _is_traced(one) and 0 not in checked.shape
    ]
    aligned = all(weight % 16 == 0 for _, weight in traced)
    offset = checked.base % 16 if aligned else None
    geometry = xla.Geometry(checked.shape, checked.strides, offset)
    base = np.array([checked.base % 2**32, checked.base >> 32], np.uint32)
    return Draws(geometry, _moved(base, traced) if traced else base)


def whole(shape: Sequence[int]) -> Draws:
    """All draws of a noise shape."""
    return draws(tuple(shape))


def _moved(base: Any, traced: list[tuple[Array, int]]) -> Array:
    """The base, further by each traced start times its weight."""
    at = (xla.u32(base[0]), xla.u32(base[1]))
    for start, weight in traced:
        if start.shape != () or not np.issubdtype(start.dtype, np.integer):
            raise InvalidTypeError(
                f"`start` must be integers; got {start.dtype} of shape {start.shape}."
            )
        at = xla.add(at, xla.times(start.astype(jnp.uint32), weight))
        if start.dtype.itemsize == 8:
            high = (start >> 32).astype(jnp.uint32) * xla.u32(weight)
            at = xla.add(at, (xla.u32(0), high))
    return jnp.stack(at)


def _is_traced(number: Any) -> bool:
    return isinstance(number, jax.core.Tracer)


def sample_order(start: Any, stride: Any, shape: Sequence[int]) -> Draws:
    """The draws of samples of a larger batch: sample n is number ``start + stride * n``."""
    for name, value in (("start", start), ("stride", stride)):
        if isinstance(value, Sequence):
            raise InvalidValueError(
                f"`{name}` must be one integer, that of the samples; got {value!r}."
            )
    return draws(tuple(shape), start, stride)
