"""The draws of `dropseed.mask` in plain `keras.ops`: any back end, the same bits, not fast.

Policy: all arithmetic on words is that of 32-bit integers with a sign, which wraps alike on every
back end; a product's high half is put together from products of 16 bits. A key is a tensor and is
never read back. Sizes may be unknown until the graph runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from keras import ops

from dropseed.mask import Rate
from dropseed.mask.block import coverage, exact_gamma, gamma_factor, kept_fraction
from dropseed.mask.rate import ALL

SATURATION = 1.7580993408473766
"""SELU's scale times its alpha: it saturates at minus this (Klambauer et al. 2017)."""

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85


def once(recent: dict[int, Any], draw: Callable[[], Any]) -> Any:
    """What ``draw()`` gives.

    Args:
        recent: unused; where a back end calls a layer again to recompute it, what its latest calls
            gave.
        draw: a function that gives something else each time.

    Returns:
        Its value.

    Example:
        >>> once({}, lambda: 7)
        7
    """
    return draw()


# ---- words -----------------------------------------------------------------------------------


def _signed(word: int) -> int:
    return (word + 2**31) % 2**32 - 2**31


def _low(words: Any) -> Any:
    return ops.bitwise_and(words, 0xFFFF)


def _high(words: Any) -> Any:
    return ops.bitwise_and(ops.right_shift(words, 16), 0xFFFF)


def _product(words: Any, factor: int) -> tuple[Any, Any]:
    """The high and the low half of the product of unsigned words and a constant."""
    factor_high, factor_low = factor >> 16, factor & 0xFFFF
    high, low = _high(words), _low(words)
    middle = high * factor_low + _high(low * factor_low)
    other = low * factor_high + _low(middle)
    return high * factor_high + _high(middle) + _high(other), words * _signed(factor)


def _philox(counter: tuple[Any, Any, Any, Any], k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    c0, c1, c2, c3 = counter
    for i in range(10):
        high0, low0 = _product(c0, _MULTIPLIERS[0])
        high1, low1 = _product(c2, _MULTIPLIERS[1])
        key0, key1 = (k + _signed(i * w % 2**32) for k, w in zip((k0, k1), _WEYL, strict=True))
        c0, c1 = ops.bitwise_xor(ops.bitwise_xor(high1, c1), key0), low1
        c2, c3 = ops.bitwise_xor(ops.bitwise_xor(high0, c3), key1), low0
    return c0, c1, c2, c3


def _call(key: Any, c0: Any, c1: Any) -> tuple[Any, Any, Any, Any]:
    """The four words of a key's Philox calls, whose first counter words broadcast together."""
    k0, k1, site, step = (key[i : i + 1] for i in range(4))
    zeros = ops.zeros_like(c0 + c1)
    return _philox((c0 + zeros, c1 + zeros, site + zeros, step + zeros), k0, k1)


def _bytes(key: Any, blocks: Any, planes: Sequence[int]) -> Any:
    """The bytes of planes, a row each: sixteen for each of the first `blocks` blocks, in order."""
    block = ops.arange(blocks, dtype="int32")[None, :]
    plane = ops.convert_to_tensor([[_signed(plane * 2**28)] for plane in planes], dtype="int32")
    words = ops.stack(_call(key, block, plane), axis=-1)
    four = [ops.bitwise_and(ops.right_shift(words, shift), 0xFF) for shift in (0, 8, 16, 24)]
    return ops.reshape(ops.stack(four, axis=-1), (len(planes), -1))


def _integers(key: Any, shape: Sequence[Any], planes: Sequence[int]) -> Any:
    """The 32-bit integer of each draw, by its most significant bytes; the others are 0."""
    size = math.prod(shape)
    u: Any = 0
    for place, row in enumerate(ops.unstack(_bytes(key, (size + 15) // 16, planes), len(planes))):
        u = u + ops.left_shift(row, 24 - 8 * place)
    return ops.reshape(u[:size], tuple(shape))


def as_key(words: Any) -> Any:
    """A state's words as 32-bit integers."""
    return ops.cast(words, "int32")


def fold(words: Any, n: int) -> Any:
    """The words of the n-th key derived from a key, as `Key.fold` derives it.

    Args:
        words: tensor of the key's four words.
        n: integer in [0, 2**32).

    Returns:
        Tensor of four 32-bit integers.

    Example:
        >>> words = ops.convert_to_tensor([0, 0, 0, 0], dtype="int32")
        >>> ops.convert_to_numpy(fold(words, 1))
        array([-741342555, -373968894,          0,          0], dtype=int32)
    """
    key = as_key(words)
    c0, c1 = (ops.convert_to_tensor([_signed(c)], dtype="int32") for c in (n, 15 * 2**28))
    low, high, _, _ = _call(key, c0, c1)
    return ops.concatenate([low, high, key[2:]])


# ---- draws -----------------------------------------------------------------------------------


def keep(words: Any, rate: Rate, shape: Sequence[Any]) -> Any:
    """The mask of a key, True where a value is kept.

    Args:
        words: tensor of the key's four words.
        rate: the fraction dropped.
        shape: the noise shape, of fewer than 2**31 draws; sizes may be tensors.

    Returns:
        Boolean tensor of `shape`.

    Example:
        >>> words = ops.convert_to_tensor([0, 0, 0, 0], dtype="int32")
        >>> ops.convert_to_numpy(keep(words, Rate(0.5), (8,))).astype(int)
        array([1, 1, 0, 0, 1, 1, 0, 1])
    """
    if rate.threshold == ALL:
        return ops.zeros(tuple(shape), dtype="bool")
    # Planes decide only as far as the threshold has bytes that aren't 0.
    count = next(n for n in range(1, 5) if rate.threshold % 2 ** (32 - 8 * n) == 0)
    u = _integers(as_key(words), shape, range(count))
    # Comparing is for integers with a sign: move both sides by half the range.
    return u + _signed(2**31) >= rate.threshold - 2**31


def normals(words: Any, shape: Sequence[Any]) -> Any:
    """Standard normal draws of a key, by Box and Muller's cosine.

    Args:
        words: tensor of the key's four words.
        shape: the shape of the draws.

    Returns:
        float32 tensor of `shape`, within 2**-18 of the specification.

    Example:
        >>> words = ops.convert_to_tensor([0, 0, 0, 0], dtype="int32")
        >>> ops.convert_to_numpy(normals(words, (2,))).round(4)
        array([0.5981, 0.4363], dtype=float32)
    """
    key = as_key(words)
    u, v = _integers(key, shape, range(4)), _integers(key, shape, range(4, 8))
    # Near 1 the logarithm is taken from the distance to 1, which is exact: all that u leaves over.
    near = ops.log1p(-_unsigned(-1 - u) / 2.0**32)
    far = ops.log((_unsigned(u) + 1) / 2.0**32)
    radius = ops.sqrt(-2 * ops.where(u < 0, near, far))
    # Modulo a turn the angle is v with a sign, and beyond a quarter the cosine is that of what is
    # left to half a turn, negated. To be off by one in 2**32 spares an overflow.
    angle = ops.where(v < 0, -1 - v, v)
    beyond = angle >= 2**30
    angle = ops.where(beyond, (2**31 - 1) - angle, angle)
    cosine = ops.cos(ops.cast(angle, "float32") * (2 * math.pi / 2**32))
    return radius * ops.where(beyond, -cosine, cosine)


def _unsigned(words: Any) -> Any:
    return ops.cast(_high(words), "float32") * 65536 + ops.cast(_low(words), "float32")


# ---- what the draws do -----------------------------------------------------------------------


def _wide(inputs: Any) -> Any:
    """The values in the type in which they are computed: float32 for halves."""
    half = inputs.dtype if isinstance(inputs.dtype, str) else str(inputs.dtype)
    return ops.cast(inputs, "float32") if "16" in half else inputs


def _noise_shape(inputs: Any, shared: Sequence[int]) -> list[Any]:
    return [1 if axis in shared else size for axis, size in enumerate(ops.shape(inputs))]


def _select(mask: Any, kept: Any, fill: float, inputs: Any) -> Any:
    kept = ops.cast(kept, inputs.dtype)
    return ops.where(mask, kept, ops.cast(fill, inputs.dtype))


def dropout(inputs: Any, words: Any, rate: float, shared: Sequence[int] = ()) -> Any:
    """Zero what draws below the rate and scale the rest.

    Args:
        inputs: floating-point tensor.
        words: tensor of the key's four words.
        rate: the fraction dropped, in [0, 1].
        shared: the axes along which elements share a draw.

    Returns:
        Tensor of the inputs' shape and type.

    Example:
        >>> words = ops.convert_to_tensor([0, 0, 0, 0], dtype="int32")
        >>> ops.convert_to_numpy(dropout(ops.ones(4), words, 0.5))
        array([2., 2., 0., 0.], dtype=float32)
    """
    strength = Rate(rate)
    mask = keep(words, strength, _noise_shape(inputs, shared))
    return _select(mask, _wide(inputs) * strength.scale, 0.0, inputs)


def alpha_dropout(inputs: Any, words: Any, rate: float, shared: Sequence[int] = ()) -> Any:
    """Set what is dropped to SELU's saturation, and restore mean and variance; as `dropout`."""
    strength = Rate(rate)
    mask = keep(words, strength, _noise_shape(inputs, shared))
    if strength.threshold == ALL:
        return _select(mask, inputs, 0.0, inputs)
    rate = strength.threshold / ALL
    scale = ((SATURATION**2 * rate + 1) * (1 - rate)) ** -0.5
    kept = _wide(inputs) * scale + SATURATION * scale * rate
    return _select(mask, kept, -SATURATION * scale * (1 - rate), inputs)


def gaussian_dropout(inputs: Any, words: Any, rate: float) -> Any:
    """Multiply by normal draws of mean 1 and variance rate / (1 - rate); as `dropout`."""
    threshold = Rate(rate).threshold
    if threshold == ALL:
        return ops.zeros_like(inputs)
    sigma = (threshold / (ALL - threshold)) ** 0.5
    wide = _wide(inputs)
    factors = ops.cast(normals(words, ops.shape(inputs)), wide.dtype) * sigma + 1
    return ops.cast(wide * factors, inputs.dtype)


def drop_block(
    inputs: Any,
    words: Any,
    rate: float,
    block: Sequence[int],
    shared: bool,
    exact: bool,
    normalization: str,
) -> Any:
    """Zero blocks of feature maps and scale the rest.

    Args:
        inputs: floating-point tensor (N, C, L1, ..., Ld), with known L1 to Ld.
        words: tensor of the key's four words.
        rate: the fraction dropped, in [0, 1].
        block: the block's edge in each dimension.
        shared: whether the channels share their blocks.
        exact: whether gamma is solved for.
        normalization: "sample", "batch" or "expectation".

    Returns:
        Tensor of the inputs' shape and type.

    Example:
        >>> words = ops.convert_to_tensor([3, 0, 0, 0], dtype="int32")
        >>> output = drop_block(ops.ones((1, 1, 8)), words, 0.4, (3,), False, False, "sample")
        >>> ops.convert_to_numpy(output).round(1)
        array([[[1.6, 1.6, 0. , 0. , 0. , 1.6, 1.6, 1.6]]], dtype=float32)
    """
    n, channels, *sizes = ops.shape(inputs)
    gamma, scale = _gamma(rate, tuple(sizes), tuple(block), exact)
    places = [size - edge + 1 for size, edge in zip(sizes, block, strict=True)]
    draws = (n, 1, *places) if shared else (n, channels, *places)
    dropped = _dilated(ops.cast(~keep(words, gamma, draws), "int32"), block)
    mask = ops.broadcast_to(dropped, ops.shape(inputs)) == 0
    wide = _wide(inputs)
    factor = _lost(mask, normalization, wide.dtype) if normalization != "expectation" else scale
    return _select(mask, wide * factor, 0.0, inputs)


@lru_cache(maxsize=1024)
def _gamma(
    rate: float, sizes: tuple[int, ...], block: tuple[int, ...], exact: bool
) -> tuple[Rate, float]:
    """The rate of blocks, and one over the fraction that is kept on average."""
    covered = coverage(sizes, block)
    gamma = Rate(exact_gamma(rate, covered) if exact else rate * gamma_factor(sizes, block))
    kept = kept_fraction(gamma.threshold / ALL, covered)
    return gamma, 1 / kept if kept else 0.0


def _lost(mask: Any, normalization: str, dtype: Any) -> Any:
    """The number of elements over that of those kept, of each sample or of the batch."""
    axes = None if normalization == "batch" else tuple(range(1, len(mask.shape)))
    ones = ops.cast(mask, "int32")
    kept = ops.sum(ones, axes, keepdims=True)
    size = ops.sum(ops.ones_like(ones), axes, keepdims=True)
    quotient = ops.cast(size, dtype) / ops.cast(ops.maximum(kept, 1), dtype)
    return ops.where(kept == 0, ops.zeros_like(quotient), quotient)


def _dilated(dropped: Any, block: Sequence[int]) -> Any:
    """What blocks cover: each 1 becomes a block of them, whose first element it was."""
    rank = len(dropped.shape)
    for axis, edge in enumerate(block, rank - len(block)):
        reach = 1
        while reach < edge:  # each step doubles what an element covers, as far as the edge
            more = min(reach, edge - reach)
            after = [(0, more if a == axis else 0) for a in range(rank)]
            before = [(more, 0) if a == axis else (0, 0) for a in range(rank)]
            dropped = ops.maximum(ops.pad(dropped, after), ops.pad(dropped, before))
            reach += more
    return dropped


def drop_connect(inputs: Any, weight: Any, words: Any, rate: float) -> Any:
    """A linear layer that drops weights, by a mask for each sample.

    Args:
        inputs: floating-point tensor (N, *, I).
        weight: (O, I), of the inputs' type.
        words: tensor of the key's four words.
        rate: the fraction dropped, in [0, 1].

    Returns:
        Tensor (N, *, O).

    Example:
        >>> words = ops.convert_to_tensor([0, 0, 0, 0], dtype="int32")
        >>> y = drop_connect(ops.ones((2, 4)), ops.ones((3, 4)), words, 0.5)
        >>> ops.convert_to_numpy(y).astype(int)
        array([[4, 6, 4],
               [6, 8, 4]])
    """
    strength = Rate(rate)
    mask = keep(words, strength, (ops.shape(inputs)[0], *ops.shape(weight)))
    weights = _select(mask, _wide(weight) * strength.scale, 0.0, weight)
    return ops.einsum("n...i,noi->n...o", inputs, weights)
