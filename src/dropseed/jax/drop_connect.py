"""DropConnect: weights dropped, by a mask for each sample, of which a part exists at a time."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.jax import functional, keys, laws, primitive
from dropseed.jax.rates import strength
from dropseed.jax.shards import sample_order
from dropseed.kernels import xla

AT_ONCE = 2**22  # elements of the samples' masked weights that exist at a time


def drop_connect(
    key: Any,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    rate: Any = 0.5,
    *,
    training: bool = True,
    per_sample: bool = True,
    drop_bias: bool = False,
    scaling: str = "inverted",
    start: Any = 0,
    stride: int = 1,
) -> Array:
    """A linear layer of whose weights a random fraction is dropped.

    Wan, Zeiler, Zhang, LeCun and Fergus 2013, "Regularization of neural networks using
    DropConnect", section 3: ``output = x @ (mask * weight) / (1 - rate) + bias``. Each sample has
    a mask of its own, as in the paper.

    The weight is JAX's, (I, O); its draws are numbered as in every front end, (N, O, I): a layer
    that is ported from PyTorch has the same mask.

    Args:
        key: as in `dropout`. The bias takes the derived key ``fold(key, 1)``.
        x: floating-point array (N, *, I), or (I,) for one sample. What lies between the first
            dimension and the last, time steps for instance, shares its sample's mask.
        weight: (I, O), of the input's type.
        bias: (O,), or None.
        rate: the fraction of the weights dropped, in [0, 1]: a number, or a 0-d array, which may
            be traced.
        training: whether to drop.
        per_sample: whether each sample has a mask of its own; else one for all, (O, I).
        drop_bias: whether the bias drops out too, by draws of shape (N, O), or (O,).
        scaling: "inverted", "original" (survivors unscaled in training, the weights times 1 - rate
            in inference, as in the paper) or "none".
        start: the first sample's number in a larger batch, which may be traced.
        stride: the distance of its samples.

    Returns:
        (N, *, O), or (O,).

    Raises:
        TypeError: an array is none of floating point, the types differ, `rate` is no number, or
            `key` no key.
        ValueError: the shapes don't fit, `rate` is outside [0, 1], or `scaling` is unknown.

    Example:
        >>> import dropseed.jax as dsj
        >>> dsj.drop_connect(dsj.key(0), jnp.ones((2, 4)), jnp.ones((4, 3)), rate=0.5)
        Array([[4., 6., 4.],
               [6., 8., 4.]], dtype=float32)
    """
    x, weight = laws.checked_input(x), laws.checked_input(weight, "weight")
    _check(x, weight, bias)
    turned = weight.T
    force, words = strength(rate), keys.words(key)
    factor, _ = force.factors(scaling)
    batch = x[None] if x.ndim == 1 else x
    drops = training and force.number != 0
    own = keys.fold(words, 1) if drops and drop_bias else words
    if drops and per_sample and not force.drops_all:
        numbers = laws.operands((force.threshold, force.everything, factor))
        order = sample_order(start, stride, (batch.shape[0], *turned.shape))
        output = _product(batch, turned, words, order.base, numbers, order.geometry)
        if bias is not None and drop_bias:
            place = sample_order(start, stride, (batch.shape[0], *bias.shape))
            sizes = (batch.shape[0], *[1] * (batch.ndim - 2), *bias.shape)
            rows = jnp.broadcast_to(bias, place.geometry.shape)
            bias = laws.select(rows, own, force, place, rows.shape, (factor,)).reshape(sizes)
    else:

        def drop(key: Array, array: Array) -> Array:
            return functional.dropout(key, array, rate, training=drops, scaling=scaling)

        output = batch @ drop(words, turned).T
        if bias is not None and drop_bias:
            bias = drop(own, bias)
    output = output if bias is None else output + bias
    return output[0] if x.ndim == 1 else output


def _check(x: Array, weight: Array, bias: Any) -> None:
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[0]:
        raise InvalidValueError(
            f"`x` and `weight` must be (N, *, I) and (I, O); got {x.shape} and {weight.shape}."
        )
    if bias is not None and laws.checked_input(bias, "bias").shape != weight.shape[1:]:
        raise InvalidValueError(
            f"`bias` must have shape {weight.shape[1:]}, one number for each of the weight's "
            f"columns; got {bias.shape}."
        )
    for name, array in (("weight", weight), ("bias", bias)):
        if array is not None and array.dtype != x.dtype:
            raise InvalidTypeError(
                f"`{name}` must have the type of `x`, {x.dtype}; got {array.dtype}."
            )


@partial(jax.jit, static_argnums=(5,))
def _product(
    x: Array, weight: Array, key: Array, base: Any, numbers: Any, geometry: xla.Geometry
) -> Array:
    """The outputs, a part of them at a time, whose mask is drawn anew in backward."""
    samples, outputs, inputs = geometry.shape
    count = _parts(outputs, samples * inputs)
    rows = outputs // count
    shape = (samples, rows, inputs)
    aligned = geometry.offset if count == 1 or rows * inputs % 16 == 0 else None
    part = xla.Geometry(shape, geometry.strides, aligned)
    wide = xla.compute_type(x.dtype)

    @jax.checkpoint
    def some(number: Array, weights: Array, x: Array) -> Array:
        at = xla.add((base[0], base[1]), xla.times(number, rows * inputs))
        mask = primitive.keep(key, numbers[0], numbers[1], jnp.stack(at), part)
        left = xla.apply(weights, mask, numbers[2])
        return jnp.einsum("n...i,noi->n...o", x, left, preferred_element_type=wide)

    numbered = jnp.arange(count, dtype=jnp.uint32)
    if count == 1:
        total = some(numbered[0], weight, x)
    else:
        each = lax.map(lambda one: some(*one, x), (numbered, weight.reshape(count, rows, inputs)))
        total = jnp.moveaxis(each, 0, -2).reshape(*x.shape[:-1], outputs)
    return total.astype(x.dtype)


def _parts(outputs: int, each: int) -> int:
    """In how many equal parts the outputs are made, so that little enough exists at a time."""
    most = max(1, AT_ONCE // max(each, 1))
    rows = next(rows for rows in range(min(max(outputs, 1), most), 0, -1) if outputs % rows == 0)
    return max(outputs // rows, 1)
