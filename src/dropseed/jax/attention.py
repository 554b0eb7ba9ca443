"""Attention with dropout on its probabilities: the plain formulation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.jax import functional, laws
from dropseed.jax.rates import strength


def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    mask: Array | None = None,
    *,
    dropout_rate: Any = 0.0,
    dropout_key: Any = None,
    training: bool = True,
    scale: float | None = None,
    is_causal: bool = False,
    start: Any = 0,
    stride: Any = 1,
    of: Any = None,
) -> Array:
    """Attention whose probabilities drop out: ``dropout(softmax(q k / sqrt(H) + bias)) v``.

    Vaswani et al. 2017, "Attention is all you need", section 3.2.1. The layout and the arguments
    that it has are those of `jax.nn.dot_product_attention`; the noise shape is (B, N, T, S),
    whatever the layout, as in PyTorch.

    Args:
        query: floating-point array (B, T, N, H): batch, time, heads, features.
        key: (B, S, K, H), where K divides N: each head of a group uses the same keys.
        value: (B, S, K, H).
        bias: added to the logits; broadcasts to (B, N, T, S).
        mask: boolean, True where a query may look; broadcasts to (B, N, T, S).
        dropout_rate: the fraction of the probabilities dropped, as in `dropout`.
        dropout_key: as `key` in `dropout`; needed unless the rate is 0 or nothing is dropped.
        training: whether to drop.
        scale: the factor of the logits; by default ``1 / sqrt(H)``.
        is_causal: whether a query sees the keys of its own time and before alone.
        start: the first draw of a shard of (B, N, T, S), as in `keep`.
        stride: the distance of its draws, likewise.
        of: the noise shape that it is a shard of.

    Returns:
        (B, T, N, H), of the query's type.

    Raises:
        TypeError: an array is none of floating point, or `dropout_key` is no key.
        ValueError: the shapes don't fit, `dropout_rate` is outside [0, 1], or a `dropout_key` is
            missing.

    Example:
        >>> import dropseed.jax as dsj
        >>> q, v = jnp.zeros((1, 2, 1, 4)), jnp.ones((1, 2, 1, 4))
        >>> options = {"dropout_rate": 0.5, "dropout_key": dsj.key(0)}
        >>> dsj.scaled_dot_product_attention(q, q, v, **options)[0, :, 0, 0]
        Array([2., 0.], dtype=float32)
    """
    query, key, value = (
        laws.checked_input(array, name)
        for array, name in ((query, "query"), (key, "key"), (value, "value"))
    )
    _check(query, key, value)
    force = strength(dropout_rate, "dropout_rate")
    groups = query.shape[2] // max(key.shape[2], 1)
    key, value = (jnp.repeat(array, groups, axis=2) for array in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("btnh,bsnh->bnts", query, key, preferred_element_type=wide) * scale
    for name, array in (("bias", bias), ("mask", mask)):
        if array is not None:
            _check_reach(name, array, logits.shape)
    if bias is not None:
        logits = logits + bias
    probabilities = jax.nn.softmax(_masked(logits, mask, is_causal), axis=-1).astype(key.dtype)
    if training and force.number != 0:
        if dropout_key is None:
            raise InvalidValueError(
                "`dropout_key` must be given where `dropout_rate` is not 0; got None. "
                "Make one with dropseed.jax.key(seed)."
            )
        probabilities = functional.dropout(
            dropout_key, probabilities, dropout_rate, start=start, stride=stride, of=of
        )
    return jnp.einsum("bnts,bsnh->btnh", probabilities, value)


def _check(query: Array, key: Array, value: Array) -> None:
    fits = (
        query.ndim == key.ndim == 4
        and key.shape == value.shape
        and (query.shape[0], query.shape[3]) == (key.shape[0], key.shape[3])
        and key.shape[2] > 0
        and query.shape[2] % key.shape[2] == 0
    )
    if not fits:
        raise InvalidValueError(
            "`query`, `key` and `value` must be (B, T, N, H), (B, S, K, H) and the same, where K "
            f"divides N; got {query.shape}, {key.shape} and {value.shape}."
        )


def _check_reach(name: str, array: Array, shape: tuple[int, ...]) -> None:
    """Check a bias or mask: it broadcasts to the logits, and a mask is boolean."""
    given = jnp.shape(array)
    if len(given) > len(shape) or any(
        size not in (1, whole) for size, whole in zip(given[::-1], shape[::-1], strict=False)
    ):
        raise InvalidValueError(f"`{name}` must broadcast to (B, N, T, S), {shape}; got {given}.")
    if name == "mask" and jnp.result_type(array) != jnp.bool_:
        raise InvalidTypeError(
            f"`mask` must be boolean, True where a query may look; got {jnp.result_type(array)}."
        )


def _masked(logits: Array, mask: Array | None, is_causal: bool) -> Array:
    if is_causal:
        queries, keys = logits.shape[-2:]
        causal = jnp.tril(jnp.ones((queries, keys), jnp.bool_))
        mask = causal if mask is None else mask & causal
    if mask is None:
        return logits
    return jnp.where(mask, logits, -0.7 * float(jnp.finfo(logits.dtype).max))
