"""Dropout as pure functions of a key: `jit`, `grad`, `vmap`, `scan` and `shard_map` alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.jax import keys, laws, primitive
from dropseed.jax.rates import strength
from dropseed.jax.shards import draws
from dropseed.kernels import xla
from dropseed.mask import shared_axes
from dropseed.mask.shard import Shape

SATURATION = 1.7580993408473766
"""SELU's scale times its alpha: it saturates at minus this (Klambauer et al. 2017)."""

FORMATS = {"channels_last": "spatial_channels_last", "channels_first": "spatial"}


def keep(
    key: Any, rate: Any, shape: Shape, *, start: Any = 0, stride: Shape = 1, of: Shape | None = None
) -> Array:
    """The dropout mask of a key: True where a value is kept.

    Args:
        key: any key that `dropout` takes.
        rate: the fraction dropped, in [0, 1]: a number, or a 0-d array, which may be traced.
        shape: the shape of the mask, one integer or a sequence.
        start: the first draw: one integer a dimension, or a single one for the first dimension.
            Each may be traced, as ``axis_index(name) * rows`` is under `shard_map`.
        stride: the distance of neighbouring draws, likewise, at least 1, never traced.
        of: the shape of the larger mask that this one is a shard of; by default `shape`.

    Returns:
        Boolean array of `shape`, bit for bit that of `dropseed.keep`.

    Raises:
        TypeError: `key` is no key, `rate` no real number, or a size no integer.
        ValueError: a value is outside its range, or the shard leaves `of`.

    Example:
        >>> import dropseed.jax as dsj
        >>> dsj.keep(dsj.key(0), 0.5, 8).astype(int)
        Array([1, 1, 0, 0, 1, 1, 0, 1], dtype=int32)
    """
    force, place = strength(rate), draws(shape, start, stride, of)
    numbers = force.threshold, force.everything, place.base
    return primitive.keep(keys.words(key), *numbers, place.geometry)


def dropout(
    key: Any,
    x: Array,
    rate: Any = 0.5,
    *,
    training: bool = True,
    noise_shape: Sequence[int | None] | None = None,
    scaling: str = "inverted",
    start: Any = 0,
    stride: Shape = 1,
    of: Shape | None = None,
) -> Array:
    """Zero a random fraction of the elements and scale the survivors; in inference do nothing.

    Hinton et al. 2012, "Improving neural networks by preventing co-adaptation of feature
    detectors"; Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from
    overfitting", section 4.

    Args:
        key: a `dropseed.Key`; or four uint32 words, as `key` makes them; or a key of `jax.random`,
            typed or raw, which stands for the seed ``jax.random.bits(key, (2,), uint32)``, low
            word first, with site 0 and step 0.
        x: floating-point or complex array of any shape.
        rate: the fraction dropped, in [0, 1]: a number, or a 0-d array, which may be traced. A
            traced one can't be checked: outside [0, 1] the output is NaN.
        training: whether to drop. Without it the input itself is returned.
        noise_shape: the shape of the draws, which are broadcast to the input: a size of 1 where
            the elements along an axis share a draw, None or the input's size elsewhere, as in
            Keras. By default every element has a draw of its own.
        scaling: "inverted", "original" (survivors unscaled in training, everything times 1 - rate
            in inference) or "none".
        start: the first draw of a shard, in the noise shape, as in `keep`.
        stride: the distance of its draws, likewise.
        of: the noise shape that it is a shard of, likewise.

    Returns:
        Array of the input's shape and type. A dropped element is +0, also where the input is NaN
        or infinite.

    Raises:
        TypeError: `x` is no floating-point array, `rate` no number, or `key` no key.
        ValueError: `rate` is outside [0, 1], `scaling` unknown, or `noise_shape` does not broadcast
            to the input.

    Example:
        >>> import dropseed.jax as dsj
        >>> dsj.dropout(dsj.key(0), jnp.ones(8), 0.5)
        Array([2., 2., 0., 0., 2., 2., 0., 2.], dtype=float32)
    """
    x = laws.checked_input(x)
    noise = x.shape if noise_shape is None else _checked_noise(noise_shape, x.shape)
    return _drop(key, x, rate, training, scaling, noise, noise, (start, stride, of))


def spatial(
    key: Any,
    x: Array,
    rate: Any = 0.5,
    *,
    training: bool = True,
    data_format: str = "channels_last",
    scaling: str = "inverted",
    start: Any = 0,
    stride: Shape = 1,
    of: Shape | None = None,
) -> Array:
    """Drop whole channels of a batch of feature maps, by one draw a channel.

    Tompson et al. 2015, "Efficient object localization using convolutional networks", section 3.2.

    Args:
        key: as in `dropout`.
        x: (N, *, C), or (N, C, *) with the channels first. Both have the same draws, of shape
            (N, C).
        rate: the fraction of the channels dropped, as in `dropout`.
        training: whether to drop.
        data_format: "channels_last" or "channels_first".
        scaling: "inverted", "original" or "none", as in `dropout`.
        start: the first draw of a shard of (N, C), as in `keep`.
        stride: the distance of its draws, likewise.
        of: the noise shape (N, C) that it is a shard of.

    Returns:
        As `dropout` does.

    Raises:
        ValueError: the input has less than two dimensions, or `data_format` is unknown.
        TypeError, ValueError: as `dropout` does.

    Example:
        >>> import dropseed.jax as dsj
        >>> dsj.spatial(dsj.key(0), jnp.ones((1, 2, 2, 3)), 0.5)[0, 0, 0]
        Array([2., 2., 0.], dtype=float32)
    """
    x = laws.checked_input(x)
    check_format(data_format)
    noise, broadcast = _shapes(FORMATS[data_format], x, "(N, *, C) or (N, C, *)")
    return _drop(key, x, rate, training, scaling, noise, broadcast, (start, stride, of))


def drop_path(
    key: Any,
    x: Array,
    rate: Any = 0.5,
    *,
    training: bool = True,
    scaling: str = "inverted",
    start: Any = 0,
    stride: Shape = 1,
    of: Shape | None = None,
) -> Array:
    """Drop the residual path of whole samples (stochastic depth): one draw a sample.

    Huang et al. 2016, "Deep networks with stochastic depth", equation 2, with the samples' own
    draws and inverted scaling, as is usual since.

    Args:
        key: as in `dropout`.
        x: (N, *), the output of a residual branch before it is added.
        rate: the fraction of the paths dropped, as in `dropout`.
        training: whether to drop.
        scaling: "inverted", "original" or "none", as in `dropout`.
        start: the first sample's number in a larger batch, which may be traced.
        stride: the distance of its samples.
        of: (N,), the larger batch.

    Returns:
        As `dropout` does.

    Raises:
        ValueError: the input has no dimensions.
        TypeError, ValueError: as `dropout` does.

    Example:
        >>> import dropseed.jax as dsj
        >>> dsj.drop_path(dsj.key(0), jnp.ones((4, 2)), 0.5)[:, 0]
        Array([2., 2., 0., 0.], dtype=float32)
    """
    x = laws.checked_input(x)
    noise, broadcast = _shapes("path", x, "(N, *)")
    return _drop(key, x, rate, training, scaling, noise, broadcast, (start, stride, of))


def alpha(
    key: Any,
    x: Array,
    rate: Any = 0.5,
    *,
    training: bool = True,
    noise_shape: Sequence[int | None] | None = None,
    start: Any = 0,
    stride: Shape = 1,
    of: Shape | None = None,
) -> Array:
    """Drop elements to SELU's saturation, then restore mean and variance by an affine map.

    For self-normalising networks: an input of mean 0 and variance 1 keeps both. Klambauer et al.
    2017, "Self-normalizing neural networks", section "New dropout technique".

    Args:
        key: as in `dropout`.
        x: floating-point array of any shape.
        rate: the fraction dropped, as in `dropout`.
        training: whether to drop.
        noise_shape: who shares a draw, as in `dropout`.
        start: the first draw of a shard, as in `dropout`.
        stride: likewise.
        of: likewise.

    Returns:
        Array of the input's shape and type: ``a * x + b`` where an element is kept, the constant
        ``-a * (1 - rate) * 1.758`` where it is dropped; zeros at rate 1.

    Raises:
        TypeError, ValueError: as `dropout` does.

    Example:
        >>> import dropseed.jax as dsj
        >>> dsj.alpha(dsj.key(0), jnp.zeros(4), 0.5).round(2)
        Array([ 0.78,  0.78, -0.78, -0.78], dtype=float32)
    """
    x = laws.checked_input(x)
    noise = x.shape if noise_shape is None else _checked_noise(noise_shape, x.shape)
    force, place, words = strength(rate), draws(noise, start, stride, of), keys.words(key)
    if not training or force.number == 0:
        return x
    if force.drops_all:
        return jnp.zeros_like(x)
    return laws.select(x, words, force, place, noise, _affine(force.in_force))


def gaussian(
    key: Any,
    x: Array,
    rate: Any = 0.5,
    *,
    training: bool = True,
    start: Any = 0,
    stride: Shape = 1,
    of: Shape | None = None,
) -> Array:
    """Multiply each element by a normal draw of mean 1 and variance rate / (1 - rate).

    Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting",
    section 10: the mean and the variance of inverted dropout.

    Args:
        key: as in `dropout`.
        x: floating-point array of any shape.
        rate: the rate of the dropout that it stands for, as in `dropout`.
        training: whether to multiply.
        start: the first draw of a shard, as in `dropout`.
        stride: likewise.
        of: likewise.

    Returns:
        Array of the input's shape and type; zeros at rate 1, where no variance is left to choose.

    Raises:
        TypeError, ValueError: as `dropout` does.

    Example:
        >>> import dropseed.jax as dsj
        >>> dsj.gaussian(dsj.key(0), 100 * jnp.ones(2), 0.5) // 1
        Array([159., 143.], dtype=float32)
    """
    x = laws.checked_input(x)
    force, place, words = strength(rate), draws(x.shape, start, stride, of), keys.words(key)
    if not training or force.number == 0:
        return x
    if force.drops_all:
        return jnp.zeros_like(x)
    sigma = (force.in_force / (1 - force.in_force)) ** 0.5
    return laws.gaussian(x, words, place, x.shape, sigma)


def check_format(data_format: Any) -> None:
    """Refuse an unknown `data_format`."""
    if data_format not in FORMATS:
        raise InvalidValueError(
            f'`data_format` must be "channels_last" or "channels_first"; got {data_format!r}.'
        )


def _drop(
    key: Any,
    x: Array,
    rate: Any,
    training: bool,
    scaling: str,
    noise: tuple[int, ...],
    broadcast: tuple[int, ...],
    shard: tuple[Any, Any, Any],
) -> Array:
    """Bernoulli noise: `noise` is the noise shape, `broadcast` the same with the input's rank."""
    force, place, words = strength(rate), draws(noise, *shard), keys.words(key)
    in_training, in_inference = force.factors(scaling)
    if not training:
        return xla.scaled(x, in_inference) if scaling == "original" else x
    if force.number == 0:
        return x
    if force.drops_all:
        return jnp.zeros_like(x)
    return laws.select(x, words, force, place, broadcast, (in_training,))


def _affine(rate: Any) -> tuple[Any, Any, Any]:
    """Scale, shift and fill; where everything is dropped, what is left is 0."""
    scale = ((SATURATION**2 * rate + 1) * (1 - rate)) ** -0.5
    numbers = scale, SATURATION * scale * rate, -SATURATION * scale * (1 - rate)
    if isinstance(rate, float):
        return numbers
    return tuple(jnp.where(rate == 1, 0.0, n) for n in numbers)  # type: ignore[return-value]


def _shapes(variant: str, x: Array, layout: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The noise shape of a variant, and the same as it broadcasts to the input."""
    if x.ndim < (1 if variant == "path" else 2):
        raise InvalidValueError(f"`x` must be {layout}; got shape {x.shape}.")
    shared = shared_axes(variant, x.ndim)
    own = tuple(size for axis, size in enumerate(x.shape) if axis not in shared)
    return own, tuple(1 if axis in shared else size for axis, size in enumerate(x.shape))


def _checked_noise(noise_shape: Sequence[int | None], shape: tuple[int, ...]) -> tuple[int, ...]:
    """A noise shape with the input's sizes for None; one with fewer axes is broadcast."""
    known = isinstance(noise_shape, Sequence) and not isinstance(noise_shape, str)
    if not known or any(not isinstance(size, int | np.integer | None) for size in noise_shape):
        raise InvalidTypeError(
            f"`noise_shape` must be a sequence of integers and None; got {noise_shape!r}."
        )
    sizes = (*(1,) * (len(shape) - len(noise_shape)), *noise_shape)
    if len(sizes) != len(shape) or any(
        size not in (None, 1, whole) for size, whole in zip(sizes, shape, strict=True)
    ):
        raise InvalidValueError(
            f"`noise_shape` must broadcast to the input's shape {shape}: 1, None or the "
            f"input's size in each dimension; got {noise_shape!r}."
        )
    return tuple(whole if size is None else size for size, whole in zip(sizes, shape, strict=True))
