"""The operations of `by_ops` by the JAX front end, which stores no masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import dropseed.jax as dsj


def once(recent: dict[int, Any], draw: Callable[[], Array]) -> Array:
    """What ``draw()`` gives: a call that is recomputed is traced once."""
    return draw()


def as_key(words: Array) -> Array:
    """The four words of a key, from a state's."""
    return words.astype(jnp.uint32)


def fold(words: Array, n: int) -> Array:
    """The words of the n-th key derived from a key."""
    return dsj.fold(as_key(words), n)


def dropout(inputs: Array, words: Array, rate: float, shared: Sequence[int] = ()) -> Array:
    """Zero what draws below the rate and scale the rest."""
    return dsj.dropout(as_key(words), inputs, rate, noise_shape=_noise_shape(inputs, shared))


def alpha_dropout(inputs: Array, words: Array, rate: float, shared: Sequence[int] = ()) -> Array:
    """Set what is dropped to SELU's saturation, and restore mean and variance."""
    return dsj.alpha(as_key(words), inputs, rate, noise_shape=_noise_shape(inputs, shared))


def gaussian_dropout(inputs: Array, words: Array, rate: float) -> Array:
    """Multiply by normal draws of mean 1."""
    return dsj.gaussian(as_key(words), inputs, rate)


def drop_block(
    inputs: Array,
    words: Array,
    rate: float,
    block: Sequence[int],
    shared: bool,
    exact: bool,
    normalization: str,
) -> Array:
    """Zero blocks of feature maps (N, C, *L) and scale the rest."""
    return dsj.drop_block(
        as_key(words),
        inputs,
        rate,
        tuple(block),
        data_format="channels_first",
        shared=shared,
        exact=exact,
        normalization=normalization,
    )


def drop_connect(inputs: Array, weight: Array, words: Array, rate: float) -> Array:
    """A linear layer that drops weights (O, I), by a mask for each sample."""

    @jax.checkpoint
    def product(inputs: Array, weight: Array) -> Array:
        weights = jnp.broadcast_to(weight, (inputs.shape[0], *weight.shape))
        return jnp.einsum("n...i,noi->n...o", inputs, dsj.dropout(as_key(words), weights, rate))

    output: Array = product(inputs, weight)
    return output


def _noise_shape(inputs: Array, shared: Sequence[int]) -> tuple[int | None, ...]:
    return tuple(1 if axis in shared else None for axis in range(inputs.ndim))
