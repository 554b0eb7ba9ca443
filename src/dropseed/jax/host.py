"""When the CPU kernel draws for a JAX program, and how it is called there."""

from __future__ import annotations

import math
import os
import threading
import warnings
from functools import cache

import jax
import jax.numpy as jnp
from jax import Array

from dropseed.kernels import xla
from dropseed.kernels.xla import Geometry

DTYPES = {"keep": jnp.bool_, "normals": jnp.float32}

CORES = 8
"""The most cores with which the kernel, on one of them, beats XLA's operations on all."""

_one_at_a_time = threading.Lock()


def takes(kind: str, geometry: Geometry) -> bool:
    """Whether the kernel draws these: consecutive draws, where Numba is installed.

    Args:
        kind: "keep" or "normals".
        geometry: which draw each element has.

    Returns:
        False where XLA's operations are to draw.

    Example:
        >>> takes("keep", Geometry((2, 4), (8, 1), 0))
        False
    """
    if xla.run_of(geometry, spread=False)[1] != ():
        return False
    if kind == "normals" and geometry.offset != 0:
        return False
    if (os.cpu_count() or 1) > CORES:
        return False
    with _one_at_a_time:
        return _registered(kind)


@cache
def _registered(kind: str) -> bool:
    try:
        from dropseed.jax import foreign
    except ImportError:
        return False
    try:
        foreign.register(kind)
    except Exception as error:  # whatever XLA or Numba says: the other route is right as well
        warnings.warn(
            f"dropseed's CPU kernel can't be registered with this version of JAX ({error}); "
            "XLA's operations draw instead, with the same bits.",
            stacklevel=2,
        )
        return False
    return True


def by_kernel(words: Array, *, kind: str, geometry: Geometry) -> Array:
    """The draws by the CPU kernel, for each row of words.

    Args:
        words: uint32 array (..., 8), as `primitive.by_xla` takes it.
        kind: "keep" or "normals".
        geometry: which draw each element has; `takes` has said yes.

    Returns:
        Array (..., *geometry.shape).
    """
    from dropseed.jax import foreign

    rows = words.shape[:-1]
    result = jax.ShapeDtypeStruct((math.prod(rows), geometry.size), DTYPES[kind])
    name, _ = foreign.HANDLERS[kind]
    flat = jax.ffi.ffi_call(name, result)(words.reshape(-1, words.shape[-1]))
    draws: Array = flat.reshape(*rows, *geometry.shape)
    return draws
