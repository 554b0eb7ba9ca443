"""The laws of noise: what happens to a value, given its draw. Nothing of its size is kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dropseed.errors import InvalidTypeError
from dropseed.jax import primitive
from dropseed.jax.rates import Strength
from dropseed.jax.shards import Draws
from dropseed.kernels import xla
from dropseed.kernels.xla import Geometry


def checked_input(x: Any, name: str = "x") -> Array:
    """Refuse what no dropout can take: anything but a floating-point or complex array."""
    if not isinstance(x, jax.Array | np.ndarray):
        raise InvalidTypeError(f"`{name}` must be a JAX array; got {type(x).__name__}.")
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise InvalidTypeError(
            f"`{name}` must be a floating-point array; got {x.dtype}. Call .astype(float) first."
        )
    return jnp.asarray(x)


def select(
    x: Array,
    key: Array,
    strength: Strength,
    draws: Draws,
    shape: tuple[int, ...],
    factors: tuple[Any, ...],
) -> Array:
    """Bernoulli noise: what is dropped is filled, what is kept is scaled.

    Args:
        x: floating-point or complex array.
        key: uint32 array (4,).
        strength: the rate.
        draws: the draws of the noise shape.
        shape: the noise shape as it broadcasts to `x`.
        factors: the scale; or the scale, the shift of survivors, and the fill of what is dropped.

    Returns:
        Array of the shape and type of `x`.
    """
    numbers = (strength.threshold, strength.everything, factors)
    return _select(x, key, draws.base, operands(numbers), draws.geometry, shape)


def gaussian(x: Array, key: Array, draws: Draws, shape: tuple[int, ...], sigma: Any) -> Array:
    """Gaussian noise: each value times a normal draw of mean 1 and deviation `sigma`.

    Args:
        x: floating-point or complex array.
        key: uint32 array (4,).
        draws: the draws of the noise shape.
        shape: the noise shape as it broadcasts to `x`.
        sigma: the deviation.

    Returns:
        Array of the shape and type of `x`.
    """
    return _gaussian(x, key, draws.base, operands(sigma), draws.geometry, shape)


def operands(numbers: Any) -> Any:
    """Python's integers as what a uint32 operand takes; doubles are rounded where they are used."""
    return jax.tree.map(_operand, numbers)


def _operand(number: Any) -> Any:
    if isinstance(number, bool):
        return np.bool_(number)
    if isinstance(number, int):
        return np.uint32(number)
    return number


@partial(jax.jit, static_argnums=(4, 5))
@partial(jax.checkpoint, static_argnums=(4, 5))
def _select(
    x: Array, key: Array, base: Any, numbers: Any, geometry: Geometry, shape: tuple[int, ...]
) -> Array:
    threshold, everything, factors = numbers
    mask = primitive.keep(key, threshold, everything, base, geometry)
    return xla.apply(x, mask.reshape(shape), *factors)


@partial(jax.jit, static_argnums=(4, 5))
@partial(jax.checkpoint, static_argnums=(4, 5))
def _gaussian(
    x: Array, key: Array, base: Any, sigma: Any, geometry: Geometry, shape: tuple[int, ...]
) -> Array:
    return xla.noisy(x, primitive.normals(key, base, geometry).reshape(shape), sigma)
