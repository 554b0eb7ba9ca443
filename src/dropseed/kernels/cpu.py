"""The masks of `dropseed.mask` on a CPU, by Numba: drawn and applied in one pass, never stored.

Policy: launchers trust their input (`dropseed.mask` has checked it) and take plain values:
buffers, draws, key, threshold, scale. A buffer is a dense NumPy array, its axes in any order;
int16 holds the bits of float16, uint16 those of bfloat16. The key is its four uint32 words.

How a chunk is made: the Philox words of plane 0 *are* the first bytes of the draws, in order. A
byte above the threshold's first byte is kept, one below it dropped. One that ties (1 in 256) is
settled by further planes, for the ties alone, and its byte overwritten with the verdict. Then one
loop compares bytes and selects: a dropped value is never multiplied, so a dropped NaN is 0.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import carray, prange, types
from numba.core.caching import FunctionCache
from numba.core.cgutils import get_or_insert_function
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic, overload
from numba.np.arrayobj import populate_array

from dropseed.mask.shard import Draws

Array = npt.NDArray[Any]
KeyWords = tuple[int, int, int, int]
Scale = float | tuple[float, float, float]
Sizes = tuple[int, int, int, int, int]  # samples, channels, and a map of three dimensions
Edges = tuple[int, int, int]

CHUNK = 2**14  # draws made at once: their bytes stay in the cache
GRAIN = 2**15  # elements that pay for waking another thread
TIES = 64  # ties settled at once
NORMALS = 2**11  # Gaussian draws made at once, from eight planes
TILE = 2**16  # bytes of a tile that is turned
TILE_EDGE = 512
NARROW = 8  # fewer columns than this make a tile high instead
NARROW_HEIGHT = 2048
PIECE = 2**12  # elements that are scaled before what is dropped of them is zeroed
LANES = 8  # partial sums of a gradient: their number must not be that of the threads
LANE_ELEMENTS = 2**19  # in each of them, for as many samples at a time
SLACK = 80  # beside a row of draws: room for any offset, in whole groups of 64 bytes
ALL = 2**32  # the threshold that drops everything
_LOW = np.uint64(0xFFFFFFFF)
_VECTOR64 = ir.VectorType(ir.IntType(8), 64)


# ---- compiling -------------------------------------------------------------------------------


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's disk cache, where a full disk costs a warning and not the call."""

    def save_overload(self, signature: Any, data: Any) -> None:
        try:
            super().save_overload(signature, data)
        except OSError:
            _warn_of_no_cache()


@lru_cache(maxsize=1)
def _warn_of_no_cache() -> None:
    warnings.warn(
        "Numba's cache folder can't be written: dropseed compiles its kernels anew in each "
        "process. Set NUMBA_CACHE_DIR to a writable folder.",
        stacklevel=3,
    )


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Numba's decorator as every kernel uses it, cached on disk where a folder is writable.

    Numba looks for one beside this file, then among the user's.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(nogil=True, error_model="numpy", **options)(function)
        try:
            dispatcher._cache = _Cache(function)
        except RuntimeError:
            _warn_of_no_cache()
        return dispatcher

    return decorate


_kernel = _compiled()
_inner = _compiled(no_cpython_wrapper=True, no_cfunc_wrapper=True)  # called by kernels alone
_parallel_kernel = _compiled(parallel=True)


def _compare64(relation: str, context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Code that compares 64 bytes ``data[start : start + 64]`` with one, as bits of a uint64."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    place = builder.bitcast(builder.gep(array.data, [args[1]]), _VECTOR64.as_pointer())
    none = ir.Constant(_VECTOR64, ir.Undefined)
    one = builder.insert_element(none, args[2], ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), 64), None)
    splat = builder.shuffle_vector(one, none, zeros)
    holds = builder.icmp_unsigned(relation, builder.load(place, align=1), splat)
    return builder.bitcast(holds, ir.IntType(64))


@intrinsic
def _equal64(typing: Any, data: Any, start: Any, value: Any) -> Any:
    """The set of i in [0, 64) with ``data[start + i] == value``, as the bits of a uint64."""
    return types.uint64(data, types.int64, types.uint8), partial(_compare64, "==")


@intrinsic
def _below64(typing: Any, data: Any, start: Any, value: Any) -> Any:
    """The set of i in [0, 64) with ``data[start + i] < value``, as the bits of a uint64."""
    return types.uint64(data, types.int64, types.uint8), partial(_compare64, "<")


@intrinsic
def _pointer(typing: Any, address: Any, like: Any) -> Any:
    """An address as a pointer to elements of the type of the array `like`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(address, like), codegen


@intrinsic
def _as_bytes(typing: Any, words: Any) -> Any:
    """The same memory as bytes: `view` would do, but takes two seconds to compile."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source = context.make_array(signature.args[0])(context, builder, args[0])
        result = context.make_array(signature.return_type)(context, builder)
        size = builder.mul(builder.extract_value(source.shape, 0), ir.Constant(ir.IntType(64), 4))
        data = builder.bitcast(source.data, ir.IntType(8).as_pointer())
        populate_array(result, data, (size,), (ir.Constant(ir.IntType(64), 1),), 1, source.meminfo)
        return impl_ret_borrowed(context, builder, signature.return_type, result._getvalue())

    return types.Array(types.uint8, 1, "C")(words), codegen


@intrinsic
def _lowest_bit(typing: Any, bits: Any) -> Any:
    """The position of the lowest set bit of a uint64, 64 where there is none."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), codegen


@intrinsic
def _turn8(typing: Any, data: Any, rows: Any, at: Any, out: Any, to: Any, pitch: Any) -> Any:
    """Transpose 8 by 8 bytes from ``data[rows[j] + at :]`` to ``out[to + i * pitch :]``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word, eight, bytes64 = ir.IntType(64), ir.VectorType(ir.IntType(64), 8), _VECTOR64
        source, firsts, target = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 1, 3)
        )
        lanes = [ir.Constant(ir.IntType(32), j) for j in range(8)]
        words = ir.Constant(eight, ir.Undefined)
        for lane in lanes:
            first = builder.load(builder.gep(firsts, [lane]))
            place = builder.gep(source, [builder.add(first, args[2])])
            row = builder.load(builder.bitcast(place, word.as_pointer()), align=1)
            words = builder.insert_element(words, row, lane)
        turn = ir.Constant(
            ir.VectorType(ir.IntType(32), 64), [8 * j + i for i in range(8) for j in range(8)]
        )
        words = builder.bitcast(words, bytes64)
        words = builder.shuffle_vector(words, ir.Constant(bytes64, ir.Undefined), turn)
        words = builder.bitcast(words, eight)
        for lane in lanes:
            place = builder.gep(target, [args[4]])
            row = builder.extract_element(words, lane)
            builder.store(row, builder.bitcast(place, word.as_pointer()), align=1)
            args = [*args[:4], builder.add(args[4], args[5]), args[5]]
        return context.get_dummy_value()

    return types.void(data, rows, types.int64, out, types.int64, types.int64), codegen


@intrinsic
def _half_to_float(typing: Any, bits: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.int16), codegen


@intrinsic
def _float_to_half(typing: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.int16(types.float32), codegen


@intrinsic
def _bits_to_float(typing: Any, bits: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@intrinsic
def _float_to_bits(typing: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


# ---- drawing ---------------------------------------------------------------------------------


@_compiled(inline="always")  # left to LLVM, its loop stays rolled and nothing vectorises
def _philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """Ten rounds of Philox4x32 over uint32 values held in uint64, which vectorises best."""
    for _ in range(10):
        p0 = (c0 & _LOW) * np.uint64(0xD2511F53)
        p1 = (c2 & _LOW) * np.uint64(0xCD9E8D57)
        c0, c1 = (p1 >> np.uint64(32)) ^ c1 ^ k0, p1 & _LOW
        c2, c3 = (p0 >> np.uint64(32)) ^ c3 ^ k1, p0 & _LOW
        k0 = (k0 + np.uint64(0x9E3779B9)) & _LOW
        k1 = (k1 + np.uint64(0xBB67AE85)) & _LOW
    return c0, c1, c2, c3


@_kernel
def _words(words: Array, key: KeyWords, plane: int, block: int) -> None:
    """The Philox words of consecutive blocks, four uint32 each, as many as `words` holds."""
    # One uint32 among the arguments would double the multiplications.
    k0, k1, site, step = np.uint64(key[0]), np.uint64(key[1]), np.uint64(key[2]), np.uint64(key[3])
    high, first = np.uint64(plane) << np.uint64(28), np.uint64(block)
    for i in range(words.size // 4):
        at = first + np.uint64(i)
        w0, w1, w2, w3 = _philox(at & _LOW, high | (at >> np.uint64(32)), site, step, k0, k1)
        words[4 * i] = np.uint32(w0)
        words[4 * i + 1] = np.uint32(w1)
        words[4 * i + 2] = np.uint32(w2)
        words[4 * i + 3] = np.uint32(w3)


@_inner
def _bytes(out: Array, indices: Array, key: KeyWords, plane: int) -> None:
    """One plane's byte of each listed index, as many as `indices` holds."""
    k0, k1, site, step = np.uint64(key[0]), np.uint64(key[1]), np.uint64(key[2]), np.uint64(key[3])
    high = np.uint64(plane) << np.uint64(28)
    for i in range(indices.size):
        index = np.uint64(indices[i])
        at = index >> np.uint64(4)
        w0, w1, w2, w3 = _philox(at & _LOW, high | (at >> np.uint64(32)), site, step, k0, k1)
        low = w1 if index & np.uint64(4) else w0
        top = w3 if index & np.uint64(4) else w2
        word = top if index & np.uint64(8) else low
        out[i] = np.uint8(word >> ((index & np.uint64(3)) << np.uint64(3)))


@_inner
def _least(threshold: int) -> Any:
    """The least byte that is kept, once ties are settled.

    Where the threshold's first byte is 0 and more follows, no byte is below it: there a tie counts
    as dropped unless its byte is overwritten, elsewhere it counts as kept.
    """
    if threshold >> 24 == 0 and threshold > 0:
        return np.uint8(1)
    return np.uint8(threshold >> 24)


@_inner
def _settle(
    u: Array, ties: Array, indices: Array, found: int, key: KeyWords, threshold: int
) -> None:
    """Overwrite the bytes ``u[ties]`` that the further planes decide against `_least`."""
    lower = np.empty(found, np.uint8)
    kept_wins = threshold >> 24 == 0
    verdict = np.uint8(255) if kept_wins else np.uint8(0)
    for plane in range(1, 4):
        shift = 24 - 8 * plane
        byte = np.uint8(threshold >> shift)
        rest = threshold & ((1 << shift) - 1)
        _bytes(lower, indices[:found], key, plane)
        undecided = 0
        for i in range(found):  # selects, not branches: what is decided here is random
            tie, open_still = ties[i], lower[i] == byte and rest != 0
            decided = not open_still and (lower[i] >= byte) == kept_wins
            u[tie] = verdict if decided else u[tie]
            ties[undecided], indices[undecided] = tie, indices[i]
            undecided += open_still
        found = undecided
        if found == 0:
            return


@_inner
def _scratch() -> tuple[Array, Array, Array, Array]:
    """Room for one chunk's words, the same room as bytes, and lists of ties and their indices."""
    words = np.empty(CHUNK // 4 + 256, np.uint32)
    return words, _as_bytes(words), np.empty(TIES + 64, np.int64), np.empty(TIES + 64, np.int64)


@_inner
def _collect(
    scratch: Any, at: int, key: KeyWords, index: int, count: int, threshold: int, found: int
) -> int:
    """Draw [index, index + count) into the scratch's bytes from `at`, a multiple of 16, on.

    The first draw's byte lies at ``at + index % 16``. Ties are added to the `found` ones of the
    scratch's lists, to be settled together; the new number of them is returned.
    """
    words, u, ties, indices = scratch
    offset = index & 15
    blocks = (((offset + count + 15) >> 4) + 3) & ~3  # whole groups of 64 bytes
    _words(words[at >> 2 : (at >> 2) + 4 * blocks], key, 0, index >> 4)
    if threshold & 0xFFFFFF:
        byte = np.uint8(threshold >> 24)
        for group in range(at, at + 16 * blocks, 64):
            equal = _equal64(u, group, byte)
            more = True
            while more:  # once without a branch: a group has a tie or none, at random
                tie = group + _lowest_bit(equal)
                ties[found] = tie
                indices[found] = index - offset + tie - at
                found += equal != 0
                equal &= equal - np.uint64(1)
                more = equal != 0
            if found >= TIES:
                _settle(u, ties, indices, found, key, threshold)
                found = 0
    return found


@_inner
def _draw(scratch: Any, key: KeyWords, index: int, count: int, threshold: int) -> int:
    """Draw [index, index + count) and settle its ties; return where the first byte lies."""
    found = _collect(scratch, 0, key, index, count, threshold, 0)
    if found:
        _settle(scratch[1], scratch[2], scratch[3], found, key, threshold)
    return index & 15


@_inner
def _minus_log(u: Any) -> Any:
    """``-ln((u + 1) / 2**32)`` of a uint32, in float32 to a few units of the last place.

    By ``ln(m) = 2 atanh((m - 1) / (m + 1))``. Above one half it is computed from the distance to
    1, which is exact, since the square root to come magnifies an error there.
    """
    near = u >= np.uint32(0x80000000)
    distance = np.float32(np.int32(~u)) * np.float32(2.0**-32)
    bits = _float_to_bits(np.float32(np.int32(u)) + np.float32(1))
    exponent = np.int32(bits >> np.uint32(23)) - np.int32(127)
    m = _bits_to_float(np.uint32((bits & np.uint32(0x7FFFFF)) | np.uint32(0x3F800000)))
    large = m > np.float32(1.4142135)
    m = m * np.float32(0.5) if large else m
    exponent = exponent + np.int32(1) if large else exponent
    top = distance if near else np.float32(1) - m
    bottom = np.float32(2) - distance if near else np.float32(1) + m
    s = top / bottom
    s2 = s * s
    series = np.float32(2 / 13)
    for power in (11, 9, 7, 5, 3, 1):
        series = series * s2 + np.float32(2 / power)
    whole = np.float32(np.int32(32) - exponent) * np.float32(0.6931471805599453)
    return s * series + (np.float32(0) if near else whole)


@_inner
def _cosine(v: Any) -> Any:
    """``cos(2 pi v / 2**32)`` of a uint32, in float32, within 2**-22."""
    half = np.uint32(0) - v if v >= np.uint32(0x80000000) else v  # the cosine is even
    half = np.uint32(half)
    far = half > np.uint32(0x40000000)
    angle = np.int32(np.uint32(0x80000000) - half) if far else np.int32(half)
    x = np.float32(angle) * np.float32(np.pi / 2**31)
    x2 = x * x
    series = np.float32(1 / 479001600)
    for factorial in (-3628800, 40320, -720, 24, -2, 1):
        series = series * x2 + np.float32(1 / factorial)
    return -series if far else series


@_inner
def _join(out: Array, u: Array, first: int) -> None:
    """The 32-bit integers of draws from their bytes in four planes, most significant first."""
    row, n = NORMALS, out.size
    a, b = u[first * row :][:n], u[(first + 1) * row :][:n]
    c, d = u[(first + 2) * row :][:n], u[(first + 3) * row :][:n]
    for i in range(n):
        high = np.uint32(a[i]) << np.uint32(24) | np.uint32(b[i]) << np.uint32(16)
        out[i] = np.uint32(high | np.uint32(c[i]) << np.uint32(8) | np.uint32(d[i]))


@_inner
def _draw_normals(scratch: Any, key: KeyWords, index: int, count: int) -> Array:
    """Standard normal draws [index, index + count), whose first index is a multiple of 16."""
    words, u, v, z = scratch
    for plane in range(8):
        first = plane * NORMALS >> 2
        _words(words[first : first + (count + 15 >> 4 << 2)], key, plane, index >> 4)
    _join(u[:count], _as_bytes(words), 0)
    _join(v[:count], _as_bytes(words), 4)
    for i in range(count):
        z[i] = math.sqrt(np.float32(2) * _minus_log(u[i])) * _cosine(v[i])
    drawn: Array = z[:count]
    return drawn


@_inner
def _normal_scratch() -> tuple[Array, Array, Array, Array]:
    """Room for one chunk's words in eight planes, its two integers a draw, and its draws."""
    integers = np.empty((2, NORMALS), np.uint32)
    return np.empty(2 * NORMALS, np.uint32), integers[0], integers[1], np.empty(NORMALS, np.float32)


# ---- applying --------------------------------------------------------------------------------


def _wide(value: Any) -> Any:
    """An element in its compute type: float32 for halves."""
    raise NotImplementedError("compiled code only")


def _narrow(like: Any, value: Any) -> Any:
    """A value of the compute type rounded to the type of the element `like`."""
    raise NotImplementedError("compiled code only")


def _factor(like: Any, scale: Any) -> Any:
    """The scale, or scale, shift and fill, rounded once to the compute type of `like`."""
    raise NotImplementedError("compiled code only")


def _survivor(value: Any, factor: Any) -> Any:
    """What a kept element becomes."""
    raise NotImplementedError("compiled code only")


def _casualty(like: Any, factor: Any) -> Any:
    """What a dropped element becomes."""
    raise NotImplementedError("compiled code only")


@overload(_wide, strict=False)
def _wide_of_type(value: Any) -> Any:
    if value == types.int16:
        return lambda value: _half_to_float(value)
    if value == types.uint16:
        return lambda value: _bits_to_float(np.uint32(np.uint32(value) << np.uint32(16)))
    return lambda value: value


@overload(_narrow, strict=False)
def _narrow_of_type(like: Any, value: Any) -> Any:
    if like == types.int16:
        return lambda like, value: _float_to_half(value)
    if like == types.uint16:
        return lambda like, value: _float_to_bfloat16(value)
    return lambda like, value: value


@_inner
def _float_to_bfloat16(value: Any) -> np.uint16:
    bits = _float_to_bits(value)
    even = np.uint32(np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    rounded = np.uint16(np.uint32(bits + even) >> np.uint32(16))
    infinity = np.uint32(0x7F800000)
    nan = np.uint32(bits & np.uint32(0x7FFFFFFF)) > infinity
    quiet: np.uint16 = np.uint16(0x7FC0)
    return quiet if nan else rounded


@overload(_factor, strict=False)
def _factor_of_type(like: Any, scale: Any) -> Any:
    affine = isinstance(scale, types.BaseTuple)
    if like.dtype == types.float64:
        return lambda like, scale: scale
    if affine:
        return lambda like, scale: (
            np.float32(scale[0]),
            np.float32(scale[1]),
            np.float32(scale[2]),
        )
    return lambda like, scale: np.float32(scale)


@overload(_survivor, strict=False)
def _survivor_of_type(value: Any, factor: Any) -> Any:
    if value == types.uint8:  # a mask
        return lambda value, factor: np.uint8(1)
    if isinstance(factor, types.BaseTuple):
        return lambda value, factor: _narrow(value, _wide(value) * factor[0] + factor[1])
    return lambda value, factor: _narrow(value, _wide(value) * factor)


@overload(_casualty, strict=False)
def _casualty_of_type(like: Any, factor: Any) -> Any:
    if isinstance(factor, types.BaseTuple):
        return lambda like, factor: _narrow(like, factor[2])
    return lambda like, factor: like


@_inner
def _select(y: Array, x: Array, u: Array, least: Any, factor: Any) -> None:
    casualty = _casualty(y.dtype.type(0), factor)
    for i in range(y.size):
        value = _survivor(x[i], factor)
        y[i] = value if u[i] >= least else casualty


@_inner
def _select_in_place(y: Array, u: Array, least: Any, factor: Any) -> None:
    # Its own loop: called with y = x, the other one finds an overlap and runs unvectorised.
    casualty = _casualty(y.dtype.type(0), factor)
    for i in range(y.size):
        value = _survivor(y[i], factor)
        y[i] = value if u[i] >= least else casualty


@_inner
def _apply(y: Array, x: Any, at: int, count: int, u: Array, least: Any, factor: Any) -> None:
    """Drop or keep the elements [at, at + count), each by its own byte."""
    if x is None:
        _select_in_place(y[at : at + count], u, least, factor)
    else:
        _select(y[at : at + count], x[at : at + count], u, least, factor)


@_inner
def _scale_all(y: Array, x: Array, factor: Any) -> None:
    for i in range(y.size):
        y[i] = _survivor(x[i], factor)


@_inner
def _scale_all_in_place(y: Array, factor: Any) -> None:
    for i in range(y.size):
        y[i] = _survivor(y[i], factor)


@_inner
def _apply_one(y: Array, x: Any, at: int, count: int, kept: bool, factor: Any) -> None:
    """Drop or keep the elements [at, at + count) together."""
    if not kept:
        y[at : at + count] = _casualty(y.dtype.type(0), factor)
    elif x is None:
        _scale_all_in_place(y[at : at + count], factor)
    else:
        _scale_all(y[at : at + count], x[at : at + count], factor)


# ---- geometry: which loop, over which part -----------------------------------------------------
# Each loop takes dims of (size, memory stride, draw stride), from the outermost in memory to the
# innermost, and does its part of the work: the parts together are the same bits for any number.


@_inner
def _places(dims: Array, row: int) -> tuple[int, int]:
    """The memory offset and the draw offset of a row-major position."""
    memory = draw = 0
    for d in range(dims.shape[0] - 1, -1, -1):
        i = row % dims[d, 0]
        row //= dims[d, 0]
        memory += i * dims[d, 1]
        draw += i * dims[d, 2]
    return memory, draw


@_inner
def _count(dims: Array) -> int:
    total = 1
    for d in range(dims.shape[0]):
        total *= dims[d, 0]
    return total


def _elements(at: Any, like: Any, size: Any) -> Any:
    """The `size` elements from an address on; None where there is no address."""
    raise NotImplementedError("compiled code only")


@overload(_elements, strict=False)
def _elements_of_type(at: Any, like: Any, size: Any) -> Any:
    if isinstance(at, types.NoneType):
        return lambda at, like, size: None
    return lambda at, like, size: carray(_pointer(at, like), size)


@_kernel
def _flat(
    y_at: int,
    x_at: int | None,
    like: Array,
    size: int,
    k0: int,
    k1: int,
    site: int,
    step: int,
    threshold: int,
    scale: Any,
    part: int,
    parts: int,
) -> None:
    """Contiguous elements with the draws from 0 on, by address: what a small call is made of."""
    # Plain numbers: Numba takes a microsecond to look at arrays and tuples.
    y, x = _elements(y_at, like, size), _elements(x_at, like, size)
    scratch, least, factor = _scratch(), _least(threshold), _factor(like, scale)
    chunks = (size + CHUNK - 1) // CHUNK
    for chunk in range(chunks * part // parts, chunks * (part + 1) // parts):
        start = chunk * CHUNK
        count = min(CHUNK, size - start)
        first = _draw(scratch, (k0, k1, site, step), start, count, threshold)
        _apply(y, x, start, count, scratch[1][first:], least, factor)


@_parallel_kernel
def _flat_parallel(
    y_at: int,
    x_at: int | None,
    like: Array,
    size: int,
    k0: int,
    k1: int,
    site: int,
    step: int,
    threshold: int,
    scale: Any,
    parts: int,
) -> None:
    for part in prange(parts):
        _flat(y_at, x_at, like, size, k0, k1, site, step, threshold, scale, part, parts)


@_inner
def _spread_out(y: Array, x: Any, at: int, z: Array, deviation: Any) -> None:
    """The elements from `at` on, each times its own factor ``1 + deviation * z``."""
    out = y[at : at + z.size]
    if x is None:
        for i in range(out.size):
            out[i] = _narrow(out[i], _wide(out[i]) * (deviation * z[i] + np.float32(1)))
    else:
        source = x[at : at + z.size]
        for i in range(out.size):
            out[i] = _narrow(out[i], _wide(source[i]) * (deviation * z[i] + np.float32(1)))


@_kernel
def _gaussian(
    y_at: int,
    x_at: int | None,
    like: Array,
    size: int,
    k0: int,
    k1: int,
    site: int,
    step: int,
    sigma: float,
    part: int,
    parts: int,
) -> None:
    """Contiguous elements, each times a normal draw of mean 1 and deviation `sigma`."""
    y, x = _elements(y_at, like, size), _elements(x_at, like, size)
    scratch, deviation = _normal_scratch(), _factor(like, sigma)
    chunks = (size + NORMALS - 1) // NORMALS
    for chunk in range(chunks * part // parts, chunks * (part + 1) // parts):
        start = chunk * NORMALS
        count = min(NORMALS, size - start)
        z = _draw_normals(scratch, (k0, k1, site, step), start, count)
        _spread_out(y, x, start, z, deviation)


@_parallel_kernel
def _gaussian_parallel(
    y_at: int,
    x_at: int | None,
    like: Array,
    size: int,
    k0: int,
    k1: int,
    site: int,
    step: int,
    sigma: float,
    parts: int,
) -> None:
    for part in prange(parts):
        _gaussian(y_at, x_at, like, size, k0, k1, site, step, sigma, part, parts)


@_kernel
def _normals(z: Array, k0: int, k1: int, site: int, step: int) -> None:
    scratch = _normal_scratch()
    for start in range(0, z.size, NORMALS):
        stop = min(start + NORMALS, z.size)
        drawn = _draw_normals(scratch, (k0, k1, site, step), start, stop - start)
        for i in range(stop - start):
            z[start + i] = drawn[i]


@_inner
def _repeat(u: Array, first: int, count: int, total: int) -> None:
    """Continue the bytes ``u[first : first + count]`` periodically to `total` of them."""
    while count < total:
        more = min(count, total - count)
        for i in range(first, first + more):
            u[i + count] = u[i]
        count += more


@_kernel
def _rows(
    y: Array, x: Any, dims: Any, key: KeyWords, base: int, threshold: int, scale: Any, part: Any
) -> None:
    """Neighbours in memory are neighbours in the draws; along `middle` the rows repeat."""
    outer, middle, inner = dims
    scratch, least, factor = _scratch(), _least(threshold), _factor(y, scale)
    u = scratch[1]
    length = inner[0, 0]
    pieces = (length + CHUNK - 1) // CHUNK
    # Short rows that repeat side by side in memory are applied several at a time.
    copies, apart = middle[-1, 0], middle[-1, 1]
    run = min(copies, CHUNK // length) if apart == length and length <= CHUNK // 2 else 1
    runs = (copies + run - 1) // run
    repeats = _count(middle[:-1]) * runs
    tasks = _count(outer) * pieces * repeats
    drawn = -1
    first = at = count = 0
    for task in range(tasks * part[0] // part[1], tasks * (part[0] + 1) // part[1]):
        drawing = task // repeats
        if drawing != drawn:
            drawn = drawing
            start = drawing % pieces * CHUNK
            count = min(CHUNK, length - start)
            memory, draw = _places(outer, drawing // pieces)
            at = memory + start
            first = _draw(scratch, key, base + draw + start, count, threshold)
            _repeat(u, first, count, run * count)
        repeat = task - drawing * repeats
        copy = repeat % runs * run
        place = at + _places(middle[:-1], repeat // runs)[0] + copy * apart
        _apply(y, x, place, count * min(run, copies - copy), u[first:], least, factor)


@_kernel
def _spread(
    y: Array, x: Any, dims: Any, key: KeyWords, base: int, threshold: int, scale: Any, part: Any
) -> None:
    """Neighbours in memory share a draw; `middle` holds the neighbours in the draws."""
    outer, middle, inner = dims
    scratch, least, factor = _scratch(), _least(threshold), _factor(y, scale)
    u = scratch[1]
    length, width, apart = inner[0, 0], middle[0, 0], middle[0, 1]
    pieces = (length + GRAIN - 1) // GRAIN
    joined = pieces == 1 and apart == length
    tasks = _count(outer) * width * pieces
    task, last = tasks * part[0] // part[1], tasks * (part[0] + 1) // part[1]
    while task < last:
        row, piece = task // pieces, task % pieces
        column = row % width
        memory, draw = _places(outer, row // width)
        count = min(CHUNK, width - column, (last - task + piece + pieces - 1) // pieces)
        first = _draw(scratch, key, base + draw + column, count, threshold)
        i = 0
        while i < count and task < last:
            kept, run = u[first + i] >= least, 1
            while joined and i + run < count and (u[first + i + run] >= least) == kept:
                run += 1  # what shares its fate is one piece of memory
            start = piece * GRAIN
            size = run * length if joined else min(GRAIN, length - start)
            _apply_one(y, x, memory + (column + i) * apart + start, size, kept, factor)
            task += run
            piece = (piece + 1) % pieces
            i += run if piece == 0 else 0


@_inner
def _interleave(u: Array, firsts: Array, rows: int, tile: Array, columns: int) -> None:
    """Turn the draws of 2 to 4 columns: colour channels. These loops vectorise."""
    a, b, c, d = u[firsts[0] :], u[firsts[1] :], u[firsts[2] :], u[firsts[3] :]
    if columns == 2:
        for i in range(rows):
            tile[2 * i], tile[2 * i + 1] = a[i], b[i]
    elif columns == 3:
        for i in range(rows):
            tile[3 * i], tile[3 * i + 1], tile[3 * i + 2] = a[i], b[i], c[i]
    else:
        for i in range(rows):
            tile[4 * i], tile[4 * i + 1] = a[i], b[i]
            tile[4 * i + 2], tile[4 * i + 3] = c[i], d[i]


@_kernel
def _turned(
    y: Array, x: Any, dims: Any, key: KeyWords, base: int, threshold: int, scale: Any, part: Any
) -> None:
    """Neighbours in the draws, along `middle`, lie apart in memory: draw a tile and turn it."""
    outer, middle, inner = dims
    scratch, least, factor = _scratch(), _least(threshold), _factor(y, scale)
    u = scratch[1]
    tile = np.empty(TILE + 8 * TILE_EDGE, np.uint8)
    firsts = np.zeros(TILE_EDGE, np.int64)
    length, apart = inner[0, 0], inner[0, 2]
    height, pitch = middle[0, 0], middle[0, 1]
    widest = min(length, TILE_EDGE)
    highest = NARROW_HEIGHT if widest < NARROW else min(TILE // widest, TILE_EDGE)
    slot = highest + SLACK & ~15
    across = (length + widest - 1) // widest
    down = (height + highest - 1) // highest
    tasks = _count(outer) * across * down
    for task in range(tasks * part[0] // part[1], tasks * (part[0] + 1) // part[1]):
        memory, draw = _places(outer, task // (across * down))
        top, left = task // across % down * highest, task % across * widest
        rows, columns = min(highest, height - top), min(widest, length - left)
        joined = apart == rows  # the draws go on from column to column
        batch = max(8, (CHUNK // (rows if joined else slot)) & ~7)
        for near in range(0, columns, batch):
            # No group of 8 may pass the tile's last column: its bytes would run into the next row.
            near = max(0, min(near, columns - 8))
            wide = min(batch, columns - near)
            index = base + draw + (left + near) * apart + top
            if joined:
                firsts[0] = _draw(scratch, key, index, wide * rows, threshold)
                for i in range(1, wide):
                    firsts[i] = firsts[0] + i * rows
            else:
                found = 0
                for i in range(wide):
                    first = index + i * apart
                    found = _collect(scratch, i * slot, key, first, rows, threshold, found)
                    firsts[i] = i * slot + (first & 15)
                if found:
                    _settle(u, scratch[2], scratch[3], found, key, threshold)
            if 2 <= columns <= 4:
                _interleave(u, firsts, rows, tile, columns)
            else:
                for group in range(0, wide, 8):
                    j = max(0, min(group, wide - 8))
                    for i in range(0, rows, 8):
                        _turn8(u, firsts[j:], i, tile, i * columns + near + j, columns)
        place = memory + top * pitch + left
        if pitch == columns:
            _apply(y, x, place, rows * columns, tile, least, factor)
        else:
            for i in range(rows):
                _apply(y, x, place + i * pitch, columns, tile[i * columns :], least, factor)


@_kernel
def _scattered(
    y: Array, x: Any, dims: Any, key: KeyWords, base: int, threshold: int, scale: Any, part: Any
) -> None:
    """No two draws are neighbours (a shard that skips): each has a Philox call of its own."""
    outer, _, inner = dims
    u, least, factor = np.empty(CHUNK, np.uint8), _least(threshold), _factor(y, scale)
    every = np.empty(CHUNK, np.int64)
    ties, indices = np.empty(CHUNK, np.int64), np.empty(CHUNK, np.int64)
    byte = np.uint8(threshold >> 24)
    length = inner[0, 0]
    pieces = (length + CHUNK - 1) // CHUNK
    tasks = _count(outer) * pieces
    for task in range(tasks * part[0] // part[1], tasks * (part[0] + 1) // part[1]):
        memory, draw = _places(outer, task // pieces)
        start = task % pieces * CHUNK
        count = min(CHUNK, length - start)
        for i in range(count):
            every[i] = base + draw + (start + i) * inner[0, 2]
        _bytes(u, every[:count], key, 0)
        found = 0
        if threshold & 0xFFFFFF:
            for i in range(count):
                if u[i] == byte:
                    ties[found] = i
                    indices[found] = every[i]
                    found += 1
        if found:
            _settle(u, ties, indices, found, key, threshold)
        _apply(y, x, memory + start, count, u, least, factor)


@_parallel_kernel
def _rows_parallel(
    y: Array, x: Any, dims: Any, key: KeyWords, base: int, threshold: int, scale: Any, parts: int
) -> None:
    for part in prange(parts):
        _rows(y, x, dims, key, base, threshold, scale, (part, parts))


@_parallel_kernel
def _spread_parallel(
    y: Array, x: Any, dims: Any, key: KeyWords, base: int, threshold: int, scale: Any, parts: int
) -> None:
    for part in prange(parts):
        _spread(y, x, dims, key, base, threshold, scale, (part, parts))


@_parallel_kernel
def _turned_parallel(
    y: Array, x: Any, dims: Any, key: KeyWords, base: int, threshold: int, scale: Any, parts: int
) -> None:
    for part in prange(parts):
        _turned(y, x, dims, key, base, threshold, scale, (part, parts))


@_parallel_kernel
def _scattered_parallel(
    y: Array, x: Any, dims: Any, key: KeyWords, base: int, threshold: int, scale: Any, parts: int
) -> None:
    for part in prange(parts):
        _scattered(y, x, dims, key, base, threshold, scale, (part, parts))


# ---- DropBlock: regions ------------------------------------------------------------------------
# One sample at a time. The draws that hit are few: they are found 64 bytes at once, and each marks
# its block in a bit map, a row of bits for each row of the maps. `used` has a bit for each row that
# has any. Then the sample is scaled, some rows at a time, and what is marked of them zeroed.


@intrinsic
def _ones(typing: Any, bits: Any) -> Any:
    """How many bits of a uint64 are set."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), codegen


@_inner
def _run(start: int, stop: int, word: int) -> Any:
    """The bits [start, stop) of a row of bits, as far as they lie in one of its words."""
    first, last = max(start - 64 * word, 0), min(stop - 64 * word, 64)
    return ~np.uint64(0) >> np.uint64(64 - (last - first)) << np.uint64(first)


@_inner
def _mark_block(marks: Any, row: int, wide: int, left: int, block: Any) -> int:
    """Mark the block whose first element is `left` in `row`; return how many were not yet."""
    bits, used = marks
    fresh = 0
    for i in range(block[0]):
        top, bottom = row + i * wide, row + i * wide + block[1]
        for group in range(top >> 6, (bottom + 63) >> 6):
            used[group] |= _run(top, bottom, group)
        for word in range(left >> 6, (left + block[2] + 63) >> 6):
            ones = _run(left, left + block[2], word)
            for at in range(top, bottom):
                fresh += _ones(ones & ~bits[at, word])
                bits[at, word] |= ones
    return fresh


@_inner
def _mark_blocks(
    marks: Any, scratch: Any, key: KeyWords, base: int, sizes: Any, block: Any, threshold: int
) -> int:
    """Mark what the draws from `base` on drop of the maps that there are bits for; count it."""
    _, _, high, wide, long = sizes
    bits, used = marks
    places = (high - block[0] + 1, wide - block[1] + 1, long - block[2] + 1)
    each = places[0] * places[1] * places[2]
    total = bits.shape[0] // (high * wide) * each
    least, u = _least(threshold), scratch[1]
    bits[:], used[:] = 0, 0
    marked = 0
    top, after = 0, each  # the first row of a draw's map, and the first draw behind that map
    for start in range(0, total, CHUNK):
        count = min(CHUNK, total - start)
        first = _draw(scratch, key, base + start, count, threshold)
        for at in range(0, count, 64):
            hits = _below64(u, first + at, least)
            if count - at < 64:
                hits &= (np.uint64(1) << np.uint64(count - at)) - np.uint64(1)
            while hits:
                draw = start + at + _lowest_bit(hits)
                hits &= hits - np.uint64(1)
                while draw >= after:  # the draws come in order: no division finds the map
                    after += each
                    top += high * wide
                line = (draw - after + each) // places[2]
                left = draw - after + each - line * places[2]
                row = top + line // places[1] * (wide - places[1]) + line
                marked += _mark_block(marks, row, wide, left, block)
    return marked


@intrinsic
def _zero16(typing: Any, y: Any, at: Any, bits: Any) -> Any:
    """Zero ``y[at + i]`` for each i in [0, 16) whose bit is set; no other element is touched."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        element = data.type.pointee
        vector = ir.VectorType(element, 16)
        mask = builder.bitcast(
            builder.trunc(args[2], ir.IntType(16)), ir.VectorType(ir.IntType(1), 16)
        )
        place = builder.bitcast(builder.gep(data, [args[1]]), vector.as_pointer())
        letter = "i" if isinstance(element, ir.IntType) else "f"
        name = f"llvm.masked.store.v16{letter}{y.dtype.bitwidth}.p0"
        kinds = [vector, vector.as_pointer(), ir.IntType(32), mask.type]
        store = get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), kinds), name)
        align = ir.Constant(ir.IntType(32), y.dtype.bitwidth // 8)
        builder.call(store, [ir.Constant(vector, None), place, align, mask])
        return context.get_dummy_value()

    return types.void(y, types.int64, types.uint64), codegen


@_inner
def _zero_rows(y: Array, at: int, width: int, marks: Any, top: int, stop: int) -> None:
    """Zero what is marked of the rows [top, stop), which lie one after the other from `at` on."""
    bits, used = marks
    for group in range(top >> 6, (stop + 63) >> 6):
        rows = used[group]
        while rows:
            row = 64 * group + _lowest_bit(rows)
            rows &= rows - np.uint64(1)
            for word in range(bits.shape[1]):
                left, place = bits[row, word], at + (row - top) * width + 64 * word
                while left:  # mostly once: a block is narrow
                    first = _lowest_bit(left)
                    _zero16(y, place + first, left >> np.uint64(first))
                    left &= ~(np.uint64(0xFFFF) << np.uint64(first))


@_inner
def _zero_apart(y: Array, at: int, step: int, bits: Array, row: int) -> None:
    """Zero what is marked of one row, whose elements lie `step` apart from `at` on."""
    zero = y.dtype.type(0)
    for word in range(bits.shape[1]):
        left = bits[row, word]
        while left:
            y[at + (64 * word + _lowest_bit(left)) * step] = zero
            left &= left - np.uint64(1)


@_inner
def _apply_maps(y: Array, x: Any, at: int, sizes: Any, marks: Any, factor: Any) -> None:
    """Scale and zero one sample whose maps lie one after the other."""
    _, channels, high, wide, long = sizes
    rows = marks[0].shape[0]
    few = max(64, PIECE // long & ~63)  # whole groups of `used`
    for again in range(channels * high * wide // rows):  # shared blocks: map by map
        for top in range(0, rows, few):
            stop = min(top + few, rows)
            place = at + (again * rows + top) * long
            _apply_one(y, x, place, (stop - top) * long, True, factor)
            _zero_rows(y, place, long, marks, top, stop)


@_inner
def _apply_pixels(y: Array, x: Any, at: int, sizes: Any, marks: Any, factor: Any) -> None:
    """The same where the channels of a pixel are neighbours: one row of all maps at a time."""
    _, channels, high, wide, long = sizes
    bits, _ = marks
    for row in range(high * wide):
        place = at + row * long * channels
        _apply_one(y, x, place, long * channels, True, factor)
        for channel in range(channels):
            shown = channel * high * wide % bits.shape[0] + row
            _zero_apart(y, place + channel, channels, bits, shown)


@_inner
def _marks(sizes: Any, shared: bool) -> tuple[Array, Array]:
    """Room for the bits of one sample's maps, and for those of the rows that are used."""
    _, channels, high, wide, long = sizes
    rows = (1 if shared else channels) * high * wide
    return np.empty((rows, (long + 63) // 64), np.uint64), np.empty((rows + 63) // 64, np.uint64)


@_inner
def _first_draw(sample: int, order: Any, maps: int, sizes: Any, block: Any) -> int:
    """The first draw of a sample: `order` says which one it is of the whole batch."""
    _, _, high, wide, long = sizes
    each = (high - block[0] + 1) * (wide - block[1] + 1) * (long - block[2] + 1)
    first: int = (order[0] + sample * order[1]) * maps * each
    return first


@_kernel
def _blocks(
    y: Array,
    x: Any,
    sizes: Any,
    last: bool,
    block: Any,
    shared: bool,
    order: Any,
    key: KeyWords,
    threshold: int,
    scale: float,
    part: Any,
) -> None:
    """DropBlock of whole samples; with a `scale` below 0 each is normalised by its own count."""
    samples, channels, high, wide, long = sizes
    scratch, marks, maps = _scratch(), _marks(sizes, shared), 1 if shared else channels
    size = channels * high * wide * long
    for sample in range(samples * part[0] // part[1], samples * (part[0] + 1) // part[1]):
        base = _first_draw(sample, order, maps, sizes, block)
        marked = _mark_blocks(marks, scratch, key, base, sizes, block, threshold)
        factor = scale
        if scale < 0:
            kept = size - marked * (channels // maps)
            factor = size / kept if kept else 0.0
        if last:
            _apply_pixels(y, x, sample * size, sizes, marks, _factor(y, factor))
        else:
            _apply_maps(y, x, sample * size, sizes, marks, _factor(y, factor))


@_kernel
def _block_counts(
    out: Array,
    sizes: Any,
    block: Any,
    shared: bool,
    order: Any,
    key: KeyWords,
    threshold: int,
) -> None:
    """How many elements of each sample DropBlock drops."""
    samples, channels, _, _, _ = sizes
    scratch, marks, maps = _scratch(), _marks(sizes, shared), 1 if shared else channels
    for sample in range(samples):
        base = _first_draw(sample, order, maps, sizes, block)
        marked = _mark_blocks(marks, scratch, key, base, sizes, block, threshold)
        out[sample] = marked * (channels // maps)


@_parallel_kernel
def _blocks_parallel(
    y: Array,
    x: Any,
    sizes: Any,
    last: bool,
    block: Any,
    shared: bool,
    order: Any,
    key: KeyWords,
    threshold: int,
    scale: float,
    parts: int,
) -> None:
    for part in prange(parts):
        _blocks(y, x, sizes, last, block, shared, order, key, threshold, scale, (part, parts))


# ---- DropConnect: weights ----------------------------------------------------------------------
# A tile is a few rows of the weight, widened and padded with zeros to whole vectors. Its draws are
# neighbours, for each sample again, and meet the products they decide in the same loop.

_summing = _compiled(
    no_cpython_wrapper=True, no_cfunc_wrapper=True, fastmath={"reassoc", "contract"}
)


@_summing
def _dot(w: Array, x: Array, u: Array, least: Any) -> Any:
    """The sum of products that are kept."""
    total, zero = w.dtype.type(0), w.dtype.type(0)
    for i in range(w.size):
        total += w[i] * x[i] if u[i] >= least else zero
    return total


@_summing
def _add_two(y: Array, a: Array, b: Array, g: Any, h: Any, u: Array, v: Array, least: Any) -> None:
    """Add ``a * g`` and ``b * h`` where they are kept."""
    zero = y.dtype.type(0)
    for i in range(y.size):
        total = y[i]
        total += a[i] * g if u[i] >= least else zero
        total += b[i] * h if v[i] >= least else zero
        y[i] = total


@_inner
def _widen(out: Array, x: Array, at: int, count: int) -> None:
    """Copy ``x[at : at + count]`` in the compute type; what lies behind it in `out` is left."""
    for i in range(count):
        out[i] = _wide(x[at + i])


@_inner
def _padded(count: int) -> int:
    return (count + 63) & ~63


@_inner
def _tile_rows(outputs: int, inputs: int) -> int:
    return max(1, min(outputs, CHUNK // inputs))


@_kernel
def _connect(
    y: Array,
    x: Array,
    w: Array,
    sizes: Any,
    order: Any,
    key: KeyWords,
    threshold: int,
    scale: float,
    part: Any,
) -> None:
    """``y[n, o] = scale * sum_i keep(n, o, i) * w[o, i] * x[n, i]``."""
    samples, outputs, inputs = sizes
    scratch, least, factor = _scratch(), _least(threshold), y.dtype.type(scale)
    u, rows = scratch[1], _tile_rows(outputs, inputs)
    tile = np.zeros((rows, _padded(inputs)), y.dtype)
    vector = np.zeros(_padded(inputs), y.dtype)
    tiles = (outputs + rows - 1) // rows
    loaded = -1
    tasks = tiles * samples
    for task in range(tasks * part[0] // part[1], tasks * (part[0] + 1) // part[1]):
        top, sample = task // samples * rows, task % samples
        high = min(rows, outputs - top)
        if top != loaded:
            loaded = top
            for r in range(high):
                _widen(tile[r], w, (top + r) * inputs, inputs)
        _widen(vector, x, sample * inputs, inputs)
        draw = ((order[0] + sample * order[1]) * outputs + top) * inputs
        y[sample * outputs + top : sample * outputs + top + high] = 0
        for start in range(0, inputs, CHUNK):  # once, but for rows of more than a chunk
            count = min(CHUNK, inputs - start)
            stop = _padded(start + count)
            first = _draw(scratch, key, draw + start, high * count, threshold)
            for r in range(high):
                row, bytes_ = tile[r, start:stop], u[first + r * count :]
                y[sample * outputs + top + r] += factor * _dot(
                    row, vector[start:stop], bytes_, least
                )


@_inner
def _add_pair(
    gx: Array,
    sums: Array,
    tile: Array,
    vectors: Array,
    slopes: Array,
    drawn: Any,
    start: int,
    count: int,
    high: int,
    least: Any,
) -> None:
    """What a tile's columns from `start` on add to the gradients of it and of one or two samples.

    Two sums of products share a loop: those of two samples, or those of two rows of the tile.
    """
    stop = _padded(start + count)
    for r in range(high):
        _add_two(
            sums[r, start:stop],
            vectors[0, start:stop],
            vectors[1, start:stop],
            slopes[0, r],
            slopes[1, r],
            drawn[0][r * count :],
            drawn[1][r * count :],
            least,
        )
    for k in range(gx.shape[0]):
        for r in range(0, high, 2):
            after = r + 1 if r + 1 < high else r  # whose factor is then 0
            _add_two(
                gx[k, start:stop],
                tile[r, start:stop],
                tile[r + 1, start:stop],
                slopes[k, r],
                slopes[k, r + 1],
                drawn[k][r * count :],
                drawn[k][after * count :],
                least,
            )


@_kernel
def _connect_back(
    gx: Array,
    gw: Array,
    x: Array,
    w: Array,
    gy: Array,
    sizes: Any,
    order: Any,
    key: KeyWords,
    threshold: int,
    scale: float,
    part: Any,
) -> None:
    """Both gradients of `_connect`: each lane has its own sum for `gx`; to `gw` all is added."""
    samples, outputs, inputs = sizes
    scratch, other, least = _scratch(), _scratch(), _least(threshold)
    rows, width, dtype = _tile_rows(outputs, inputs), _padded(inputs), gx.dtype
    tile, sums = np.zeros((rows + 1, width), dtype), np.zeros((rows, width), dtype)
    vectors, slopes = np.zeros((2, width), dtype), np.zeros((2, rows + 1), dtype)
    tiles, lanes = (outputs + rows - 1) // rows, gx.shape[0]
    for lane in range(lanes * part[0] // part[1], lanes * (part[0] + 1) // part[1]):
        gx[lane] = 0
        for top in range(tiles * lane // lanes * rows, tiles * (lane + 1) // lanes * rows, rows):
            high = min(rows, outputs - top)
            for r in range(high):
                _widen(tile[r], w, (top + r) * inputs, inputs)
            tile[high] = 0
            sums[:] = 0
            for sample in range(0, samples, 2):
                pair = min(2, samples - sample)
                vectors[1], slopes[:] = 0, 0
                for k in range(pair):
                    _widen(vectors[k], x, (sample + k) * inputs, inputs)
                    for r in range(high):
                        slope = _wide(gy[(sample + k) * outputs + top + r])
                        slopes[k, r] = dtype.type(scale) * slope
                draw = ((order[0] + sample * order[1]) * outputs + top) * inputs
                after = draw + order[1] * outputs * inputs
                both = gx[lane, sample : sample + pair]
                for start in range(0, inputs, CHUNK):
                    count = min(CHUNK, inputs - start)
                    u = scratch[1][_draw(scratch, key, draw + start, high * count, threshold) :]
                    v = u
                    if pair == 2:
                        v = other[1][_draw(other, key, after + start, high * count, threshold) :]
                    _add_pair(both, sums, tile, vectors, slopes, (u, v), start, count, high, least)
            for r in range(high):
                first = (top + r) * inputs
                for i in range(inputs):
                    gw[first + i] += sums[r, i]


@_parallel_kernel
def _connect_parallel(
    y: Array,
    x: Array,
    w: Array,
    sizes: Any,
    order: Any,
    key: KeyWords,
    threshold: int,
    scale: float,
    parts: int,
) -> None:
    for part in prange(parts):
        _connect(y, x, w, sizes, order, key, threshold, scale, (part, parts))


@_parallel_kernel
def _connect_back_parallel(
    gx: Array,
    gw: Array,
    x: Array,
    w: Array,
    gy: Array,
    sizes: Any,
    order: Any,
    key: KeyWords,
    threshold: int,
    scale: float,
    parts: int,
) -> None:
    for part in prange(parts):
        _connect_back(gx, gw, x, w, gy, sizes, order, key, threshold, scale, (part, parts))


# ---- plans ------------------------------------------------------------------------------------


class _Loop(NamedTuple):
    serial: Callable[..., None]
    parallel: Callable[..., None]


_ROWS = _Loop(_rows, _rows_parallel)
_SPREAD = _Loop(_spread, _spread_parallel)
_TURNED = _Loop(_turned, _turned_parallel)
_SCATTERED = _Loop(_scattered, _scattered_parallel)


class _Plan(NamedTuple):
    """How to walk a buffer: its axes in memory order, the loop, and the loop's dims."""

    order: tuple[int, ...]
    loop: _Loop
    dims: tuple[Array, Array, Array]


@lru_cache(maxsize=4096)
def _plan(
    shape: tuple[int, ...], memory: tuple[int, ...], strides: tuple[int, ...], itemsize: int
) -> _Plan:
    """Sort the axes by their place in memory, merge what can be, and pick the loop."""
    order = tuple(sorted(range(len(shape)), key=lambda axis: (-memory[axis], axis)))
    axes = [(shape[a], memory[a] // itemsize, strides[a]) for a in order if shape[a] > 1]
    dims: list[tuple[int, int, int]] = []
    for size, step, draw in axes:
        if dims and dims[-1][1:] == (size * step, size * draw):
            size *= dims.pop()[0]
        dims.append((size, step, draw))
    *outer, inner = dims or [(1, 1, 1)]
    if inner[2] == 1:
        middle = [dim for dim in outer if dim[2] == 0]
        loop = _ROWS
    else:
        middle = [dim for dim in outer if dim[2] == 1][:1]
        loop = (_SPREAD if inner[2] == 0 else _TURNED) if middle else _SCATTERED
    outer = [dim for dim in outer if dim not in middle]
    middle = middle or [(1, 0, 0)]
    tables = (np.array(part, np.int64).reshape(-1, 3) for part in (outer, middle, [inner]))
    return _Plan(order, loop, tuple(tables))  # type: ignore[arg-type]


# ---- launching -------------------------------------------------------------------------------

_in_fork = False
_one_at_a_time = threading.Lock()


def _after_fork() -> None:
    global _in_fork
    _in_fork = True  # the parent's thread pool did not come along, and OpenMP aborts without it


os.register_at_fork(after_in_child=_after_fork)


def _threads(size: int, threads: int | None) -> int:
    """How many threads share `size` elements; `threads` is the most that the caller allows."""
    if _in_fork or size < 2 * GRAIN:
        return 1
    return min(threads or numba.get_num_threads(), size // GRAIN)


def _launch(
    y: Array,
    x: Array | None,
    draws: Draws,
    key: KeyWords,
    threshold: int,
    scale: Any,
    threads: int | None,
) -> None:
    if y.size == 0:
        return
    plan = _plan(y.shape, y.strides, draws.strides, y.itemsize)
    flat_y = _in_memory_order(y, plan.order)
    flat_x = None if x is None else _in_memory_order(x, plan.order)
    parts = _threads(y.size, threads)
    arguments = flat_y, flat_x, plan.dims, key, draws.base, threshold, scale
    if parts == 1:
        plan.loop.serial(*arguments, (0, 1))
    else:
        _in_parallel(plan.loop.parallel, *arguments, parts)


def _in_memory_order(array: Array, order: tuple[int, ...]) -> Array:
    if array.ndim == 1:
        return array
    return (array if array.flags.c_contiguous else array.transpose(order)).reshape(-1)


def _in_parallel(loop: Callable[..., None], *arguments: Any) -> None:
    layer = _layer()
    if layer is None:
        # Starting OpenMP sets the calling thread's number of threads, which torch reads too: let
        # another thread start it.
        with _one_at_a_time, ThreadPoolExecutor(1) as starter:
            starter.submit(loop, *arguments).result()
    elif layer == "workqueue":  # Numba's last resort is not safe under concurrent calls
        with _one_at_a_time:
            loop(*arguments)
    else:
        loop(*arguments)


def _layer() -> str | None:
    """Numba's threading layer, None before the first parallel call of the process."""
    try:
        return str(numba.threading_layer())
    except ValueError:
        return None


def _drop_all(out: Array, scale: Scale) -> None:
    out[...] = 0 if isinstance(scale, float) else _filling(np.empty(0, out.dtype), scale)


@_kernel
def _filling(like: Array, scale: Any) -> Any:
    return _casualty(like.dtype.type(0), _factor(like, scale))


def dropout(
    out: Array,
    x: Array,
    draws: Draws,
    key: KeyWords,
    threshold: int,
    scale: Scale,
    *,
    threads: int | None = None,
) -> None:
    """Write dropout of `x` to `out`: kept elements times `scale`, dropped ones +0.

    Args:
        out: dense array, its axes in any order in memory; may be `x` itself.
        x: array of the same shape, dtype and strides: float32, float64, int16 (the bits of
            float16) or uint16 (the bits of bfloat16).
        draws: which draw each element has; a stride of 0 shares it along that axis.
        key: the four uint32 words of the key.
        threshold: integer in [0, 2**32]; 2**32 drops everything.
        scale: the survivors' factor, rounded once to the compute type; or (scale, shift, fill):
            survivors are shifted too, and what is dropped becomes `fill`.
        threads: the most threads to use; by default Numba's number.

    Example:
        >>> from dropseed.mask.shard import whole
        >>> x = np.ones(8, np.float32)
        >>> dropout(x, x, whole((8,)), (0, 0, 0, 0), 2**31, 2.0)
        >>> x
        array([2., 2., 0., 0., 2., 2., 0., 2.], dtype=float32)
    """
    if threshold == ALL:
        _drop_all(out, scale)
        return
    _launch(out, None if out is x else x, draws, key, threshold, scale, threads)


def dropout_flat(
    out: int,
    x: int,
    like: Array,
    size: int,
    key: KeyWords,
    threshold: int,
    scale: Scale,
    *,
    threads: int | None = None,
) -> None:
    """`dropout` of contiguous elements by their addresses, with the draws from index 0 on.

    Args:
        out: the address of the output's first element; may be `x`.
        x: the address of the input's first element.
        like: an array, also an empty one, of the elements' dtype.
        size: the number of elements.
        key: the four uint32 words of the key.
        threshold: integer in [0, 2**32]; 2**32 drops everything.
        scale: the survivors' factor, rounded once to the compute type; or (scale, shift, fill):
            survivors are shifted too, and what is dropped becomes `fill`.
        threads: the most threads to use; by default Numba's number.

    Example:
        >>> x = np.ones(8, np.float32)
        >>> dropout_flat(x.ctypes.data, x.ctypes.data, x, 8, (0, 0, 0, 0), 2**31, 2.0)
        >>> x
        array([2., 2., 0., 0., 2., 2., 0., 2.], dtype=float32)
    """
    if threshold == ALL:
        memory = (ctypes.c_char * (size * like.itemsize)).from_address(out)
        _drop_all(np.frombuffer(memoryview(memory), like.dtype), scale)
        return
    source = None if x == out else x
    parts = 1 if size < 2 * GRAIN else _threads(size, threads)
    if parts == 1:
        _flat(out, source, like, size, *key, threshold, scale, 0, 1)
    else:
        _in_parallel(_flat_parallel, out, source, like, size, *key, threshold, scale, parts)


def keep(
    out: Array, draws: Draws, key: KeyWords, threshold: int, *, threads: int | None = None
) -> None:
    """Write the mask of `draws` to the boolean array `out`: True where a value is kept.

    Args:
        out: dense boolean array, its axes in any order in memory.
        draws: which draw each element has.
        key: the four uint32 words of the key.
        threshold: integer in [0, 2**32].
        threads: the most threads to use; by default Numba's number.

    Example:
        >>> from dropseed.mask.shard import whole
        >>> mask = np.empty(8, np.bool_)
        >>> keep(mask, whole((8,)), (0, 0, 0, 0), 2**31)
        >>> mask.astype(int)
        array([1, 1, 0, 0, 1, 1, 0, 1])
    """
    if threshold == ALL:
        out[...] = False
        return
    _launch(out.view(np.uint8), None, draws, key, threshold, 1.0, threads)


def gaussian_flat(
    out: int,
    x: int,
    like: Array,
    size: int,
    key: KeyWords,
    sigma: float,
    *,
    threads: int | None = None,
) -> None:
    """Multiply contiguous elements by normal draws of mean 1, those from index 0 on.

    Args:
        out: the address of the output's first element; may be `x`.
        x: the address of the input's first element.
        like: an array, also an empty one, of the elements' dtype.
        size: the number of elements.
        key: the four uint32 words of the key.
        sigma: the draws' standard deviation, rounded once to the compute type.
        threads: the most threads to use; by default Numba's number.

    Example:
        >>> x = np.ones(2, np.float32)
        >>> gaussian_flat(x.ctypes.data, x.ctypes.data, x, 2, (0, 0, 0, 0), 1.0)
        >>> x.round(4)
        array([1.5981, 1.4363], dtype=float32)
    """
    source = None if x == out else x
    parts = 1 if size < 2 * GRAIN else _threads(size, threads)
    if parts == 1:
        _gaussian(out, source, like, size, *key, sigma, 0, 1)
    else:
        _in_parallel(_gaussian_parallel, out, source, like, size, *key, sigma, parts)


def drop_block(
    out: Array,
    x: Array,
    sizes: Sizes,
    block: Edges,
    key: KeyWords,
    threshold: int,
    scale: float | None,
    *,
    shared: bool = False,
    channels_last: bool = False,
    order: tuple[int, int] = (0, 1),
    threads: int | None = None,
) -> None:
    """Write DropBlock of `x` to `out`: what no block covers times a factor, the rest +0.

    Args:
        out: contiguous array of one dimension; may be `x` itself.
        x: array of the same size and dtype, as `dropout` takes it.
        sizes: samples, channels and the map's three edges, each at least 1.
        block: the block's three edges, at most the map's.
        key: the four uint32 words of the key.
        threshold: integer in [0, 2**32] of the rate at which a draw takes a block with it.
        scale: the factor; None for each sample's own, its size over the number of its elements
            that are kept, 0 if none is.
        shared: whether a sample's channels share their blocks.
        channels_last: whether the channels lie innermost in memory. The draws' order is the same.
        order: the first sample's number, and the distance of neighbours, in the noise shape.
        threads: the most threads to use; by default Numba's number.

    Example:
        >>> x = np.ones(8, np.float32)
        >>> drop_block(x, x, (1, 1, 1, 1, 8), (1, 1, 3), (3, 0, 0, 0), 2**32 // 5, None)
        >>> x
        array([1.6, 1.6, 0. , 0. , 0. , 1.6, 1.6, 1.6], dtype=float32)
    """
    if threshold == ALL:
        _drop_all(out, 0.0)
        return
    parts = min(_threads(out.size, threads), sizes[0])
    source, factor = None if x is out else x, -1.0 if scale is None else scale
    arguments = out, source, sizes, channels_last, block, shared, order, key, threshold, factor
    if parts == 1:
        _blocks(*arguments, (0, 1))
    else:
        _in_parallel(_blocks_parallel, *arguments, parts)


def drop_block_counts(
    out: npt.NDArray[np.int64],
    sizes: Sizes,
    block: Edges,
    key: KeyWords,
    threshold: int,
    *,
    shared: bool = False,
    order: tuple[int, int] = (0, 1),
) -> None:
    """Write how many elements of each sample DropBlock drops.

    Args:
        out: int64 array, one number a sample.
        sizes: as in `drop_block`.
        block: likewise.
        key: likewise.
        threshold: likewise.
        shared: likewise.
        order: likewise.

    Example:
        >>> out = np.empty(1, np.int64)
        >>> drop_block_counts(out, (1, 1, 1, 1, 8), (1, 1, 3), (3, 0, 0, 0), 2**32 // 5)
        >>> out
        array([3])
    """
    if threshold == ALL:
        out[:] = math.prod(sizes[1:])
    else:
        _block_counts(out, sizes, block, shared, order, key, threshold)


def drop_connect(
    y: Array,
    x: Array,
    w: Array,
    sizes: tuple[int, int, int],
    key: KeyWords,
    threshold: int,
    scale: float,
    *,
    order: tuple[int, int] = (0, 1),
    threads: int | None = None,
) -> None:
    """Multiply by a weight of which each sample drops its own part.

    Args:
        y: contiguous array (N * O,) in the compute type, which is written:
            ``scale * sum_i keep(n, o, i) * w[o, i] * x[n, i]``.
        x: contiguous array (N * I,), its dtype as `dropout` takes it.
        w: contiguous array (O * I,) of the same dtype.
        sizes: N, O and I.
        key: the four uint32 words of the key; the noise shape is (N, O, I).
        threshold: integer in [0, 2**32].
        scale: the factor of what is kept, rounded once to the compute type.
        order: the first sample's number, and the distance of neighbours, in the noise shape.
        threads: the most threads to use; by default Numba's number.

    Example:
        >>> y, x = np.empty(2, np.float32), np.ones(4, np.float32)
        >>> drop_connect(y, x, np.ones(8, np.float32), (1, 2, 4), (0, 0, 0, 0), 2**31, 2.0)
        >>> y
        array([4., 6.], dtype=float32)
    """
    if threshold == ALL or x.size == 0 or y.size == 0:
        y[:] = 0
        return
    parts = _threads(y.size * sizes[2], threads)
    arguments = y, x, w, sizes, order, key, threshold, scale
    if parts == 1:
        _connect(*arguments, (0, 1))
    else:
        _in_parallel(_connect_parallel, *arguments, parts)


def drop_connect_backward(
    gx: Array,
    gw: Array,
    x: Array,
    w: Array,
    gy: Array,
    sizes: tuple[int, int, int],
    key: KeyWords,
    threshold: int,
    scale: float,
    *,
    order: tuple[int, int] = (0, 1),
    threads: int | None = None,
) -> None:
    """Write both gradients of `drop_connect`, from one drawing of the masks.

    Args:
        gx: contiguous array (N * I,) in the compute type.
        gw: contiguous array (O * I,) in the compute type.
        x: as in `drop_connect`.
        w: likewise.
        gy: contiguous array (N * O,) of the dtype of `x`, the gradient of `y`.
        sizes: N, O and I.
        key: the four uint32 words of the key.
        threshold: integer in [0, 2**32].
        scale: the factor of what is kept, rounded once to the compute type.
        order: as in `drop_connect`.
        threads: the most threads to use, of which LANES can work; by default Numba's number.

    Example:
        >>> gx, gw, x = np.empty(4), np.empty(4), np.ones(4)
        >>> words = (0, 0, 0, 0)
        >>> drop_connect_backward(gx, gw, x, x, np.ones(1), (1, 1, 4), words, 2**31, 2.0)
        >>> gx, gw
        (array([2., 2., 0., 0.]), array([2., 2., 0., 0.]))
    """
    samples, outputs, inputs = sizes
    if threshold == ALL or gy.size == 0 or inputs == 0:
        gx[:], gw[:] = 0, 0
        return
    lanes = min(LANES, -(-outputs // _tile_rows.py_func(outputs, inputs)))
    width = _padded.py_func(inputs)
    block = max(64, LANE_ELEMENTS // width)
    gw[:] = 0
    for start in range(0, samples, block):
        count = min(block, samples - start)
        some = slice(start * inputs, (start + count) * inputs)
        sums = np.empty((lanes, count, width), gx.dtype)
        arguments = (
            sums,
            gw,
            x[some],
            w,
            gy[start * outputs : (start + count) * outputs],
            (count, outputs, inputs),
            (order[0] + start * order[1], order[1]),
            key,
            threshold,
            scale,
        )
        parts = min(_threads(count * outputs * inputs, threads), lanes)
        if parts == 1:
            _connect_back(*arguments, (0, 1))
        else:
            _in_parallel(_connect_back_parallel, *arguments, parts)
        np.sum(sums[:, :, :inputs], axis=0, out=gx[some].reshape(count, inputs))


def normals(out: npt.NDArray[np.float32], key: KeyWords) -> None:
    """Write standard normal draws from index 0 on, within 2**-18 of the double-precision ones.

    Args:
        out: contiguous float32 array of one dimension.
        key: the four uint32 words of the key.

    Example:
        >>> out = np.empty(2, np.float32)
        >>> normals(out, (0, 0, 0, 0))
        >>> out.round(4)
        array([0.5981, 0.4363], dtype=float32)
    """
    _normals(out, *key)


def words(out: npt.NDArray[np.uint32], key: KeyWords, plane: int = 0, block: int = 0) -> None:
    """Write the Philox words of consecutive blocks, four each, to `out`.

    Args:
        out: uint32 array of a multiple of four words.
        key: the four uint32 words of the key.
        plane: integer in [0, 16).
        block: the first block, in [0, 2**60).

    Example:
        >>> out = np.empty(4, np.uint32)
        >>> words(out, (0, 0, 0, 0))
        >>> [hex(w) for w in out]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    _words(out, key, plane, block)
