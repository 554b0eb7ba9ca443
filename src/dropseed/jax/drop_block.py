"""DropBlock: contiguous regions of feature maps."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from dropseed.errors import InvalidValueError
from dropseed.jax import keys, laws, primitive
from dropseed.jax.functional import check_format
from dropseed.jax.rates import Strength, strength
from dropseed.jax.shards import sample_order
from dropseed.kernels import xla
from dropseed.kernels.xla import Geometry
from dropseed.mask.block import STEPS, coverage, exact_gamma, gamma_factor, kept_fraction
from dropseed.mask.shape import block_edges, noise_shape
from dropseed.mask.shard import Shape

NORMALIZATIONS = ("sample", "batch", "expectation")


def drop_block(
    key: Any,
    x: Array,
    rate: Any = 0.1,
    block_size: Shape = 7,
    *,
    training: bool = True,
    data_format: str = "channels_last",
    shared: bool = False,
    exact: bool = False,
    normalization: str = "sample",
    axis_name: Any = None,
    start: Any = 0,
    stride: int = 1,
) -> Array:
    """Drop square regions of feature maps, and scale what is left.

    Ghiasi, Lin and Le 2018, "DropBlock: a regularization method for convolutional networks",
    algorithm 1. Each place where a whole block fits has a draw, and takes a block with it at the
    rate gamma. By the paper's formula (equation 1) that is a little less than `rate` in all, since
    blocks overlap; ``exact=True`` solves for the gamma at which the fraction dropped is `rate`.

    Args:
        key: as in `dropout`.
        x: (N, L1, ..., Ld, C), or (N, C, L1, ..., Ld) with the channels first, in any number of
            dimensions. Both have the same draws, whose order is that of the channels first.
        rate: the fraction dropped, in [0, 1]: a number, or a 0-d array, which may be traced.
        block_size: the block's edge, odd or even, or one for each dimension; each from 1 to the
            map's.
        training: whether to drop. Without it the input itself is returned.
        data_format: "channels_last" or "channels_first".
        shared: whether the channels of a sample share their blocks, as in the authors' code.
        exact: whether gamma is solved for, overlaps and borders included.
        normalization: what the rest is multiplied by: "sample" (a sample's size over the number of
            its elements that are kept: the same under any split of the batch), "batch" (the
            same over the whole batch, as in the paper), or "expectation" (one over the fraction
            that is kept on average).
        axis_name: the mapped axes over which "batch" counts under `shard_map`.
        start: the first sample's number in a larger batch, which may be traced.
        stride: the distance of its samples.

    Returns:
        Array of the input's shape and type. A dropped element is +0, also where the input is NaN
        or infinite. Where nothing is left of a sample, or of the batch, all is 0.

    Raises:
        TypeError: `x` is no floating-point array, `rate` no number, `block_size` no integer, or
            `key` no key.
        ValueError: `x` has less than three dimensions, `rate` is outside [0, 1], a block doesn't
            fit into the map, or `data_format` or `normalization` is unknown.

    Example:
        >>> import dropseed.jax as dsj
        >>> x = jnp.ones((1, 1, 8))
        >>> dsj.drop_block(dsj.key(3), x, 0.4, 3, data_format="channels_first")
        Array([[[1.6, 1.6, 0. , 0. , 0. , 1.6, 1.6, 1.6]]], dtype=float32)
    """
    x = laws.checked_input(x)
    check_format(data_format)
    check_normalization(normalization, axis_name)
    force, words = strength(rate), keys.words(key)
    if x.ndim < 3:
        raise InvalidValueError(f"`x` must be (N, *, C) or (N, C, *); got shape {x.shape}.")
    last = data_format == "channels_last"
    first = jnp.moveaxis(x, -1, 1) if last else x
    if not training or force.number == 0 or 0 in first.shape[2:]:
        return x
    edges = block_edges(block_size, first.shape[2:])
    if x.size == 0:
        return x
    places = noise_shape("drop_block", first.shape, block_size=edges, shared=shared)
    gamma, scale = _strength(force, first.shape[2:], edges, exact)
    scale = scale if normalization == "expectation" else 1 + 0 * force.in_force
    place = sample_order(start, stride, places)
    numbers = laws.operands((gamma.threshold, gamma.everything, scale))
    settings = place.geometry, edges, normalization, axis_name
    output = _blocks(first, words, place.base, numbers, *settings)
    return jnp.moveaxis(output, 1, -1) if last else output


def check_normalization(normalization: Any, axis_name: Any = None) -> None:
    """Refuse an unknown normalization, and axes that none of the others counts over."""
    if normalization not in NORMALIZATIONS:
        raise InvalidValueError(
            f'`normalization` must be "sample", "batch" or "expectation"; got {normalization!r}.'
        )
    if axis_name is not None and normalization != "batch":
        raise InvalidValueError(
            f'`axis_name` must be None unless `normalization` is "batch"; that is '
            f"{normalization!r}."
        )


# ---- gamma -----------------------------------------------------------------------------------


def _strength(
    force: Strength, sizes: tuple[int, ...], edges: tuple[int, ...], exact: bool
) -> tuple[Strength, Any]:
    """Gamma as a rate, and one over the fraction that is kept on average."""
    covered, paper = coverage(sizes, edges), gamma_factor(sizes, edges)
    if force.number is not None:
        rate = force.number
        gamma = strength(exact_gamma(rate, covered) if exact else rate * paper)
        kept = kept_fraction(gamma.in_force, covered)
        return gamma, 1 / kept if kept else 0.0
    rate = force.rate
    gamma = strength(_traced_gamma(rate, covered) if exact else rate * paper)
    places, weights = jnp.array(list(covered)), jnp.array(list(covered.values()))
    kept = (weights * (1 - gamma.in_force) ** places).sum()
    return gamma, jnp.where(kept == 0, 0.0, 1 / kept) + 0 * force.in_force


def _traced_gamma(rate: Array, covered: dict[int, float]) -> Array:
    """`exact_gamma` for a rate that is traced: the same steps, all of them."""
    if covered.keys() == {1}:
        return rate
    places, weights = jnp.array(list(covered), rate.dtype), jnp.array(list(covered.values()))
    at = jnp.zeros_like(rate)
    for _ in range(STEPS):
        lost = (weights * jnp.expm1(-places * at)).sum()
        remaining = weights * jnp.exp(-places * at)
        kept, slope = remaining.sum(), (remaining * places).sum()
        logarithm = jnp.where(kept > 0.5, jnp.log1p(lost), jnp.log(kept))
        at = at + (logarithm - jnp.log1p(-rate)) * kept / slope
    return jnp.where((rate == 0) | (rate == 1), rate, -jnp.expm1(-at))


# ---- blocks ------------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=(4, 5, 6, 7))
@partial(jax.checkpoint, static_argnums=(4, 5, 6, 7))
def _blocks(
    x: Array,
    key: Array,
    base: Any,
    numbers: Any,
    geometry: Geometry,
    edges: tuple[int, ...],
    normalization: str,
    axis_name: Any,
) -> Array:
    threshold, everything, scale = numbers
    draws = primitive.keep(key, threshold, everything, base, geometry)
    mask = ~xla.dilated(~draws, edges)
    if mask.ndim < x.ndim:
        mask = mask[:, None]
    if normalization != "expectation":
        scale = scale * _factor(mask, x.shape, normalization, axis_name)
    return xla.apply(x, mask, scale)


def _factor(mask: Array, shape: tuple[int, ...], normalization: str, axis_name: Any) -> Array:
    """The size of what is counted over the number of its elements that are kept."""
    axes = tuple(range(1 if normalization == "sample" else 0, mask.ndim))
    copies = math.prod(shape) // mask.size  # of a mask that the channels share
    real = jnp.result_type(float)
    kept = mask.sum(axes, keepdims=True, dtype=jnp.int32).astype(real) * copies
    size = jnp.asarray(math.prod(shape[axis] for axis in axes), real)
    if axis_name is not None:
        kept, size = lax.psum((kept, size), axis_name)
    return jnp.where(kept == 0, 0.0, size / kept)
