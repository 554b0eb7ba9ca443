"""The CPU kernel as a foreign function of XLA: Numba compiles a handler, JAX registers it by name.

XLA hands over one call frame (`xla/ffi/api/c_api.h` in JAX's include folder). The offsets below are
those of its structures, which only ever grow at their ends. XLA asks each handler for its version
when it is registered, and refuses one that it no longer supports.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from llvmlite import ir
from numba import carray, cfunc, types
from numba.extending import intrinsic

from dropseed.kernels import cpu

API_VERSION = 0, 1

# Byte offsets, by structure; every field used here has eight bytes unless it is written as int32.
_FRAME_EXTENSIONS, _FRAME_ARGUMENTS, _FRAME_RESULTS = 8, 72, 112
_EXTENSION_TYPE, _METADATA_EXTENSION, _EXTENSION_METADATA = 8, 1, 24
_METADATA_MAJOR, _METADATA_MINOR, _METADATA_TRAITS = 24, 28, 32
_BUFFER_DATA, _BUFFER_RANK, _BUFFER_DIMENSIONS = 24, 32, 40

_WORDS = 8  # of a draw: key, first index, threshold, whether everything drops
_LIKE_WORDS, _LIKE_BYTES = np.empty(0, np.uint32), np.empty(0, np.uint8)
_LIKE_FLOATS = np.empty(0, np.float32)

_rows, _pointer = cpu._rows, cpu._pointer
_draw_normals, _normal_scratch, _CHUNK = cpu._draw_normals, cpu._normal_scratch, cpu.NORMALS


@intrinsic
def _load(typing: Any, address: Any) -> Any:
    """The eight bytes at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))

    return types.int64(types.int64), codegen


@intrinsic
def _store_int(typing: Any, address: Any, value: Any) -> Any:
    """Four bytes to an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], ir.IntType(32).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int32), codegen


@cpu._inner
def _answered(frame: int) -> bool:
    """Whether the frame only asks for the version, which is then written."""
    extension = _load(frame + _FRAME_EXTENSIONS)
    if extension == 0 or _load(extension + _EXTENSION_TYPE) & 0xFFFFFFFF != _METADATA_EXTENSION:
        return False
    metadata = _load(extension + _EXTENSION_METADATA)
    _store_int(metadata + _METADATA_MAJOR, types.int32(API_VERSION[0]))
    _store_int(metadata + _METADATA_MINOR, types.int32(API_VERSION[1]))
    _store_int(metadata + _METADATA_TRAITS, types.int32(0))
    return True


@cpu._inner
def _buffer(frame: int, list_at: int) -> tuple[int, int]:
    """The first argument's or result's address, and the number of its elements."""
    buffer = _load(_load(frame + list_at))
    dimensions, size = _load(buffer + _BUFFER_DIMENSIONS), 1
    for axis in range(_load(buffer + _BUFFER_RANK)):
        size *= _load(dimensions + 8 * axis)
    return _load(buffer + _BUFFER_DATA), size


@cpu._inner
def _key(words: Any) -> Any:
    return np.int64(words[0]), np.int64(words[1]), np.int64(words[2]), np.int64(words[3])


@cpu._inner
def _first(words: Any) -> Any:
    """The index of the first draw."""
    return np.int64(np.uint64(words[4]) | np.uint64(words[5]) << np.uint64(32))


def _keep(frame: int) -> int:
    """Masks of consecutive draws, one for each row of words."""
    if _answered(frame):
        return 0
    words_at, count = _buffer(frame, _FRAME_ARGUMENTS)
    out_at, size = _buffer(frame, _FRAME_RESULTS)
    rows = count // _WORDS
    length = size // rows
    outer, line = np.empty((0, 3), np.int64), np.ones((1, 3), np.int64)
    middle = np.zeros((1, 3), np.int64)
    middle[0, 0], line[0, 0] = 1, length
    for row in range(rows):
        words = carray(_pointer(words_at + 4 * _WORDS * row, _LIKE_WORDS), _WORDS)
        out = carray(_pointer(out_at + length * row, _LIKE_BYTES), length)
        if words[7] != 0:
            out[:] = 0
        else:
            dims = outer, middle, line
            _rows(out, None, dims, _key(words), _first(words), np.int64(words[6]), 1.0, (0, 1))
    return 0


def _normals(frame: int) -> int:
    """Normal draws, consecutive from a multiple of 16 on, for each row of words."""
    if _answered(frame):
        return 0
    words_at, count = _buffer(frame, _FRAME_ARGUMENTS)
    out_at, size = _buffer(frame, _FRAME_RESULTS)
    rows = count // _WORDS
    length = size // rows
    scratch = _normal_scratch()
    for row in range(rows):
        words = carray(_pointer(words_at + 4 * _WORDS * row, _LIKE_WORDS), _WORDS)
        out = carray(_pointer(out_at + 4 * length * row, _LIKE_FLOATS), length)
        for start in range(0, length, _CHUNK):
            some = min(_CHUNK, length - start)
            out[start : start + some] = _draw_normals(
                scratch, _key(words), _first(words) + start, some
            )
    return 0


HANDLERS: dict[str, tuple[str, Callable[[int], int]]] = {
    "keep": ("dropseed_keep_1", _keep),
    "normals": ("dropseed_normals_1", _normals),
}

_alive: dict[str, Any] = {}  # what is registered must outlive the last program that calls it


def register(kind: str) -> None:
    """Compile a handler and make it known to XLA, by name, for its CPU platform; once.

    Args:
        kind: "keep" or "normals".

    Raises:
        Exception: this version of XLA refuses it.

    Example:
        >>> sorted(HANDLERS)
        ['keep', 'normals']
    """
    if kind in _alive:
        return
    name, function = HANDLERS[kind]
    handler = cfunc(types.int64(types.int64), nopython=True)(function)
    capsule = jax.ffi.pycapsule(ctypes.c_void_p(handler.address))
    jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    _alive[kind] = handler
