"""The draws of `dropseed.mask` in plain XLA operations: any device, any sharding, the same bits.

Policy: everything is uint32, so no x64 mode is needed; a 64-bit number is a pair (low, high). Keys,
first indices and thresholds are operands; shapes and strides are static. Nothing here depends on
values, so nothing communicates: an array that is sharded draws each part where it lies.

XLA would compute Philox again for each of its four outputs, and for each element of an array into
which they are interleaved. So the verdicts on a block of sixteen draws are bits of one word, one
loop over the planes carries that word, and the loop's end is what materialises it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Pair = tuple[Array, Array]

_LOW = 0xFFFFFFFF
_BYTES = 0x01010101  # times a byte: the byte four times
_TOPS = 0x80808080
_ENOUGH = 32  # a row of so many draws wastes little where it doesn't begin with a block
_DERIVING_PLANE = 15


class Geometry(NamedTuple):
    """Which draws an array has: element (i, j, ...) has ``base + i * strides[0] + ...``.

    ``offset`` is the base modulo 16 where that is known before the base is, else None.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int | None

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


# ---- 64-bit numbers and Philox -----------------------------------------------------------------


def u32(number: Any) -> Any:
    """A uint32 of a Python number modulo 2**32, or of an array."""
    # NumPy's scalars become literals at once; JAX's are arrays, and a millisecond a dozen.
    return np.uint32(number & _LOW) if isinstance(number, int) else jnp.asarray(number, jnp.uint32)


def pair(number: int) -> Pair:
    """The two words of a Python number below 2**64."""
    return u32(number), u32(number >> 32)


def add(a: Pair, b: Pair) -> Pair:
    """The sum of two 64-bit numbers, modulo 2**64."""
    low = a[0] + b[0]
    return low, a[1] + b[1] + (low < a[0]).astype(jnp.uint32)


def times(number: Array, weight: int) -> Pair:
    """A uint32 array times a Python number below 2**64, modulo 2**64."""
    low, high = pair(weight)
    return number * low, _high(number, weight & _LOW, True) + number * high


def _high(number: Array, factor: int, spread: bool) -> Array:
    """The high word of a product of two words.

    By their halves where the program may be partitioned: XLA's partitioner fails on `lax.mulhi`,
    which is no faster, but compiles faster.
    """
    if not spread:
        return lax.mulhi(number, jnp.full_like(number, factor))
    low, high = u32(factor & 0xFFFF), u32(factor >> 16)
    bottom, top = number & 0xFFFF, number >> 16
    middle = top * low + (bottom * low >> 16)
    other = bottom * high + (middle & 0xFFFF)
    return top * high + (middle >> 16) + (other >> 16)


def philox(counter: Sequence[Array], key: Sequence[Array], spread: bool = True) -> list[Array]:
    """Ten rounds of Philox4x32 over uint32 arrays of one shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        low0, low1 = c0 * u32(0xD2511F53), c2 * u32(0xCD9E8D57)
        high0, high1 = _high(c0, 0xD2511F53, spread), _high(c2, 0xCD9E8D57, spread)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + u32(0x9E3779B9), k1 + u32(0xBB67AE85)
    return [c0, c1, c2, c3]


def _call(key: Array, n: Pair, plane: Array, spread: bool = True) -> list[Array]:
    """The four words of a key's calls: block (or number) `n` of a plane."""
    site, step = (jnp.broadcast_to(word, n[0].shape) for word in (key[2], key[3]))
    return philox((n[0], (plane << 28) | n[1], site, step), (key[0], key[1]), spread)


def fold(key: Array, n: Pair) -> Array:
    """The n-th key derived from a key, as `Key.fold` derives it.

    Args:
        key: uint32 array (4,): k0, k1, site, step.
        n: a 64-bit number below 2**60.

    Returns:
        uint32 array (4,).

    Example:
        >>> fold(jnp.zeros(4, jnp.uint32), pair(1)).tolist()
        [3553624741, 3920998402, 0, 0]
    """
    words = _call(key, (jnp.asarray(n[0]), jnp.asarray(n[1])), u32(_DERIVING_PLANE))
    return jnp.stack((*words[:2], key[2], key[3]))


# ---- rows of consecutive draws -----------------------------------------------------------------


def run_of(geometry: Geometry, spread: bool) -> tuple[int, tuple[int, ...], int]:
    """How many last axes hold consecutive draws, the shape of the rest, and their length.

    Args:
        geometry: which draws there are.
        spread: whether the array may be spread over devices: then a row is as short as it can be,
            so that the axes before it are divided where they lie.

    Returns:
        The number of axes in a row, the shape of the rows, and the row's length.

    Example:
        >>> run_of(Geometry((8, 4, 32), (128, 32, 1), 0), spread=True)
        (1, (8, 4), 32)
        >>> run_of(Geometry((8, 4, 32), (128, 32, 1), 0), spread=False)
        (3, (), 1024)
    """
    shape, strides, offset = geometry
    length, first = 1, len(shape)
    while first and (strides[first - 1] == length or shape[first - 1] == 1):
        aligned = length % 16 == 0 and offset == 0 and all(s % 16 == 0 for s in strides[:first])
        if spread and length > 1 and (aligned or first == 1 or length >= _ENOUGH):
            break
        first -= 1
        length *= shape[first]
    return len(shape) - first, shape[:first], length


def _starts(geometry: Geometry, base: Array, axes: int) -> Pair:
    """The index of each row's first draw."""
    rows = geometry.shape[: len(geometry.shape) - axes]
    index = jnp.broadcast_to(base[0], rows), jnp.broadcast_to(base[1], rows)
    for axis, size in enumerate(rows):
        if size > 1:
            at = lax.broadcasted_iota(jnp.uint32, rows, axis)
            index = add(index, times(at, geometry.strides[axis]))
    return index


def _blocks(start: Pair, length: int, offset: int | None) -> Pair:
    """The blocks that hold each row, one more axis: as many as its longest offset needs."""
    first = 15 if offset is None else offset
    count = (first + length + 15) // 16
    low = start[0] >> 4 | start[1] << 28
    shape = (*low.shape, count)
    at = lax.broadcasted_iota(jnp.uint32, shape, len(shape) - 1)
    return add((low[..., None], (start[1] >> 4)[..., None]), (at, jnp.zeros_like(at)))


def _row_offset(geometry: Geometry, axes: int) -> int | None:
    """Where in its block every row begins, if that is one place and known."""
    rows = len(geometry.shape) - axes
    same = all(
        n == 1 or s % 16 == 0
        for n, s in zip(geometry.shape[:rows], geometry.strides[:rows], strict=True)
    )
    return geometry.offset if same else None


# ---- the mask ----------------------------------------------------------------------------------


def keep(
    key: Array,
    base: Array,
    threshold: Array,
    everything: Array,
    *,
    geometry: Geometry,
    spread: bool = True,
) -> Array:
    """The mask of a key, True where a value is kept.

    Args:
        key: uint32 array (4,): k0, k1, site, step.
        base: uint32 array (2,): the low and the high word of the first draw's index.
        threshold: uint32 scalar; a draw below it drops.
        everything: boolean scalar: whether everything drops, whatever the threshold.
        geometry: which draw each element has.
        spread: whether the array may be spread over devices.

    Returns:
        Boolean array of the geometry's shape.

    Example:
        >>> zeros, half = jnp.zeros(4, jnp.uint32), jnp.uint32(2**31)
        >>> mask = keep(zeros, zeros[:2], half, jnp.bool_(False), geometry=Geometry((8,), (1,), 0))
        >>> mask.astype(int)
        Array([1, 1, 0, 0, 1, 1, 0, 1], dtype=int32)
    """
    if geometry.size == 0:
        return jnp.zeros(geometry.shape, jnp.bool_)
    axes, rows, length = run_of(geometry, spread)
    offset = _row_offset(geometry, axes)
    start = _starts(geometry, base, axes)
    bits = _verdicts(key, _blocks(start, length, offset), threshold, spread)
    bits = jnp.where(everything, u32(0), bits)
    if spread and (offset != 0 or length % 16):
        return _picked(bits, start[0] & 15, length).reshape(geometry.shape)
    if offset != 0:
        bits = _shifted(bits, start[0] & 15, -(-length // 16))
    two = lax.bitcast_convert_type(bits.astype(jnp.uint16), jnp.uint8)
    one = two[..., None] >> lax.broadcasted_iota(jnp.uint8, (8,), 0) & 1
    flat = one.astype(jnp.bool_).reshape(*rows, bits.shape[-1] * 16)
    return flat[..., :length].reshape(geometry.shape)


def _verdicts(key: Array, blocks: Pair, threshold: Array, spread: bool) -> Array:
    """Sixteen verdicts a block, as bits: 1 where a draw is kept.

    The loop carries them in the low half of a word; in the high half is what still ties.
    """

    def plane(state: tuple[Array, Array]) -> tuple[Array, Array]:
        plane, word = state
        byte = (threshold >> (24 - 8 * plane) & 0xFF) * u32(_BYTES)
        above, equal = _compared(_call(key, blocks, plane, spread), byte)
        ties = word >> 16
        return plane + 1, (word | above & ties) & 0xFFFF | (equal & ties) << 16

    planes = _planes(threshold) + _hidden_zero()
    word = jnp.full(blocks[0].shape, 0xFFFF0000, jnp.uint32) | _like(key)
    word = lax.while_loop(lambda state: state[0] < planes, plane, (_like(key), word))[1]
    return (word | word >> 16) & 0xFFFF


def _planes(threshold: Array) -> Array:
    """How many planes decide: the others would be compared with zeros."""
    return u32(1) + sum(
        ((threshold & rest) != 0).astype(jnp.uint32) for rest in (0xFFFFFF, 0xFFFF, 0xFF)
    )


def _hidden_zero() -> Array:
    """Zero, unknown to the compiler, which would dissolve a loop of known length and fuse it."""
    zero: Array = lax.optimization_barrier(u32(0))
    return zero


def _like(key: Array) -> Array:
    """Zero, typed as the key is: under `shard_map` a loop wants to know where its state varies."""
    return key[0] ^ key[0]


def _compared(words: Sequence[Array], byte: Array) -> tuple[Array, Array]:
    """Which of sixteen bytes lie above a byte (given four times), and which equal it, as bits."""
    above, equal = u32(0), u32(0)
    low = u32(_LOW ^ _TOPS)
    for i, word in enumerate(words):
        differs = word ^ byte
        # The top bit of each byte: of the low seven bits' difference, then of the whole byte's.
        at_least = (word & ~byte | ~differs & ((word | u32(_TOPS)) - (byte & low))) & u32(_TOPS)
        same = ~((differs & low) + low | differs) & u32(_TOPS)
        above |= _gathered(at_least & ~same) << (4 * i)
        equal |= _gathered(same) << (4 * i)
    return above, equal


def _gathered(tops: Array) -> Array:
    """The top bits of four bytes as the low four bits of a word."""
    return (tops >> 7) * u32(0x10204080) >> 28


def _picked(bits: Array, offset: Array, length: int) -> Array:
    """The verdicts of each row's draws, looked up one by one.

    Slower than moving all of them, but a row may be cut anywhere without asking the neighbours.
    """
    at = _positions(offset, length)
    word = jnp.take_along_axis(bits, at >> 4, axis=-1, mode="clip")
    return (word >> (at & 15).astype(jnp.uint32) & 1).astype(jnp.bool_)


def _positions(offset: Array, length: int) -> Array:
    """Where each row's draws lie in its blocks."""
    shape = (*offset.shape, length)
    return offset[..., None].astype(jnp.int32) + lax.broadcasted_iota(
        jnp.int32, shape, len(shape) - 1
    )


def _shifted(bits: Array, offset: Array, count: int) -> Array:
    """The draws' bits moved to the front of each row: those of `count` blocks are left."""
    bits = jnp.concatenate((bits, jnp.zeros_like(bits[..., :1])), axis=-1)
    both = bits[..., :count] | bits[..., 1 : count + 1] << 16
    return both >> offset[..., None]


# ---- integers and normal draws -----------------------------------------------------------------


def normals(key: Array, base: Array, *, geometry: Geometry, spread: bool = True) -> Array:
    """Standard normal draws of a key, within 2**-18 of the double-precision ones.

    Args:
        key: uint32 array (4,).
        base: uint32 array (2,), as in `keep`.
        geometry: which draw each element has.
        spread: whether the array may be spread over devices.

    Returns:
        float32 array of the geometry's shape.

    Example:
        >>> zeros = jnp.zeros(4, jnp.uint32)
        >>> normals(zeros, zeros[:2], geometry=Geometry((2,), (1,), 0)) * 100 // 1
        Array([59., 43.], dtype=float32)
    """
    if geometry.size == 0:
        return jnp.zeros(geometry.shape, jnp.float32)
    u, v = _two_integers(key, base, geometry, spread)
    return jnp.sqrt(2 * _minus_log(u)) * _cosine(v)


def _two_integers(key: Array, base: Array, geometry: Geometry, spread: bool) -> tuple[Array, Array]:
    """The two 32-bit integers of each draw, by the planes 0 to 7."""
    axes, rows, length = run_of(geometry, spread)
    start = _starts(geometry, base, axes)
    offset = _row_offset(geometry, axes)
    blocks = _blocks(start, length, offset)
    wide = (*rows, blocks[0].shape[-1] * 16)

    def plane(state: tuple[Any, ...]) -> tuple[Any, ...]:
        # The words come from the turn before: a loop's end keeps XLA from computing them again.
        plane, words, u, v = state
        byte = lax.bitcast_convert_type(jnp.stack(words, axis=-1), jnp.uint8)
        byte = byte.reshape(wide).astype(jnp.uint32)
        u, v = jnp.where(plane <= 4, u << 8 | byte, u), v << 8 | byte
        return plane + 1, tuple(_call(key, blocks, plane, spread)), u, v

    none = jnp.broadcast_to(_like(key), wide)
    words = (jnp.broadcast_to(_like(key), blocks[0].shape),) * 4
    planes = u32(9) + _hidden_zero()
    state = _like(key), words, none, none
    _, _, u, v = lax.while_loop(lambda state: state[0] < planes, plane, state)
    if offset == 0:
        u, v = u[..., :length], v[..., :length]
    else:
        at = _positions(start[0] & 15, length)
        u, v = (jnp.take_along_axis(n, at, axis=-1, mode="clip") for n in (u, v))
    return u.reshape(geometry.shape), v.reshape(geometry.shape)


def _minus_log(u: Array) -> Array:
    """``-ln((u + 1) / 2**32)``: above one half from the distance to 1, which is exact."""
    distance = (~u).astype(jnp.float32) * np.float32(2**-32)
    near = -jnp.log1p(-distance)
    far = -jnp.log((u.astype(jnp.float32) + 1) * np.float32(2**-32))
    return jnp.where(u >= u32(0x80000000), near, far)


def _cosine(v: Array) -> Array:
    """``cos(2 pi v / 2**32)``, from the angle to the nearer half turn, which has more digits."""
    half = jnp.where(v >= u32(0x80000000), u32(0) - v, v)
    far = half > u32(0x40000000)
    angle = jnp.where(far, u32(0x80000000) - half, half).astype(jnp.float32)
    cosine = jnp.cos(angle * np.float32(np.pi / 2**31))
    return jnp.where(far, -cosine, cosine)


# ---- applying ----------------------------------------------------------------------------------


def compute_type(dtype: Any) -> Any:
    """The type in which values are computed: float32 for what is narrower, else their own."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def apply(x: Array, mask: Array, scale: Any, shift: Any = None, fill: Any = 0.0) -> Array:
    """Select by a mask: kept elements times `scale` in the compute type, dropped ones `fill`.

    Args:
        x: floating-point or complex array; what is narrower than float32 computes in it.
        mask: boolean array that broadcasts to `x`.
        scale: the survivors' factor, a number or a scalar.
        shift: what is added to survivors, likewise; None for nothing.
        fill: what a dropped element becomes.

    Returns:
        Array of the shape and type of `x`.

    Example:
        >>> apply(jnp.array([1.0, jnp.nan]), jnp.array([True, False]), 2.0)
        Array([2., 0.], dtype=float32)
    """
    kept = _product(x, scale)
    if shift is not None:
        kept = kept + _rounded(shift, kept.dtype)
    return jnp.where(mask, kept.astype(x.dtype), _rounded(fill, kept.dtype).astype(x.dtype))


def scaled(x: Array, factor: Any) -> Array:
    """An array times a factor that is rounded once to the compute type.

    Args:
        x: floating-point or complex array.
        factor: a number or a scalar.

    Returns:
        Array of the shape and type of `x`.

    Example:
        >>> scaled(jnp.ones(2, jnp.float16), 0.75)
        Array([0.75, 0.75], dtype=float16)
    """
    return _product(x, factor).astype(x.dtype)


def noisy(x: Array, draws: Array, sigma: Any) -> Array:
    """Multiply each element by ``1 + sigma * draw`` in the compute type.

    Args:
        x: floating-point or complex array.
        draws: floating-point array that broadcasts to `x`.
        sigma: a number or a scalar; where it is infinite, the result is 0.

    Returns:
        Array of the shape and type of `x`.

    Example:
        >>> noisy(jnp.ones(2), jnp.array([0.0, 2.0]), 0.5)
        Array([1., 2.], dtype=float32)
    """
    real = compute_type(jnp.finfo(x.dtype).dtype)
    factor = draws.astype(real) * _rounded(sigma, real) + 1
    product = (x.astype(jnp.promote_types(x.dtype, real)) * factor).astype(x.dtype)
    return jnp.where(jnp.isinf(_rounded(sigma, real)), jnp.zeros((), x.dtype), product)


def _product(x: Array, factor: Any) -> Array:
    compute = jnp.promote_types(x.dtype, compute_type(jnp.finfo(x.dtype).dtype))
    return x.astype(compute) * _rounded(factor, jnp.finfo(compute).dtype)


def _rounded(number: Any, dtype: Any) -> Array:
    """A number rounded once, from double if it is Python's, to a type."""
    return jnp.asarray(np.asarray(number, dtype) if isinstance(number, float) else number, dtype)


def dilated(dropped: Array, block: Sequence[int]) -> Array:
    """What blocks cover: each true element becomes a block of them, whose first one it was.

    Args:
        dropped: boolean array whose last dimensions are the places of blocks.
        block: the block's edge in each of these dimensions.

    Returns:
        Boolean array, larger by ``edge - 1`` in each of the dimensions.

    Example:
        >>> dilated(jnp.array([True, False, False]), (2,)).astype(int)
        Array([1, 1, 0, 0], dtype=int32)
    """
    before = dropped.ndim - len(block)
    for axis, edge in enumerate(block, before):
        reach = 1
        while reach < edge:  # each step doubles what an element covers, as far as the edge
            more = min(reach, edge - reach)
            pads = [[(0, 0)] * dropped.ndim for _ in range(2)]
            pads[0][axis], pads[1][axis] = (0, more), (more, 0)
            dropped = jnp.pad(dropped, pads[0]) | jnp.pad(dropped, pads[1])
            reach += more
    return dropped
